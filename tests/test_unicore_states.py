"""What a UNICORE server says of a job, row by row: a word that is not in the table is not an end."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from prefect_mantik.runs import Reason, RunState, RunStatus
from prefect_mantik.sites.unicore.states import BATCH_STATES, CANCELLED_TAG, REASONS, STATES, is_end, run_status
from prefect_mantik.unicore import JobProperties

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
NOT_NORMAL = "Job did not complete normally on BSS, please check standard error file and job log for more information."
EXIT = "User application exited with non-zero exit code: <3>. More information might be available in the job's "


def told(details: str = "", **properties: Any) -> RunStatus:
    """The status of a job, from what a server answers."""
    return run_status(JobProperties.model_validate(properties), NOW, details)


WORDS = {
    "CREATED": (RunState.SCHEDULED, None),
    "READY": (RunState.SCHEDULED, None),
    "STAGINGIN": (RunState.SCHEDULED, None),
    "QUEUED": (RunState.SCHEDULED, None),
    "RUNNING": (RunState.RUNNING, None),
    "STAGINGOUT": (RunState.RUNNING, None),
    "SUCCESSFUL": (RunState.FINISHED, None),
    "FAILED": (RunState.FAILED, Reason.UNTOLD),
    "UNDEFINED": (RunState.SCHEDULED, Reason.PAUSED),
}


@pytest.mark.parametrize(("word", "expected"), WORDS.items())
def test_each_word_of_the_server(word: str, expected: tuple[RunState, Reason | None]) -> None:
    found = told(status=word)
    assert (found.state, found.reason) == expected
    assert found.site_word == word
    assert is_end(JobProperties(status=word)) is (word in ("SUCCESSFUL", "FAILED"))


def test_each_word_has_a_test() -> None:
    assert WORDS == STATES


@pytest.mark.parametrize("word", ["", "UNKNOWN", "PAUSED", "DESTROYED", "successful", "DONE"])
def test_a_word_that_nobody_knows_is_no_end(word: str) -> None:
    found = told(status=word)
    assert found.state is RunState.UNKNOWN
    assert not found.state.is_end
    assert not is_end(JobProperties(status=word))


WHY = [
    (Reason.TIME_LIMIT, {"details": '{"JobState": "TIMEOUT", "TimeLimit": "300"}', "statusMessage": NOT_NORMAL}),
    (Reason.TIME_LIMIT, {"details": "=>> PBS: job killed: walltime 3610 exceeded limit 3600", "exitCode": "271"}),
    (Reason.TIME_LIMIT, {"details": "slurmstepd: *** CANCELLED AT 2026 DUE TO TIME LIMIT TIMEOUT ***"}),
    (Reason.OUT_OF_MEMORY, {"details": '{"JobState": "OUT_OF_MEMORY"}'}),
    (Reason.OUT_OF_MEMORY, {"log": ["slurmstepd: error: Detected 1 oom-kill event(s) in step 1.batch"]}),
    (Reason.TIME_LIMIT, {"details": "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 10:00 DUE TO TIME LIMIT ***"}),
    (Reason.PREEMPTED, {"details": "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 10:00 DUE TO PREEMPTION ***"}),
    (Reason.NODE_FAIL, {"details": "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 10:00 DUE TO NODE FAILURE ***"}),
    (Reason.CANCELLED_BY_OTHER, {"details": "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-22T10:00 ***"}),
    (Reason.EXIT_CODE, {"details": "Resource_List.walltime = 01:00:00\nExit_status = 1", "exitCode": "1"}),
    (Reason.EXIT_CODE, {"statusMessage": "exit code: <1>. See '/p/OOM-kill-study/x/'", "exitCode": "1"}),
    (Reason.EXIT_CODE, {"log": ["Fri: Submission to batch system failed, trying again"], "exitCode": "1"}),
    (Reason.EXIT_CODE, {"details": "Max. walltime here is 24h, jobs in preemption are charged half", "exitCode": "1"}),
    (Reason.NODE_FAIL, {"details": '{"JobState": "NODE_FAIL"}'}),
    (Reason.NODE_FAIL, {"details": "JobState=BOOT_FAIL Reason=None"}),
    (Reason.PREEMPTED, {"details": "JobState=PREEMPTED Reason=Resources"}),
    (Reason.CANCELLED_BY_OTHER, {"details": "JobState=CANCELLED by 0"}),
    (
        Reason.REFUSED,
        {
            "statusMessage": "Processing failed: eu.unicore.xnjs.ems.ExecutionException: "
            "Resource request <Queue = nope> is out of range. (Invalid resource request)"
        },
    ),
    (Reason.REFUSED, {"statusMessage": "Resource <Widgets> is not available for partition <batch>"}),
    (Reason.REFUSED, {"statusMessage": "Submission to batch system failed: sbatch: error: Invalid account"}),
    (Reason.EXIT_CODE, {"statusMessage": EXIT, "exitCode": "3"}),
    (Reason.EXIT_CODE, {"exitCode": 137}),
    (Reason.UNTOLD, {"statusMessage": NOT_NORMAL}),
]


@pytest.mark.parametrize(("reason", "answer"), WHY)
def test_why_a_job_failed(reason: Reason, answer: dict[str, Any]) -> None:
    found = told(status="FAILED", **answer)
    state = RunState.KILLED if reason is Reason.CANCELLED_BY_OTHER else RunState.FAILED
    assert (found.state, found.reason) == (state, reason)


def test_each_reason_has_a_test() -> None:
    assert {reason for reason, _ in REASONS} | set(BATCH_STATES.values()) <= {reason for reason, _ in WHY}


def test_success_with_an_exit_code_is_a_failure() -> None:
    """A job may ask the site to ignore it."""
    found = told(status="SUCCESSFUL", exitCode="3")
    assert (found.state, found.reason, found.exit_code) == (RunState.FAILED, Reason.EXIT_CODE, 3)


@pytest.mark.parametrize(
    ("tags", "reason"), [([CANCELLED_TAG], Reason.CANCELLED_BY_US), ([], Reason.CANCELLED_BY_OTHER)]
)
def test_an_abort_is_ours_where_we_left_our_mark(tags: list[str], reason: Reason) -> None:
    log = ["Fri Nov 20 10:00:00 UTC 2026: Got 'abort' request."]
    found = told(status="FAILED", statusMessage="Job aborted.", log=log, tags=tags)
    assert (found.state, found.reason) == (RunState.KILLED, reason)


def test_our_mark_without_an_abort_is_no_cancel() -> None:
    """The mark was left, and the job failed by itself before the abort came."""
    found = told(status="FAILED", statusMessage=EXIT, exitCode="3", tags=[CANCELLED_TAG])
    assert (found.state, found.reason) == (RunState.FAILED, Reason.EXIT_CODE)


@pytest.mark.parametrize("line", ["Submitted executable: echo TIMEOUT oom-kill", "Client: Name: CN=NODE_FAIL"])
def test_words_of_the_users_own_tell_nothing(line: str) -> None:
    assert told(status="FAILED", exitCode="3", log=[f"Fri: {line}"]).reason is Reason.EXIT_CODE


@pytest.mark.parametrize("name", ["timelimit-study", "preemption-2", "oom-kill-test"])
def test_the_name_of_a_run_is_no_reason(name: str) -> None:
    """The batch system repeats the job's name in its details."""
    details = f'{{"JobId": "7", "JobName": "{name}-pm-aaaa-1", "JobState": "FAILED"}}'
    found = told(status="FAILED", exitCode="3", name=f"{name}-pm-aaaa-1", details=details)
    assert found.reason is Reason.EXIT_CODE


