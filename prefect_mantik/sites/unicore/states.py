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

REASONS: tuple[tuple[Reason, str], ...] = (
    (Reason.TIME_LIMIT, r"\bTIMEOUT\b|time ?limit|wall ?(clock )?time"),
    (Reason.OUT_OF_MEMORY, r"OUT_OF_MEMORY|\bOOM\b|oom[-_ ]kill|out of memory"),
    (Reason.NODE_FAIL, r"NODE_FAIL|BOOT_FAIL|node fail"),
    (Reason.PREEMPTED, r"PREEMPTED|preemption"),
    (Reason.CANCELLED_BY_OTHER, r"\bCANCELLED\b"),
    (
        Reason.REFUSED,
        r"is not available for partition|is out of range|could not be (mapped|submitted)|[Ss]ubmission .*failed"
        r"|sbatch: error|not available\. \(Requested|[Uu]nable to determine resource"
        r"|[Ii]nvalid (account|partition|qos)",
    ),
)
"""What the message, the log or the batch system's details hold, in the order in which it counts."""

ABORTED = "Got 'abort' request."
"""In the log of a job that was aborted through UNICORE. Its status is FAILED all the same."""


def is_end(job: JobProperties) -> bool:
    """Whether the job's status is one that it stays in."""
    return STATES.get(job.status, (RunState.UNKNOWN, None))[0].is_end


def run_status(job: JobProperties, now: datetime, details: str = "") -> RunStatus:
    """The status of a run.

    Args:
        job: Status, message, exit code, times; for a job that failed also its name, log and tags.
        now: When the site was asked.
        details: What the batch system says of a job that failed.
    """
    state, reason = STATES.get(job.status, (RunState.UNKNOWN, None))
    if state is RunState.FAILED:
        state, reason = _why(job, details)
    waited, total = job.seconds("queued"), job.seconds("total")
    begin = job.submission_time
    return RunStatus(
        state=state,
        reason=reason,
        site_word=job.status,
        message=" ".join(job.status_message.split()),
        exit_code=job.exit_code,
        queued_at=begin,
        started_at=begin + timedelta(seconds=waited) if begin and waited is not None else None,
        ended_at=begin + timedelta(seconds=total) if begin and total is not None and state.is_end else None,
        observed_at=now,
    )


def _why(job: JobProperties, details: str) -> tuple[RunState, Reason]:
    if any(ABORTED in line for line in job.log):
        ours = CANCELLED_TAG in job.tags
        return RunState.KILLED, Reason.CANCELLED_BY_US if ours else Reason.CANCELLED_BY_OTHER
    # The words of the job's own commands stand in the log too: those lines tell nothing.
    own = [line for line in job.log if "Submitted executable" not in line and "Client:" not in line]
    text = "\n".join([job.status_message, details, *own])
    if job.name:  # the user's own words too
        text = text.replace(job.name, "")
    reason = next((reason for reason, words in REASONS if re.search(words, text)), None)
    if reason is Reason.CANCELLED_BY_OTHER:
        return RunState.KILLED, reason
    if reason is None and job.exit_code:
        reason = Reason.EXIT_CODE
    return RunState.FAILED, reason or Reason.UNTOLD
