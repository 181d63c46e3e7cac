"""What a FirecREST server says of a job, row by row: a word that is not in the table is not an end."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest

from prefect_mantik.firecrest import Job
from prefect_mantik.runs import Reason, RunState, RunStatus
from prefect_mantik.sites.firecrest.states import STATES, STUCK, run_status, word

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
BEGUN, ENDED = 1767225000, 1767225600


def job(state: Any, reason: str | None = None, code: int | None = None, signal: int | None = None, **time: Any) -> Job:
    """A job, as a server answers it."""
    status = {"state": state, "stateReason": reason, "exitCode": code, "interruptSignal": signal}
    return Job.model_validate({"jobId": "7", "status": status, "time": time})


def told(*given: Any, **time: Any) -> RunStatus:
    """The status of such a job."""
    return run_status(job(*given, **time), NOW)


def at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)


WORDS = {
    "PENDING": (RunState.SCHEDULED, None),
    "CONFIGURING": (RunState.SCHEDULED, None),
    "REQUEUED": (RunState.SCHEDULED, None),
    "REQUEUE_FED": (RunState.SCHEDULED, None),
    "REQUEUE_HOLD": (RunState.SCHEDULED, Reason.STUCK),
    "SPECIAL_EXIT": (RunState.SCHEDULED, Reason.STUCK),
    "RESV_DEL_HOLD": (RunState.SCHEDULED, Reason.STUCK),
    "RUNNING": (RunState.RUNNING, None),
    "COMPLETING": (RunState.RUNNING, None),
    "SIGNALING": (RunState.RUNNING, None),
    "STAGE_OUT": (RunState.RUNNING, None),
    "RESIZING": (RunState.RUNNING, None),
    "UPDATE_DB": (RunState.RUNNING, None),
    "SUSPENDED": (RunState.RUNNING, Reason.PAUSED),
    "STOPPED": (RunState.RUNNING, Reason.PAUSED),
    "COMPLETED": (RunState.FINISHED, None),
    "FAILED": (RunState.FAILED, Reason.UNTOLD),
    "LAUNCH_FAILED": (RunState.FAILED, Reason.NODE_FAIL),
    "TIMEOUT": (RunState.FAILED, Reason.TIME_LIMIT),
    "DEADLINE": (RunState.FAILED, Reason.TIME_LIMIT),
    "OUT_OF_MEMORY": (RunState.FAILED, Reason.OUT_OF_MEMORY),
    "NODE_FAIL": (RunState.FAILED, Reason.NODE_FAIL),
    "BOOT_FAIL": (RunState.FAILED, Reason.NODE_FAIL),
    "RECONFIG_FAIL": (RunState.FAILED, Reason.NODE_FAIL),
    "PREEMPTED": (RunState.FAILED, Reason.PREEMPTED),
    "CANCELLED": (RunState.KILLED, Reason.CANCELLED_BY_OTHER),
    "REVOKED": (RunState.KILLED, Reason.CANCELLED_BY_OTHER),
}


@pytest.mark.parametrize(("given", "expected"), WORDS.items())
def test_each_word_of_slurm(given: str, expected: tuple[RunState, Reason | None]) -> None:
    found = told(given)
    assert (found.state, found.reason) == expected
    assert (found.site_word, found.observed_at) == (given, NOW)


def test_each_word_has_a_test() -> None:
    assert WORDS == STATES


@pytest.mark.parametrize("given", ["", "UNKNOWN", "DONE", "SUCCESS", "CANCELLED_BY 2001", "TIMEOUT+"])
def test_a_word_that_nobody_knows_is_no_end(given: str) -> None:
    found = told(given, None, 0, 0, start=BEGUN, end=ENDED)
    assert (found.state, found.reason, found.site_word) == (RunState.UNKNOWN, None, given)
    assert not found.state.is_end
    assert (found.started_at, found.ended_at) == (None, None)


@pytest.mark.parametrize(
    ("given", "counts"),
    [
        ("COMPLETING,FAILED", "COMPLETING"),
        ("FAILED,COMPLETING", "COMPLETING"),
        (["COMPLETING", "FAILED"], "COMPLETING"),
        (["CANCELLED"], "CANCELLED"),
        ("FAILED, REQUEUED", "REQUEUED"),
        ("COMPLETED,NOBODY_KNOWS", "NOBODY_KNOWS"),
        ("FAILED,TIMEOUT", "FAILED"),
        ("completed", "COMPLETED"),
        ("CANCELLED by 2001", "CANCELLED"),
    ],
)
def test_of_several_words_the_one_that_is_no_end_counts(given: Any, counts: str) -> None:
    assert word(job(given)) == counts


# --- Cancelled ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["CANCELLED by 2001", "CANCELLED by 0", "CANCELLED"])
def test_a_cancel_bears_who_did_it(given: str) -> None:
    found = told(given, "None", 0, 15, start=BEGUN, end=ENDED)
    assert (found.state, found.reason, found.exit_code) == (RunState.KILLED, Reason.CANCELLED_BY_OTHER, None)
    assert found.site_word == given
    assert (found.started_at, found.ended_at) == (at(BEGUN), at(ENDED))


def test_a_job_that_was_cancelled_before_it_began_has_no_start() -> None:
    found = told("CANCELLED by 2001", None, 0, 0, start=None, end=ENDED)
    assert (found.started_at, found.ended_at) == (None, at(ENDED))


# --- Failed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "signal", "reason", "shown", "message"),
    [
        (3, 0, Reason.EXIT_CODE, 3, ""),
        (1, 0, Reason.EXIT_CODE, 1, ""),
        (3, None, Reason.EXIT_CODE, 3, ""),
        (0, 9, Reason.UNTOLD, None, "the job was ended by signal 9"),
        (0, 53, Reason.REFUSED, None, "the job could not enter its directory: may the account write there?"),
        (0, 0, Reason.UNTOLD, None, ""),
        (None, None, Reason.UNTOLD, None, ""),
    ],
)
def test_why_a_job_failed(
    code: int | None, signal: int | None, reason: Reason, shown: int | None, message: str
) -> None:
    found = told("FAILED", "NonZeroExitCode", code, signal)
    assert (found.state, found.reason, found.exit_code, found.message) == (RunState.FAILED, reason, shown, message)


@pytest.mark.parametrize(
    ("state", "code", "signal", "reason", "shown"),
    [
        ("TIMEOUT", 0, 0, Reason.TIME_LIMIT, None),
        ("NODE_FAIL", 1, 0, Reason.NODE_FAIL, 1),
        ("OUT_OF_MEMORY", 0, 125, Reason.OUT_OF_MEMORY, None),
        ("TIMEOUT", 0, 53, Reason.TIME_LIMIT, None),
    ],
)
def test_an_exit_code_of_0_beside_another_state_is_no_success(
    state: str, code: int, signal: int, reason: Reason, shown: int | None
) -> None:
    found = told(state, "None", code, signal)
    assert (found.state, found.reason, found.exit_code) == (RunState.FAILED, reason, shown)


def test_exit_code_0_of_a_job_that_runs_is_nothing() -> None:
    found = told("RUNNING", "None", 0, 0, start=BEGUN, end=BEGUN + 3600)
    assert (found.state, found.reason, found.exit_code, found.message) == (RunState.RUNNING, None, None, "")
    assert (found.started_at, found.ended_at) == (at(BEGUN), None)


def test_a_job_that_completed() -> None:
    found = told("COMPLETED", "None", 0, 0, start=BEGUN, end=ENDED)
    assert (found.state, found.reason, found.message) == (RunState.FINISHED, None, "")
    assert (found.started_at, found.ended_at) == (at(BEGUN), at(ENDED))


# --- Waiting --------------------------------------------------------------------------------------------------------

STUCK_WORDS = {
    "DependencyNeverSatisfied": "cancel it, and submit again",
    "PartitionTimeLimit": "ask for less in Resources.Runtime",
    "PartitionNodeLimit": "more nodes than the partition gives",
    "JobHeldUser": "scontrol release",
    "JobHeldAdmin": "ask the site",
    "JobHoldMaxRequeue": "look at its log",
    "launch failed requeued held": "release it there",
    "BadConstraints": "Resources.NodeConstraints",
    "InvalidAccount": "charge another one",
    "AccountNotAllowed": "charge another one",
    "QOSNotAllowed": "change Resources.QoS",
    "ReservationDeleted": "submit without it",
    "InvalidQOS": "Resources.QoS",
    "AssocMaxCpuPerJobLimit": "one job of its account or QoS",
}


@pytest.mark.parametrize("told_reason", STUCK_WORDS)
def test_what_waits_for_ever_says_what_to_do(told_reason: str) -> None:
    found = told("PENDING", told_reason)
    assert (found.state, found.reason) == (RunState.SCHEDULED, Reason.STUCK)
    assert found.message.startswith(f"{told_reason}: ")
    assert STUCK_WORDS[told_reason] in found.message


def test_each_of_these_has_a_test() -> None:
    """Each row is the one that its word finds."""
    rows = [
        next(advice for _, advice in STUCK if f"{name}: {advice}." == told("PENDING", name).message)
        for name in STUCK_WORDS
    ]
    assert rows == [advice for _, advice in STUCK]


@pytest.mark.parametrize(
    "told_reason",
    ["QOSMaxWallDurationPerJobLimit", "QOSMaxMemoryPerJob", "launch_failed_requeued_held", "jobheldadmin"],
)
def test_other_writings_of_the_same(told_reason: str) -> None:
    assert told("PENDING", told_reason).reason is Reason.STUCK


@pytest.mark.parametrize(
    "told_reason",
    ["Resources", "Priority", "BeginTime", "Dependency", "PartitionDown", "QOSMaxJobsPerUserLimit", "AssocGrpCpuLimit"],
)
def test_what_goes_away_by_itself_is_told_and_no_more(told_reason: str) -> None:
    found = told("PENDING", told_reason)
    assert (found.state, found.reason, found.message) == (RunState.SCHEDULED, None, told_reason)


@pytest.mark.parametrize("none", ["None", None, ""])
@pytest.mark.parametrize(("state", "reason"), [("PENDING", None), ("REQUEUE_HOLD", Reason.STUCK)])
def test_no_reason_says_nothing(none: str | None, state: str, reason: Reason | None) -> None:
    found = told(state, none)
    assert (found.reason, found.message) == (reason, "")


def test_a_reason_is_for_those_who_wait() -> None:
    """A job that was requeued once keeps the word while it runs and after its end."""
    for state in ("RUNNING", "COMPLETED"):
        found = told(state, "PartitionTimeLimit", 0, 0)
        assert (found.reason, found.message) == (None, "")


# --- Times ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "time",
    [
        {"start": 4102444800, "end": 4102448400, "limit": 3600},
        {"start": BEGUN, "end": None},
        {"start": None, "end": None, "elapsed": None, "limit": None, "suspended": None},
        {"start": 0, "end": 0, "elapsed": 0, "limit": 5},
        {},
    ],
    ids=["what Slurm guesses", "of an earlier start", "null", "0", "nothing"],
)
@pytest.mark.parametrize("state", ["PENDING", "CONFIGURING"])
def test_the_times_of_a_job_that_waits_are_none(state: str, time: dict[str, Any]) -> None:
    found = told(state, "None", None, None, **time)
    assert (found.state, found.started_at, found.ended_at) == (RunState.SCHEDULED, None, None)


@pytest.mark.parametrize("none", [0, None])
def test_times_that_are_not_told_are_none(none: int | None) -> None:
    found = told("FAILED", "None", 1, 0, start=none, end=none)
    assert (found.started_at, found.ended_at) == (None, None)


def test_what_a_job_does_not_tell_is_left_open() -> None:
    """In the two modes of a server different fields are missing."""
    found = run_status(Job.model_validate({"jobId": 7, "status": {"state": "RUNNING"}}), NOW)
    assert (found.state, found.started_at) == (RunState.RUNNING, None)