@pytest.mark.parametrize(("given", "code"), [("0", 0), (0, 0), ("137", 137), (3, 3), ("-1", -1), ("N/A", None)])
def test_an_exit_code_is_a_text_or_a_number(given: object, code: int | None) -> None:
    assert told(status="FAILED", exitCode=given).exit_code == code


def test_the_message_of_a_refusal_is_on_one_line() -> None:
    assert told(status="FAILED", statusMessage="one\n  two\tthree").message == "one two three"


@pytest.mark.parametrize("consumed", [{"queued": "5", "total": "65"}, {"queued": 5, "total": 65}])
def test_times_are_those_of_the_site(consumed: dict[str, object]) -> None:
    """Texts of seconds; older servers send numbers."""
    found = told(status="SUCCESSFUL", submissionTime="2026-01-01T10:00:00+0200", consumedTime=consumed)
    begun = datetime(2026, 1, 1, 8, tzinfo=timezone.utc)
    assert found.queued_at == begun
    assert found.started_at == begun + timedelta(seconds=5)
    assert found.ended_at == begun + timedelta(seconds=65)


def test_times_that_are_not_told_are_none() -> None:
    found = told(status="FAILED", submissionTime="2026-01-01T10:00:00+0000", consumedTime={"total": "N/A"})
    assert (found.started_at, found.ended_at) == (None, None)
