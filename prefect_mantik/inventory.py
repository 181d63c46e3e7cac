"""All our jobs at the sites that are saved here, each with its flow run: what people list and the reaper judges."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound

from prefect_mantik.api import impatient
from prefect_mantik.errors import MantikError
from prefect_mantik.runs import RunHandle, RunStatus, site_key_prefix
from prefect_mantik.sites.base import Site
from prefect_mantik.sites.opening import SITE_BLOCKS, open_site

PATIENCE = 45.0
"""Seconds that one site may take: the others' jobs are shown, or ended, without it."""

_PAGE = 200
_LONG_AGO = datetime.min.replace(tzinfo=timezone.utc)


@dataclass(frozen=True)
class Job:
    """One job at a site.

    Attributes:
        site: Where, opened.
        handle: Which.
        status: As the site says now.
    """

    site: Site
    handle: RunHandle
    status: RunStatus

    @property
    def identity(self) -> Hashable:
        """What makes two of them the same job, whichever of the site blocks of an account shows it."""
        return self.handle.kind, self.site.account, self.handle.remote_id

    @property
    def live(self) -> bool:
        """Whether it may be queued or running. What could not be asked may be."""
        return not self.status.state.is_end


@dataclass
class Inventory:
    """What the sites show.

    Attributes:
        asked: References of the sites that answered.
        jobs: Of all of them, oldest first as far as sites tell.
        silent: One sentence for each site that could not be asked.
    """

    asked: list[str] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)


async def saved_sites() -> list[str]:
    """References of all site blocks that are saved at this Prefect server."""
    references: list[str] = []
    async with get_client() as client:
        for slug in SITE_BLOCKS:
            try:
                documents = await client.read_block_documents_by_type(slug, limit=_PAGE, include_secrets=False)
            except ObjectNotFound:
                continue  # no block of this kind was ever saved
            references += [f"{slug}/{document.name}" for document in documents if document.name]
    return sorted(references)


async def take_inventory(prefix: str, references: Sequence[str] | None = None) -> Inventory:
    """List jobs at sites, and ask for their states.

    Args:
        prefix: What their site keys begin with: of an origin, or of a flow run.
        references: Of the sites; None: all that are saved.
    """
    asked = list(references) if references is not None else await saved_sites()
    inventory, seen = Inventory(), set[Hashable]()
    outcomes = await asyncio.gather(*(_at(reference, prefix) for reference in asked), return_exceptions=True)
    for reference, outcome in zip(asked, outcomes, strict=True):
        if isinstance(outcome, Exception):
            kind = "" if isinstance(outcome, MantikError) else f"{type(outcome).__name__}: "
            inventory.silent.append(f"{reference} cannot be asked. {kind}{outcome}")
            continue
        if isinstance(outcome, BaseException):
            raise outcome
        inventory.asked.append(reference)
        for job in outcome:
            # Sites of one account show the same jobs where no record tells whose a job is.
            if job.identity not in seen:
                seen.add(job.identity)
                inventory.jobs.append(job)
    inventory.jobs.sort(key=lambda job: job.handle.submitted_at or _LONG_AGO)
    return inventory


async def _at(reference: str, prefix: str) -> list[Job]:
    site = await open_site(reference)
    with impatient(PATIENCE):
        handles = [handle for handle in await site.list(prefix) if handle.site_key.startswith(prefix)]
        statuses = await site.poll(handles)
    return [Job(site, handle, statuses[handle]) for handle in handles]


def origin_prefix(origin: str) -> str:
    """What the site keys of all jobs of this Prefect server begin with."""
    return site_key_prefix(origin, None)[: len("pm-") + 8 + 1]


def root_of_key(site_key: str, origin: str) -> UUID | None:
    """The root flow run that a site key belongs to; None for a key that outlives flow runs."""
    if site_key.startswith(site_key_prefix(origin, None)):
        return None
    tree = site_key.split("-")[2].upper()
    return UUID(bytes=base64.b32decode(tree + "=" * (-len(tree) % 8)))


async def flow_runs(ids: Iterable[UUID]) -> dict[UUID, FlowRun]:
    """Flow runs by id, as far as this Prefect server knows them."""
    wanted, found = sorted(set(ids)), dict[UUID, FlowRun]()
    async with get_client() as client:
        for start in range(0, len(wanted), _PAGE):
            page = FlowRunFilter(id=FlowRunFilterId(any_=wanted[start : start + _PAGE]))
            found |= {run.id: run for run in await client.read_flow_runs(flow_run_filter=page, limit=_PAGE)}
    return found
