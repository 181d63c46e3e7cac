"""What a FirecREST server says of a job, in our words: one table of Slurm's states, one of why a job waits for ever.

States are those of Slurm's accounting (https://slurm.schedmd.com/job_state_codes.html). FirecREST passes them on, with
the uid of who cancelled (`CANCELLED by 2001`) where it asks over ssh, without it where it asks Slurm's REST API.
"""

from __future__ import annotations

import re
from datetime import datetime

from prefect_mantik.firecrest import Job
from prefect_mantik.runs import Reason, RunState, RunStatus

STATES: dict[str, tuple[RunState, Reason | None]] = {
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
    "FAILED": (RunState.FAILED, Reason.UNTOLD),  # an exit code, where there is one, tells more
    "LAUNCH_FAILED": (RunState.FAILED, Reason.NODE_FAIL),
    "TIMEOUT": (RunState.FAILED, Reason.TIME_LIMIT),
    "DEADLINE": (RunState.FAILED, Reason.TIME_LIMIT),
    "OUT_OF_MEMORY": (RunState.FAILED, Reason.OUT_OF_MEMORY),
    "NODE_FAIL": (RunState.FAILED, Reason.NODE_FAIL),
    "BOOT_FAIL": (RunState.FAILED, Reason.NODE_FAIL),
    "RECONFIG_FAIL": (RunState.FAILED, Reason.NODE_FAIL),
    "PREEMPTED": (RunState.FAILED, Reason.PREEMPTED),
    "CANCELLED": (RunState.KILLED, Reason.CANCELLED_BY_OTHER),  # by us: the run directory bears our mark
    "REVOKED": (RunState.KILLED, Reason.CANCELLED_BY_OTHER),
}
"""A word that is not here is not an end. Of several (`COMPLETING,FAILED`) the one that is no end counts."""

REQUEUED_AFTER = ("NODE_FAIL", "BOOT_FAIL", "LAUNCH_FAILED", "PREEMPTED")
"""After these a job may be put back into the queue. Slurm's REST API goes on showing how the first start ended."""

STUCK: tuple[tuple[str, str], ...] = (
    ("DependencyNeverSatisfied", "the job that it depends on failed: cancel it, and submit again"),
    ("PartitionTimeLimit", "its time limit is over the partition's: cancel it, and ask for less in Resources.Runtime"),
    ("PartitionNodeLimit", "it asks for more nodes than the partition gives: cancel it, and ask for less"),
    ("JobHeldUser", "it is held: release it there (scontrol release <id>), or cancel it"),
    ("JobHeldAdmin", "an administrator holds it: ask the site"),
    ("JobHoldMaxRequeue", "it was put back into the queue too often: look at its log, and release or cancel it"),
    (r"launch[ _]failed[ _]requeued[ _]held", "its start failed and it is held: release it there, or cancel it"),
    ("BadConstraints", "no node is as it asks for: cancel it, and change Resources.NodeConstraints"),
    ("InvalidAccount", "its account is not valid any more: cancel it, and charge another one"),
    ("AccountNotAllowed", "its account may not use the partition: cancel it, and charge another one"),
    ("QOSNotAllowed", "its QoS may not be used in the partition: cancel it, and change Resources.QoS"),
    ("ReservationDeleted", "its reservation is gone: cancel it, and submit without it"),
    ("InvalidQOS", "its QoS is not valid any more: cancel it, and change Resources.QoS"),
    (r"(QOS|Assoc)\w*Max\w*PerJob(Limit)?", "it asks for more than one job of its account or QoS may have: cancel it"),
)
"""Reasons for which a job waits until somebody does something, and what that is."""

_BAD_DIRECTORY = 53
"""The signal that Slurm notes for a job that could not enter its working directory."""


def word(job: Job) -> str:
    """The state that counts, without the uid of who cancelled."""
    words = [part.strip().partition(" ")[0].upper() for part in job.status.state.split(",")]
    live = [name for name in words if not STATES.get(name, (RunState.UNKNOWN, None))[0].is_end]
    return (live or words)[0]


def run_status(job: Job, now: datetime) -> RunStatus:
    """The status of a run.

    Args:
        job: What the server says of the job.
        now: When it was asked.
    """
    state, reason = STATES.get(word(job), (RunState.UNKNOWN, None))
    code, message = None, ""
    if state is RunState.SCHEDULED:
        reason, message = _waiting(job, reason)
    elif state is RunState.FAILED:
        reason, code, message = _why(job, reason)
    elif state is RunState.FINISHED:
        code = job.status.exit_code
    has_run = state is RunState.RUNNING or state.is_end  # of a waiting job the times are Slurm's guesses
    return RunStatus(
        state=state,
        reason=reason,
        site_word=job.status.state,
        message=message,
        exit_code=code,
        started_at=job.started_at if has_run else None,
        ended_at=job.ended_at if state.is_end else None,
        observed_at=now,
        expected_at=None if state.is_end else job.expected_at,
    )


def _waiting(job: Job, reason: Reason | None) -> tuple[Reason | None, str]:
    told = job.status.state_reason or ""
    for pattern, advice in STUCK:
        if re.fullmatch(pattern, told, re.IGNORECASE):
            return Reason.STUCK, f"{told}: {advice}."
    return reason, "" if told in ("", "None") else told


def _why(job: Job, reason: Reason | None) -> tuple[Reason | None, int | None, str]:
    """Reason, exit code and words of a job that failed: an exit code of 0 says nothing beside another state."""
    code, signal = job.status.exit_code or 0, job.status.interrupt_signal or 0
    if reason is not Reason.UNTOLD:
        return reason, code or None, ""
    if signal == _BAD_DIRECTORY:
        return Reason.REFUSED, None, "the job could not enter its directory: may the account write there?"
    if signal:
        return Reason.UNTOLD, None, f"the job was ended by signal {signal}"
    return (Reason.EXIT_CODE, code, "") if code else (Reason.UNTOLD, None, "")
