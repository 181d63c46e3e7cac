"""What UNICORE says of a job, in our words: one table of states, one of reasons.

States are those of the UNICORE REST API (10 and 11). UNICORE has no word for why a job failed: it leaves an exit code,
its own message, its log and what the batch system says of the job (`/details`), and each reason is known by its words.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from prefect_mantik.runs import Reason, RunState, RunStatus
from prefect_mantik.unicore import JobProperties

CANCELLED_TAG = "cancelled-by-us"

STATES: dict[str, tuple[RunState, Reason | None]] = {
    "CREATED": (RunState.SCHEDULED, None),
    "READY": (RunState.SCHEDULED, None),  # twice: made, and again when its files are there
    "STAGINGIN": (RunState.SCHEDULED, None),
    "QUEUED": (RunState.SCHEDULED, None),
    "RUNNING": (RunState.RUNNING, None),
    "STAGINGOUT": (RunState.RUNNING, None),
    "SUCCESSFUL": (RunState.FINISHED, None),
    "FAILED": (RunState.FAILED, Reason.UNTOLD),
    "UNDEFINED": (RunState.SCHEDULED, Reason.PAUSED),  # held by an operator, or by the server's own trouble
}
"""A word that is not here is not an end."""

BATCH_STATES: dict[str, Reason] = {
    "TIMEOUT": Reason.TIME_LIMIT,
    "DEADLINE": Reason.TIME_LIMIT,
    "OUT_OF_MEMORY": Reason.OUT_OF_MEMORY,
    "NODE_FAIL": Reason.NODE_FAIL,
    "BOOT_FAIL": Reason.NODE_FAIL,
    "PREEMPTED": Reason.PREEMPTED,
    "CANCELLED": Reason.CANCELLED_BY_OTHER,
}
"""Slurm's states of a job, in the details that a site shows (`JobState=`)."""

REASONS: tuple[tuple[Reason, str], ...] = (
    (Reason.TIME_LIMIT, r"DUE TO TIME LIMIT|walltime [\d:]+ exceeded limit|TERM_RUNLIMIT"),
    (Reason.OUT_OF_MEMORY, r"oom[-_ ]kill|DUE TO (MEMORY|OUT OF MEMORY)|Exceeded job memory limit|TERM_MEMLIMIT"),
    (Reason.NODE_FAIL, r"DUE TO NODE FAILURE"),
    (Reason.PREEMPTED, r"DUE TO PREEMPTION|TERM_PREEMPT"),
    (Reason.CANCELLED_BY_OTHER, r"\*\*\* (JOB|STEP) .* CANCELLED|TERM_OWNER|TERM_ADMIN"),
)
"""What batch systems (Slurm, PBS, LSF) write beside a job's own log when they end it, in the order that counts."""

REFUSED = (
    r"is not available for partition|is out of range|could not be (mapped|submitted)|submission .*failed|sbatch: error"
    r"|not available\. \(Requested|unable to determine resource|invalid (account|partition|qos)"
)
"""What the site says of a job that it does not let into the queue. Such a job has no exit code."""

ABORTED = "Got 'abort' request."
"""In the log of a job that was aborted through UNICORE. Its status is FAILED all the same."""


def is_end(job: JobProperties) -> bool:
    """Whether the job's status is one that it stays in."""
    return STATES.get(job.status, (RunState.UNKNOWN, None))[0].is_end


def run_status(job: JobProperties, now: datetime, details: str = "") -> RunStatus:
    """The status of a run.

    Args:
        job: Status, message, exit code, times; for a job that failed also its log and tags.
        now: When the site was asked.
        details: What the batch system says of a job that failed.
    """
    state, reason = STATES.get(job.status, (RunState.UNKNOWN, None))
    if state is RunState.FINISHED and job.exit_code:  # a job may ask that its exit code be ignored: we do not
        state = RunState.FAILED
    if state is RunState.FAILED:
        state, reason = _why(job, details)
    main, total = job.seconds("main"), job.seconds("total")
    begin = job.submission_time
    end = begin + timedelta(seconds=total) if begin and total is not None and state.is_end else None
    # From the end: a job may have waited for its files before it was queued, which no phase counts.
    start = end - timedelta(seconds=main + (job.seconds("stage-out") or 0)) if end and main is not None else None
    if start is None and end and begin and (waited := job.seconds("queued")) is not None:
        start = begin + timedelta(seconds=waited)
    return RunStatus(
        state=state,
        reason=reason,
        site_word=job.status,
        message=" ".join(job.status_message.split()),
        exit_code=job.exit_code,
        queued_at=begin,
        started_at=start,
        ended_at=end,
        observed_at=now,
    )


def _why(job: JobProperties, details: str) -> tuple[RunState, Reason]:
    if any(ABORTED in line for line in job.log):
        ours = CANCELLED_TAG in job.tags
        return RunState.KILLED, Reason.CANCELLED_BY_US if ours else Reason.CANCELLED_BY_OTHER
    reason = _batch_reason(job, details) or _refusal(job) or (Reason.EXIT_CODE if job.exit_code else Reason.UNTOLD)
    return RunState.KILLED if reason is Reason.CANCELLED_BY_OTHER else RunState.FAILED, reason


def _batch_reason(job: JobProperties, details: str) -> Reason | None:
    """Why the batch system ended a job: its own state, or what it wrote, which the job's own words must not imitate."""
    state = re.search(r"\bJobState\W{1,4}([A-Z_]+)", details)
    if state and state[1] in BATCH_STATES:
        return BATCH_STATES[state[1]]
    text = re.sub(r"(JobName\W{1,4}|/)[^\s,\"']+", "", "\n".join([details, _said(job)]))
    return next((reason for reason, words in REASONS if re.search(words, text, re.IGNORECASE)), None)


def _refusal(job: JobProperties) -> Reason | None:
    if job.exit_code is not None:
        return None
    return Reason.REFUSED if re.search(REFUSED, _said(job), re.IGNORECASE) else None


def _said(job: JobProperties) -> str:
    """The site's message and log, without the lines that repeat the job's own words."""
    own = [line for line in job.log if "Submitted executable" not in line and "Client:" not in line]
    return "\n".join([job.status_message, *own])
