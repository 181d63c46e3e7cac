"""What an MLflow run tells of its job: the key in its name, the record in its tags, its state."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any

from prefect_mantik.runs import Reason, RunKey, RunSpec, RunState, RunStatus
from prefect_mantik.tracking import TrackedRun

RECORD_TAG = "prefect_mantik.run"
KEY_TAG = "prefect_mantik.key"
CANCELLED_TAG = "prefect_mantik.cancelled"
REFUSED_TAG = "prefect_mantik.refused"
"""On the MLflow run of a submit that the site refused: there is no job, and the key is free."""

RECORDED = {
    "kind",
    "site",
    "site_name",
    "site_key",
    "attempt",
    "name",
    "spec_digest",
    "platform_project_id",
    "platform_run_id",
}

STATES: dict[str, tuple[RunState, Reason | None]] = {
    "SCHEDULED": (RunState.SCHEDULED, None),
    "RUNNING": (RunState.RUNNING, None),
    "FINISHED": (RunState.FINISHED, None),
    "FAILED": (RunState.FAILED, Reason.UNTOLD),
    "KILLED": (RunState.KILLED, Reason.UNTOLD),
}
"""MLflow's words (RunStatus). A word that is not here is not an end."""

_RUN_NAME = re.compile(
    r"^(?P<name>.*?)-?(?P<site_key>pm-[a-z2-7]{8}-[a-z2-7]{26}-[a-z2-7]{16})-(?P<attempt>\d+)-(?P<spec_digest>[0-9a-f]{8})"
)
_DIGEST = 8


def run_name(key: RunKey, attempt: int, spec: RunSpec) -> str:
    """The name that a run gets: readable first, then the site key, the attempt and the start of the spec's digest.

    The digest also ends the number of the attempt, whatever the platform appends to the name.
    """
    return f"{key.slug}-{key.site_key}-{attempt}-{spec.digest[:_DIGEST]}"


def run_status(run: TrackedRun, now: datetime) -> RunStatus:
    """What an MLflow run tells of the state of its job."""
    state, reason = STATES.get(run.status, (RunState.UNKNOWN, None))
    if state is RunState.KILLED and run.tags.get(CANCELLED_TAG) == "true":
        reason = Reason.CANCELLED_BY_US
    traces = [run.start_time, run.end_time, *(metric.time for metric in run.metrics.values())]
    return RunStatus(
        state=state,
        reason=reason,
        site_word=f"{run.status}, deleted" if run.deleted else run.status,
        queued_at=run.start_time,
        ended_at=run.end_time if state.is_end else None,
        observed_at=now,
        life_at=max((trace for trace in traces if trace), default=None),
    )


def identity_of(run: TrackedRun) -> dict[str, Any]:
    """What the name and the tags of a run tell of its handle."""
    match = _RUN_NAME.match(run.name)
    return {**(match.groupdict() if match else {}), **_recorded(run)}


def _recorded(run: TrackedRun) -> dict[str, Any]:
    """What was left in the tag, as far as it can be read: tags can be edited by hand."""
    try:
        record = json.loads(run.tags.get(RECORD_TAG, "{}"))
    except ValueError:
        return {}
    return {name: record[name] for name in RECORDED if name in record} if isinstance(record, dict) else {}
