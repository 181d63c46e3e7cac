"""What ends with a flow: the hook that cancels its runs."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from prefect import Flow, State
from prefect.client.schemas.objects import FlowRun
from prefect.logging.loggers import flow_run_logger

from prefect_mantik.errors import MantikError
from prefect_mantik.ledger import FlowRunLedger, origin
from prefect_mantik.log import Logger
from prefect_mantik.loop import call
from prefect_mantik.runs import RunHandle, site_key_prefix
from prefect_mantik.sites.base import Announcement, Site
from prefect_mantik.sites.opening import open_site

HOOK_TIMEOUT = 30.0
"""Seconds that the hook takes at most: Prefect waits for it."""

_LAST_WORDS, _LOOK_AGAIN = 3.0, 2.0


# Prefect's runner passes these by keyword: other names would end in a TypeError, with the jobs left running.
def cancel_runs_of_flow(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """End all training runs of a root flow run: a hook for `@flow(on_cancellation=[cancel_runs_of_flow])`.

    It asks each saved site that the flow run submitted to for the jobs of this flow run and its child flows, also for
    those whose submit was cut short. What it cannot reach is said in the flow run's log. Runs whose key outlives the
    flow run (`scope="origin"`) are left alone.

    Args:
        flow: The flow.
        flow_run: Its run.
        state: The state that it goes to.
    """
    logger = flow_run_logger(flow_run, flow)
    if flow_run.parent_task_run_id is not None:
        logger.warning("cancel_runs_of_flow belongs to the root flow: the runs of this child flow were not cancelled.")
        return
    call(_cancel_all, flow_run, logger)


async def _cancel_all(flow_run: FlowRun, logger: Logger) -> None:
    try:
        await asyncio.wait_for(_cancel_everywhere(flow_run, logger), HOOK_TIMEOUT)
    except (asyncio.TimeoutError, TimeoutError):
        logger.error(
            "Not everything was cancelled within %.0f s: look at the sites for jobs of flow run %s.",
            HOOK_TIMEOUT,
            flow_run.id,
        )


async def _cancel_everywhere(flow_run: FlowRun, logger: Logger) -> None:
    ledger = FlowRunLedger(flow_run.id)
    prefix, references = site_key_prefix(await origin(), flow_run.id), await ledger.sites()
    announced = {key: note for key, note in (await ledger.announcements()).items() if key.startswith(prefix)}
    for key, note in announced.items():
        if note.site is None:
            logger.error("A job of the key %s may be live: its site is not a saved block. Look there.", key)
    seen: dict[str, str] = {}
    outcomes = await asyncio.gather(
        *(_cancel_at(reference, prefix, announced, seen, logger) for reference in references), return_exceptions=True
    )
    for reference, outcome in zip(references, outcomes, strict=True):
        if isinstance(outcome, Exception):
            logger.error("Jobs at %s whose names hold %s may be live. %s", reference, prefix, outcome)


async def _cancel_at(
    reference: str, prefix: str, announced: dict[str, Announcement], seen: dict[str, str], logger: Logger
) -> None:
    """Cancel what is live at a site; a submit that was announced may surface yet, so it is looked for until it does."""
    site = await open_site(reference)
    until = time.monotonic() + HOOK_TIMEOUT - _LAST_WORDS
    missing = {key for key, note in announced.items() if note.site == reference}
    while True:
        listed = await site.list(prefix)
        # Where no record tells whose a run is, every site of the account shows it: one of them cancels it.
        mine = [handle for handle in listed if seen.setdefault(handle.remote_id, reference) == reference]
        statuses = await site.poll(mine)
        live = [_with_project(handle, announced) for handle in mine if not statuses[handle].state.is_end]
        await asyncio.gather(*(_cancel_one(site, handle, logger) for handle in live))
        missing -= {handle.site_key for handle in listed}
        if not missing:
            return
        if time.monotonic() > until:
            break
        await asyncio.sleep(_LOOK_AGAIN)
    logger.error(
        "A submit to %s was cut short, and no job shows yet. One may still appear: look there for a name with %s.",
        reference,
        " or ".join(sorted(missing)),
    )


def _with_project(handle: RunHandle, announced: dict[str, Announcement]) -> RunHandle:
    """A run whose submit was cut short bears no record of its project: the announcement does."""
    note = announced.get(handle.site_key)
    if handle.platform_project_id or note is None:
        return handle
    return handle.model_copy(update={"platform_project_id": note.project_id})


async def _cancel_one(site: Site, handle: RunHandle, logger: Logger) -> None:
    try:
        await site.cancel(handle)
    except MantikError as error:
        link = next(iter(handle.links.values()), "")
        logger.error("%s may be live. %s %s", handle.describe(), error, link)
    else:
        logger.info("Cancelled %s.", handle.describe())
