"""Jobs that end otherwise than planned: by somebody else, deleted, queued again, cleaned away, cancelled by us."""

from __future__ import annotations

import dataclasses
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import httpx

from tests.faults import books
from tests.faults.bench import until
from tests.faults.kinds import ASKED, PLATFORM, REST
from tests.faults.orders import Strike
from tests.faults.plan import Planned, Recording, place_in_wait
from tests.faults.trial import Trial, Try

_YOUNG = 2.0
"""Instead of five minutes, in which a job that a site does not know may still be on its way."""

_BAD_ENDS = ("KILLED", "FAILED", "LOST")


def plans(recording: Recording, chance: random.Random) -> Sequence[Planned]:
    """All of them for one kind of site."""
    kind = recording.kind
    found = [
        Planned(kind, "job ended by somebody else", "wait", lambda trial: _ended(trial, "CANCELLED")),
        Planned(kind, "job's node failed", "wait", lambda trial: _ended(trial, "NODE_FAIL")),
        Planned(kind, "job ended by somebody else", "SIGKILL at end", lambda trial: _ended_and_killed(trial)),
        Planned(kind, "job queued again", "wait", _requeued),
        Planned(kind, "run directory cleaned away", "after the end", lambda trial: _cleaned(trial, recording)),
    ]
    if kind.name != PLATFORM:
        found.append(Planned(kind, "job deleted at the site", "wait", lambda trial: _ended(trial, "VANISHED")))
    for place in recording.cancel:
        for after in (False, True):
            there = dataclasses.replace(place, after=after)
            step = f"{'after' if after else 'before'} {_short(place)}"
            found.append(Planned(kind, "cancel, SIGKILL", step, lambda trial, there=there: _cancelled(trial, there)))
    return found


def _short(place: Strike) -> str:
    last = place.route.rpartition("/")[2]
    return place.method if place.method == "DELETE" or last.startswith("{") else last


def _waiting(trial: Trial, **fields: object) -> Try:
    one = trial.start(**fields)
    trial.until_running()
    until(lambda: one.ended or _has_seen_the_job(trial, one), "the wait has seen the job")
    return one


def _has_seen_the_job(trial: Trial, one: Try) -> bool:
    """Whether the wait was told of the job: the platform's is found among all of its site's, then asked by itself."""
    if trial.kind.name != ASKED:
        return one.in_phase("wait")
    return any(
        request.phase == "wait" and request.status == httpx.codes.OK and request.route.endswith("/rest/core/jobs/{id}")
        for request in one.requests()
    )


def _ended(trial: Trial, state: str) -> None:
    """The job ends from outside: told as such, not made again by itself, made once more on request."""
    young = {"first_minutes": _YOUNG}
    one = _waiting(trial, **young)
    trial.control.end_job(trial.one_job()["id"], state)
    first = trial.result_of(one)
    trial.open_gate()
    if state == "NODE_FAIL" and first and first.state == "FINISHED":
        trial.complaints.append(f"a job that died was told as {first}")
    trial.expect(bool(first and first.state in _BAD_ENDS), f"a bad end expected, {first} came")
    if first is None or first.error:
        return
    trial.expect(bool(first and first.reason != "CANCELLED_BY_US"), f"it was not us: {first}")
    trial.expect_error(trial.result_of(trial.start(**young)), "RunEnded")
    there = books.read(trial.bench, trial.key)
    trial.expect(len(there.jobs) == 1, f"one job expected before it is resubmitted: {there.describe()}")
    trial.attempts = 2
    trial.expect_finished(trial.bring_home(if_ended="resubmit", **young), attempt=2)


def _ended_and_killed(trial: Trial) -> None:
    """Nobody waits when the job dies: the next try tells of it, and resubmits where that is wanted."""
    one = _waiting(trial)
    one.kill()
    trial.control.end_job(trial.one_job()["id"], "FAILED")
    trial.open_gate()
    trial.expect_error(trial.result_of(trial.start()), "RunEnded")
    trial.attempts = 2
    trial.expect_finished(trial.bring_home(if_ended="resubmit"), attempt=2)


def _requeued(trial: Trial) -> None:
    """The node fails and the batch system queues the job again: the same job finishes."""
    one = _waiting(trial)
    trial.control.requeue_job(trial.one_job()["id"], seconds=1)
    until(lambda: trial.one_job()["state"] != "RUNNING", "the node failed", 10)
    trial.open_gate()
    first = trial.result_of(one)
    if trial.kind.name == REST and first and first.state in _BAD_ENDS:
        # There, FirecREST goes on showing the first start: it is ended by us before it is told.
        trial.attempts = 2
        trial.expect_finished(trial.bring_home(if_ended="resubmit"), attempt=2)
        return
    trial.expect_finished(first)


def _cleaned(trial: Trial, recording: Recording) -> None:
    """The directory is gone when the next try asks how the job ended."""
    one = trial.start(strike=trial.random.choice(place_in_wait(trial, recording)))
    one.until_ended()
    trial.open_gate()
    until(lambda: not trial.one_job()["live"], "the job ended")
    shutil.rmtree(Path(trial.one_job()["directory"]))
    trial.expect_finished(trial.bring_home())


def _cancelled(trial: Trial, place: Strike) -> None:
    """A cancel that is cut short is made good by the next, and such a run is never submitted again."""
    trial.control.switch(all_endpoints=True)
    one = _waiting(trial)
    until(lambda: one.handle() is not None, "the handle is there")
    one.kill()
    told = one.handle()
    handle = told.model_dump(mode="json") if told else None
    first = trial.start(verb="cancel", handle=handle, strike=place)
    first.until_ended()
    trial.expect(first.outcome() is None, f"the cancel was to be killed at {place}, and came to {first.outcome()}")
    second = trial.result_of(trial.start(verb="cancel", handle=handle))
    trial.expect(bool(second and second.state == "cancelled"), f"cancelled expected, {second} came")
    until(lambda: not trial.one_job()["live"], "the job ended", 20)
    trial.open_gate()
    trial.expect_error(trial.result_of(trial.start(if_ended="resubmit")), "RunEnded")
