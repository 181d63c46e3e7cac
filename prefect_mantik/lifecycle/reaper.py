"""The reaper: ends jobs whose flow run was cancelled, wherever the hook and the wait did not reach."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta, timezone

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from pydantic import BaseModel, ConfigDict

from prefect_mantik.cancelling import Ended, cancel_one, say_left, with_project
from prefect_mantik.errors import ConfigurationError
from prefect_mantik.inventory import Job, flow_runs, origin_prefix, root_of_key, take_inventory
from prefect_mantik.ledger import notes_of, origin as current_origin, remember_origin
from prefect_mantik.log import run_logger
from prefect_mantik.runs import RunHandle
from prefect_mantik.sites.notes import made_by_note

GIVEN_UP = timedelta(minutes=5)
"""A flow run that is Cancelling for longer has nobody who ends it: Prefect gives its worker as long."""

_PAGE, _PAGES = 200, 10


class Reaped(BaseModel):
    """What the reaper found and did.

    Attributes:
        sites: References of the sites that answered.
        live: Number of live jobs of this Prefect server there.
        cancelled: Runs that it ended: their flow run was cancelled, or is unknown and old enough.
        unknown: Live runs whose flow run this Prefect server does not know. They were left alone.
        left: One sentence for each thing that it could not do.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    sites: list[str]
    live: int
    cancelled: list[RunHandle]
    unknown: list[RunHandle]
    left: list[str]

    def describe(self) -> str:
        """One sentence for a log."""
        return (
            f"{len(self.sites)} sites asked, {self.live} live jobs: {len(self.cancelled)} cancelled, "
            f"{len(self.unknown)} of unknown flow runs left alone, {len(self.left)} problems."
        )


async def reap(
    sites: Sequence[str] | None = None, *, reap_unknown: bool = False, older_than_hours: float | None = None
) -> Reaped:
    """Cancel live jobs of this Prefect server whose flow run is Cancelled. See `flows.reap_runs`.

    Raises:
        ConfigurationError: The arguments do not fit together.
    """
    if reap_unknown and not older_than_hours:
        raise ConfigurationError(
            "reap_unknown=True cancels jobs of which Prefect knows nothing: say older_than_hours, the age from which "
            "on nobody waits for them any more."
        )
    origin = await current_origin()
    await remember_origin()
    inventory = await take_inventory(origin_prefix(origin), sites)
    live = [job for job in inventory.jobs if job.live]
    roots = {job.handle: root for job in live if (root := root_of_key(job.handle.site_key, origin))}
    known = await flow_runs(roots.values())
    ended = Ended(left=list(inventory.silent))
    for sentence in inventory.silent:
        run_logger().error(sentence)
    doomed: list[tuple[Job, FlowRun | None]] = []
    unknown: list[Job] = []
    makers = await _makers([job.handle for job in live if job.handle not in roots])
    for job in live:
        root = roots.get(job.handle)
        owner = known.get(root) if root else makers.get(job.handle)
        if owner and _is_cancelled(owner):
            doomed.append((job, owner))
        elif root and owner is None and reap_unknown and _is_older(job, older_than_hours):
            doomed.append((job, None))
        elif root and owner is None:
            unknown.append(job)
    outcomes = await asyncio.gather(*(_end(job, owner, ended) for job, owner in doomed), return_exceptions=True)
    for (job, _), outcome in zip(doomed, outcomes, strict=True):
        if isinstance(outcome, Exception):
            say_left(ended, run_logger(), f"{_shown(job)} may be live. {type(outcome).__name__}: {outcome}")
    for job in unknown:
        run_logger().warning("%s belongs to a flow run that this Prefect does not know: left alone.", _shown(job))
    return Reaped(
        sites=inventory.asked,
        live=len(live),
        cancelled=ended.cancelled,
        unknown=[job.handle for job in unknown],
        left=ended.left,
    )


async def _end(job: Job, owner: FlowRun | None, ended: Ended) -> None:
    if owner:
        now = (await flow_runs([owner.id])).get(owner.id)
        if now is None or not _is_cancelled(now):
            return  # retried meanwhile: its job is found again
    why = f"its flow run {owner.name} is {owner.state_name}" if owner else "nobody knows its flow run, and it is old"
    run_logger().warning("Cancelling %s: %s.", _shown(job), why)
    handle = with_project(job.handle, notes_of(owner)) if owner else job.handle
    await cancel_one(job.site, handle, ended, run_logger())


def _shown(job: Job) -> str:
    since = f", submitted {job.handle.submitted_at:%Y-%m-%d %H:%M} UTC" if job.handle.submitted_at else ""
    return f"{job.handle.describe()} ({job.handle.remote_id}, {job.status.describe()}{since})"


def _is_cancelled(flow_run: FlowRun) -> bool:
    state = flow_run.state
    if state is None:
        return False
    return state.is_cancelled() or (state.is_cancelling() and _age(state.timestamp) > GIVEN_UP)


def _is_older(job: Job, hours: float | None) -> bool:
    since = job.handle.submitted_at
    return hours is not None and since is not None and _age(since) > timedelta(hours=hours)


def _age(since: datetime) -> timedelta:
    return datetime.now(timezone.utc) - since


async def _makers(handles: Sequence[RunHandle]) -> dict[RunHandle, FlowRun]:
    """The cancelled flow runs that made jobs whose keys outlive flow runs."""
    found: dict[RunHandle, FlowRun] = {}
    if not handles:
        return found
    async for flow_run in _latest_cancelled():
        notes = notes_of(flow_run)
        found |= {handle: flow_run for handle in handles if made_by_note(notes.get(handle.site_key), handle)}
    return found


async def _latest_cancelled() -> AsyncIterator[FlowRun]:
    """The two thousand flow runs that began last among those that were cancelled."""
    types = FlowRunFilterStateType(any_=[StateType.CANCELLED, StateType.CANCELLING])
    wanted = FlowRunFilter(state=FlowRunFilterState(type=types))
    async with get_client() as client:
        for page in range(_PAGES):
            found = await client.read_flow_runs(
                flow_run_filter=wanted, sort=FlowRunSort.START_TIME_DESC, limit=_PAGE, offset=page * _PAGE
            )
            for flow_run in found:
                yield flow_run
            if len(found) < _PAGE:
                return
