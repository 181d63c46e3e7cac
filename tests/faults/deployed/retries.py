"""What Prefect, or a person, tries again: it finds the job that is there."""

from __future__ import annotations

from tests.faults.deployed.stage import Stage, Trial


def of_the_task(stage: Stage) -> None:
    stage.start(fail="task", seconds=6).ended("COMPLETED", 120)


def of_the_flow(stage: Stage) -> None:
    stage.start("retried", seconds=6).ended("COMPLETED", 120)


def of_the_child(stage: Stage) -> None:
    stage.start("parent", fail="child", seconds=6).ended("COMPLETED", 120)


def by_a_person(stage: Stage) -> None:
    run = stage.start(fail="flow", seconds=25)
    run.ended("FAILED")
    run.wait_jobs()
    run.retry()
    run.ended("COMPLETED", 120)


def after_a_lost_answer(stage: Stage) -> None:
    """Cut after the accept, and then the site is not there to be asked: only a later try can know."""
    stage.world.sandbox.control.add_fault("drop_after", method="POST", route="/BIRCH/rest/core/jobs")
    run = stage.start(fail="task", seconds=6)
    run.ended("COMPLETED", 150)


def over_expired_tokens(stage: Stage) -> None:
    """Stopped as a laptop that sleeps; when it wakes up, no token is good any more."""
    import signal

    run = stage.start(seconds=25)
    run.wait_begun()
    run.wait_jobs("RUNNING")
    run.wait_waiting()
    run.signal(signal.SIGSTOP)
    control = stage.world.sandbox.control
    control.expire_tokens()
    control.expire_firecrest_tokens()
    control.expire_unicore_sessions()
    # The job ends while the flow stands still.
    from tests.faults.deployed.stage import until

    until("the job ends", lambda: not any(job["live"] for job in run.jobs()), 90)
    run.signal(signal.SIGCONT)
    run.ended("COMPLETED", 120)


TRIALS = [
    Trial("task-retry-alder", "task retry", "after submit", "alder", "platform", of_the_task),
    Trial("task-retry-birch", "task retry", "answer of POST lost", "birch", "birch", after_a_lost_answer),
    Trial("flow-retries-birch", "flow.retries", "after submit", "birch", "birch", of_the_flow),
    Trial("failed-retry-cedar", "Failed, then Retry", "after submit", "cedar", "cedar", by_a_person),
    Trial("child-retry-cedar", "child flow retried", "after submit", "cedar", "cedar", of_the_child),
    Trial("sleep-birch", "SIGSTOP, tokens expire", "running", "birch", "birch", over_expired_tokens),
    Trial("sleep-cedar-behind", "SIGSTOP, tokens expire", "running", "cedar-behind", "platform", over_expired_tokens),
    Trial("sleep-cedar", "SIGSTOP, tokens expire", "running", "cedar", "cedar", over_expired_tokens),
]
