"""One round: all runs that are waited for, of whatever flow runs, are asked once, with one poll for each account."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone

from prefect_mantik.api import impatient
from prefect_mantik.errors import MantikError
from prefect_mantik.runs import RunHandle, RunState, RunStatus
from prefect_mantik.sites.base import Site
from prefect_mantik.sites.opening import site_of

PATIENCE = 45.0
"""Seconds that the runs of one account may take: the others are not held up by it."""


@dataclass
class Round:
    """What was told of runs.

    Attributes:
        statuses: Of each run; UNKNOWN of one that could not be asked.
        sites: Those that could be opened.
        troubles: Why a run could not be asked.
    """

    statuses: dict[RunHandle, RunStatus] = field(default_factory=dict)
    sites: dict[RunHandle, Site] = field(default_factory=dict)
    troubles: dict[RunHandle, str] = field(default_factory=dict)

    def all_ended(self, handles: Iterable[RunHandle]) -> bool:
        """Whether some runs have all ended."""
        return all(self.statuses[handle].state.is_end for handle in handles)

    def fail(self, handles: Iterable[RunHandle], error: BaseException) -> None:
        """These could not be asked: one account that is away says nothing of the others."""
        words = str(error) if isinstance(error, MantikError) and str(error) else f"{type(error).__name__}: {error}"
        unknown = RunStatus(state=RunState.UNKNOWN, site_word=words, observed_at=datetime.now(timezone.utc))
        for handle in handles:
            self.statuses[handle], self.troubles[handle] = unknown, words


async def ask(handles: Sequence[RunHandle], opened: dict[str, Site]) -> Round:
    """Ask each run for its status. Never raises for what one site, or one block, does.

    Args:
        handles: The runs.
        opened: Sites that are open, by reference: those of earlier rounds. New ones are added, and one that cannot be
            asked is taken out, so that the next round opens it with what is saved then.
    """
    found = Round()
    await _open(handles, opened, found)
    accounts: dict[Hashable, list[RunHandle]] = {}
    for handle, site in found.sites.items():
        accounts.setdefault((site.kind, site.account), []).append(handle)
    groups = list(accounts.values())
    outcomes = await asyncio.gather(*(_poll(found.sites[group[0]], group) for group in groups), return_exceptions=True)
    for group, outcome in zip(groups, outcomes, strict=True):
        if isinstance(outcome, Exception):
            found.fail(group, outcome)
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            found.statuses |= outcome
            unknown = {handle: status for handle, status in outcome.items() if status.state is RunState.UNKNOWN}
            found.troubles |= {handle: status.site_word for handle, status in unknown.items()}
    for handle in found.troubles:
        opened.pop(handle.site or "", None)
    return found


async def _open(handles: Sequence[RunHandle], opened: dict[str, Site], found: Round) -> None:
    by_site: dict[str | RunHandle, list[RunHandle]] = {}
    for handle in dict.fromkeys(handles):
        by_site.setdefault(handle.site or handle, []).append(handle)
    for reference, theirs in by_site.items():
        site = opened.get(reference) if isinstance(reference, str) else None
        if site is None:
            try:
                site = await site_of(theirs[0])
            except Exception as error:  # noqa: BLE001  # a block that was deleted or damaged, a Prefect that is away
                found.fail(theirs, error)
                continue
        if isinstance(reference, str):
            opened[reference] = site
        found.sites |= dict.fromkeys(theirs, site)


async def _poll(site: Site, handles: Sequence[RunHandle]) -> dict[RunHandle, RunStatus]:
    with impatient(PATIENCE):
        return await site.poll(handles)
