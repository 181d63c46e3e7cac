"""What `prefect-mantik runs` shows and `prefect-mantik cancel` ends."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound

from prefect_mantik.cancelling import Ended, cancel_one, cancel_runs_of, with_project
from prefect_mantik.errors import ConfigurationError
from prefect_mantik.inventory import Inventory, Job, flow_runs, origin_prefix, root_of_key, take_inventory
from prefect_mantik.ledger import notes_of, origin, origin_of, root_of
from prefect_mantik.runs import site_key_prefix

_quiet = logging.getLogger("prefect_mantik.quiet")
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False

_OUTLIVES = "runs that outlive flow runs"
_UNKNOWN = "a flow run that this Prefect does not know"


@dataclass(frozen=True)
class Listed:
    """Jobs by flow run.

    Attributes:
        groups: What to call a flow run, and its jobs, the oldest first.
        silent: One sentence for each site that could not be asked.
        everything: Whether jobs that have ended are among them.
    """

    groups: list[tuple[FlowRun | str, list[Job]]]
    silent: list[str]
    everything: bool

    def lines(self, width: int) -> list[str]:
        """What a terminal shows.

        Args:
            width: Of the terminal, in characters.
        """
        if not self.groups:
            return ["no job" if self.everything else "no live job (--all lists those that have ended too)"]
        found: list[str] = []
        for owner, jobs in self.groups:
            found += ["", *_headline(owner)] if found else _headline(owner)
            rows = [_row(job) for job in jobs]
            widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
            for row in rows:
                line = "  " + "  ".join(cell.ljust(wide) for cell, wide in zip(row, widths, strict=True)).rstrip()
                # The id must stay whole, to be copied: where it does not fit it goes on a line of its own.
                found += [line] if len(line) <= width else [line[: -len(row[-1])].rstrip()[:width], f"    {row[-1]}"]
        return found

    def records(self) -> list[dict[str, Any]]:
        """What a program reads."""
        return [
            {
                "flow_run": str(owner.id) if isinstance(owner, FlowRun) else None,
                "flow_run_name": owner.name if isinstance(owner, FlowRun) else None,
                "flow_run_state": owner.state_name if isinstance(owner, FlowRun) else None,
                "owner": "flow run" if isinstance(owner, FlowRun) else owner,
                "handle": job.handle.model_dump(mode="json"),
                "status": job.status.model_dump(mode="json"),
                "live": job.live,
            }
            for owner, jobs in self.groups
            for job in jobs
        ]


async def take(flow_run: UUID | None, everything: bool) -> Listed:
    """List the jobs of this Prefect server, or of one flow run, at all saved sites.

    Args:
        flow_run: Any flow run of a tree; None: all.
        everything: Also jobs that have ended.

    Raises:
        ConfigurationError: There is no such flow run.
    """
    origin_now = await origin()
    prefix = origin_prefix(origin_now) if flow_run is None else await _prefix_of(flow_run)
    inventory = await take_inventory(prefix)
    jobs = [job for job in inventory.jobs if everything or job.live]
    owners = {job.identity: root_of_key(job.handle.site_key, origin_now) for job in jobs}
    known = await flow_runs(root for root in owners.values() if root)
    groups: dict[UUID | None, list[Job]] = {}
    for job in jobs:
        groups.setdefault(owners[job.identity], []).append(job)
    named = [(known.get(root, f"{_UNKNOWN}, {root}") if root else _OUTLIVES, theirs) for root, theirs in groups.items()]
    return Listed(named, inventory.silent, everything)


async def cancel(ids: Sequence[str], flow_run: UUID | None) -> Ended:
    """End jobs by their ids, or all runs of a flow run.

    Raises:
        ConfigurationError: No live job, or more than one, has an id that begins so; or there is no such flow run.
    """
    if flow_run is not None:
        await _prefix_of(flow_run)
        return await cancel_runs_of(flow_run, _quiet)
    origin_now = await origin()
    inventory = await take_inventory(origin_prefix(origin_now))
    chosen = [_chosen(id, inventory) for id in ids]
    roots = {job.identity: root_of_key(job.handle.site_key, origin_now) for job in chosen}
    known = await flow_runs(root for root in roots.values() if root)
    ended = Ended()
    for job in chosen:
        owner = known.get(roots[job.identity] or UUID(int=0))
        await cancel_one(job.site, with_project(job.handle, notes_of(owner) if owner else {}), ended, _quiet)
    return ended


async def _prefix_of(flow_run: UUID) -> str:
    try:
        async with get_client() as client:
            root = await root_of(client, await client.read_flow_run(flow_run))
    except ObjectNotFound:
        raise ConfigurationError(f"This Prefect server has no flow run {flow_run}.") from None
    return site_key_prefix(await origin_of(root), root)


def _chosen(id: str, inventory: Inventory) -> Job:
    site, _, number = id.rpartition("/")
    at = [job for job in inventory.jobs if job.live and site in ("", job.handle.site_name, job.handle.site)]
    # Numbers are batch systems': 471 is another job than 4711.
    fits = [
        job
        for job in at
        if job.handle.remote_id == number or (not number.isdigit() and job.handle.remote_id.startswith(number))
    ]
    exact = [job for job in fits if job.handle.remote_id == number]
    if len(exact or fits) == 1:
        return (exact or fits)[0]
    silent = "".join(f" {sentence}" for sentence in inventory.silent)
    if not fits:
        raise ConfigurationError(f"No live job has the id {id}: `prefect-mantik runs` lists them.{silent}")
    several = ", ".join(f"{job.handle.remote_id} ({job.handle.describe()})" for job in fits)
    raise ConfigurationError(
        f"Several live jobs have ids that begin with {id}: {several}. Nothing was cancelled: name one as <site>/<id>."
    )


def _headline(owner: FlowRun | str) -> list[str]:
    return [owner] if isinstance(owner, str) else [f"flow run {owner.name}, {owner.state_name}", f"  {owner.id}"]


def _row(job: Job) -> list[str]:
    handle, attempt = job.handle, f" (attempt {job.handle.attempt})" if job.handle.attempt > 1 else ""
    age = f"{_age(handle.submitted_at)} ago" if handle.submitted_at else ""
    return [f"{handle.name}{attempt}", handle.site_name, job.status.describe(), age, handle.remote_id]


def _age(since: datetime) -> str:
    minutes = max(0, int((datetime.now(timezone.utc) - since).total_seconds() // 60))
    hours, days = minutes // 60, minutes // 1440
    return f"{days} d {hours % 24} h" if days else f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"
