"""End the training runs of a flow run, wherever they are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName

from prefect_mantik.api import impatient, urgent
from prefect_mantik.errors import MantikError, RequestFailed
from prefect_mantik.ledger import FlowRunLedger, origin_of, root_of
from prefect_mantik.log import Logger, run_logger
from prefect_mantik.loop import per_process
from prefect_mantik.runs import RunHandle, site_key_prefix
from prefect_mantik.sites.base import Site
from prefect_mantik.sites.notes import SubmitNote, made_by_note
from prefect_mantik.sites.opening import open_site

TIMEOUT = 30.0
"""Seconds that ending the runs of a flow run takes at most: Prefect waits for its hooks."""

REAPER = "reap-runs"
"""Name of the flow that ends what a hook did not reach."""

_LAST_WORDS, _LOOK_AGAIN = 3.0, 2.0
_LIST_WITHIN = 8.0
"""Seconds for the list of a site that does not answer: there must be time to end what was noted."""


@dataclass
class Ended:
    """What became of the runs of a flow run.

    Attributes:
        cancelled: Runs that their sites accepted to end.
        left: One sentence for whatever may still be live.
        trying: Runs that are being cancelled.
    """

    cancelled: list[RunHandle] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    trying: list[RunHandle] = field(default_factory=list)


@dataclass(frozen=True)
class _Wanted:
    """Which jobs a flow run made.

    Attributes:
        prefix: What the site keys of its whole tree begin with; None for a child flow run, which has keys only.
        notes: Its other keys (of a child, or such as outlive flow runs), and what is pending, by site key.
    """

    prefix: str | None
    notes: Mapping[str, SubmitNote]

    def lists(self, reference: str) -> list[str]:
        """The prefixes to list at a site."""
        others = [key for key, note in self.notes.items() if note.site == reference and not self._in_tree(key)]
        return [self.prefix, *others] if self.prefix else others

    def pending(self, reference: str) -> set[str]:
        """Site keys of submits of which no handle was recorded."""
        return {key for key, note in self.notes.items() if note.pending and note.site == reference}

    def noted(self, reference: str, site: Site) -> list[RunHandle]:
        """The jobs whose ids are known here."""
        return [
            RunHandle(
                site=reference,
                site_name=site.name,
                kind=site.kind,
                remote_id=note.remote_id,
                site_key=key,
                attempt=note.attempt,
                name=note.name,
            )
            for key, note in self.notes.items()
            if note.site == reference and note.remote_id
        ]

    def has(self, handle: RunHandle) -> bool:
        """Whether it made this job."""
        return self._in_tree(handle.site_key) or made_by_note(self.notes.get(handle.site_key), handle)

    def announced_attempt(self, site_key: str) -> int:
        """The attempt that was announced last under a key."""
        return self.notes[site_key].attempt if site_key in self.notes else 0

    def _in_tree(self, site_key: str) -> bool:
        return self.prefix is not None and site_key.startswith(self.prefix)


async def cancel_runs_of(
    flow_run_id: UUID, logger: Logger, *, within: float = TIMEOUT, elsewhere: Collection[str] = ()
) -> Ended:
    """End all runs that a flow run and its child flow runs made: also such whose submit was cut short.

    What is ended and what may be live is also logged, as it comes.

    Args:
        flow_run_id: A root flow run; or a child, of which only the runs are ended that it submitted itself.
        logger: Where to say it.
        within: Seconds that it takes at most.
        elsewhere: Ids of jobs at sites that are not saved, which the caller ends.
    """
    ended = Ended()
    try:
        until = time.monotonic() + within - _LAST_WORDS
        await asyncio.wait_for(_everywhere(flow_run_id, ended, logger, until, elsewhere), within)
    except (asyncio.TimeoutError, TimeoutError):
        for handle in list(ended.trying):
            say_left(ended, logger, f"{handle.describe()} may be live: its site did not take the cancel.{_see(handle)}")
        say_left(
            ended,
            logger,
            f"Not everything was cancelled within {within:.0f} s. What is left is for the reaper (`reap_runs`), or "
            f"for `prefect-mantik cancel --flow-run {flow_run_id}`.",
        )
    return ended


@urgent
async def _everywhere(
    flow_run_id: UUID, ended: Ended, logger: Logger, until: float, elsewhere: Collection[str]
) -> None:
    async with get_client() as client:
        root = await root_of(client, await client.read_flow_run(flow_run_id))
    ledger = FlowRunLedger(root)
    wanted = _wanted(flow_run_id, root, await origin_of(root), await ledger.notes())
    for note in wanted.notes.values():
        if note.site is None and note.remote_id not in elsewhere:
            words = f"A job of the key '{note.name}' at {note.site_name} may be live: its site is not a saved block."
            say_left(ended, logger, f"{words} Look there.")
    seen: dict[Hashable, str] = {}
    references = [reference for reference in await ledger.sites() if wanted.lists(reference)]
    outcomes = await asyncio.gather(
        *(_at(reference, wanted, seen, ended, logger, until) for reference in references), return_exceptions=True
    )
    for reference, outcome in zip(references, outcomes, strict=True):
        if isinstance(outcome, Exception):
            names = " or ".join(wanted.lists(reference))
            say_left(ended, logger, f"Jobs at {reference} whose names hold {names} may be live. {outcome}")


def _wanted(flow_run_id: UUID, root: UUID, origin: str, notes: Mapping[str, SubmitNote]) -> _Wanted:
    if flow_run_id == root:
        return _Wanted(site_key_prefix(origin, root), notes)
    return _Wanted(
        None, {key: note for key, note in notes.items() if any(step.flow_run_id == flow_run_id for step in note.by)}
    )


async def _at(
    reference: str, wanted: _Wanted, seen: dict[Hashable, str], ended: Ended, logger: Logger, until: float
) -> None:
    """Cancel what is live at a site; a submit that was announced may surface yet, so it is looked for until it does."""
    site = await open_site(reference)
    missing, tried = wanted.pending(reference), set[RunHandle]()
    while True:
        lists = True
        try:
            with impatient(_LIST_WITHIN):
                listed = [handle for prefix in wanted.lists(reference) for handle in await site.list(prefix)]
        except RequestFailed as error:
            lists, listed, until = False, wanted.noted(reference, site), 0.0
            if not listed:
                raise
            say_left(ended, logger, f"{site.name} lists no jobs: only those that were noted are ended. {error}")
        # Where no record tells whose a run is, every site of the account shows it: one of them cancels it.
        mine = [
            handle
            for handle in listed
            if wanted.has(handle)
            and handle not in tried
            and seen.setdefault((site.kind, site.account, handle.remote_id), reference) == reference
        ]
        if lists:  # else there is no time to lose, and cancelling what has ended does no harm
            statuses = await site.poll(mine)
            mine = [handle for handle in mine if not statuses[handle].state.is_end]
        live = [with_project(handle, wanted.notes) for handle in mine]
        await asyncio.gather(*(cancel_one(site, handle, ended, logger) for handle in live))
        tried.update(live)
        missing -= {handle.site_key for handle in listed if handle.attempt >= wanted.announced_attempt(handle.site_key)}
        if not missing:
            return
        if time.monotonic() > until:
            break
        await asyncio.sleep(_LOOK_AGAIN)
    names = " or ".join(sorted(missing))
    say_left(
        ended,
        logger,
        f"A submit to {reference} was cut short, and no job shows yet. One may still appear: the reaper (`reap_runs`) "
        f"ends it then; or look there for a name with {names}.",
    )


def with_project(handle: RunHandle, notes: Mapping[str, SubmitNote]) -> RunHandle:
    """A run whose submit was cut short bears no record of its project: the announcement does."""
    note = notes.get(handle.site_key)
    if handle.platform_project_id or note is None:
        return handle
    return handle.model_copy(update={"platform_project_id": note.project_id})


async def cancel_one(site: Site, handle: RunHandle, ended: Ended, logger: Logger) -> None:
    """Cancel one run at its site, and note and say what became of it."""
    ended.trying.append(handle)
    try:
        await site.cancel(handle)
    except MantikError as error:
        ended.trying.remove(handle)
        say_left(ended, logger, f"{handle.describe()} may be live. {error}{_see(handle)}")
    else:
        ended.trying.remove(handle)
        ended.cancelled.append(handle)
        logger.info("Cancelled %s.", handle.describe())


def _see(handle: RunHandle) -> str:
    link = next(iter(handle.links.values()), "")
    return f" See {link}" if link else ""


def say_left(ended: Ended, logger: Logger, sentence: str) -> None:
    """Note and say that something may still be live."""
    ended.left.append(sentence)
    logger.error(sentence)


async def advise_reaper() -> None:
    """Say once a process that no reaper is deployed."""
    if _advised():
        return
    _advised().append(REAPER)
    try:
        async with get_client() as client:
            named = FlowFilter(name=FlowFilterName(any_=[REAPER]))
            deployed = await client.read_deployments(flow_filter=named, limit=1)
    except Exception as error:  # noqa: BLE001  # advice only
        run_logger().debug("Whether a reaper is deployed is not known: %s", error)
        return
    if not deployed:
        run_logger().warning(
            "No reaper is deployed at this Prefect server: should this flow run be cancelled while a site is down, or "
            "its host dies, its jobs would go on. To deploy it: prefect --no-prompt deploy "
            "prefect_mantik.flows.reap_runs:reap_runs -n every-ten-minutes -p <work pool> --cron '*/10 * * * *'"
        )


@per_process
def _advised() -> list[str]:
    return []
