"""What ends with a flow: the hook that cancels its runs."""

from __future__ import annotations

import asyncio
from typing import Any

from prefect import Flow, State
from prefect.client.schemas.objects import FlowRun
from prefect.logging.loggers import flow_run_logger

from prefect_mantik.errors import MantikError
from prefect_mantik.ledger import FlowRunLedger, origin
from prefect_mantik.log import Logger
from prefect_mantik.loop import call
from prefect_mantik.runs import RunHandle, site_key_prefix
from prefect_mantik.sites.base import Site
from prefect_mantik.sites.opening import open_site

HOOK_TIMEOUT = 30.0
"""Seconds that the hook takes at most: Prefect waits for it."""


# Prefect's runner passes these by keyword: other names would end in a TypeError, with the jobs left running.
def cancel_runs_of_flow(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """End all training runs of a root flow run: a hook for `@flow(on_cancellation=[cancel_runs_of_flow])`.

    It asks each saved site that the flow run submitted to for the jobs of this flow run and its child flows. What it
    cannot reach is said in the flow run's log, with a link.

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
    prefix = site_key_prefix(await origin(), flow_run.id)
    references = await FlowRunLedger(flow_run.id).sites()
    work = asyncio.gather(*(_cancel_at(reference, prefix, logger) for reference in references))
    try:
        await asyncio.wait_for(work, HOOK_TIMEOUT)
    except (asyncio.TimeoutError, TimeoutError):
        logger.error(
            "Not everything was cancelled within %.0f s at %s: look at the sites for jobs whose names hold %s.",
            HOOK_TIMEOUT,
            ", ".join(references),
            prefix,
        )


async def _cancel_at(reference: str, prefix: str, logger: Logger) -> None:
    try:
        site = await open_site(reference)
        handles = await site.list(prefix)
        statuses = await site.poll(handles)
    except MantikError as error:
        logger.error(
            "Jobs at %s whose names hold %s may be live: they were not cancelled. %s", reference, prefix, error
        )
        return
    live = [handle for handle in handles if not statuses[handle].state.is_end]
    await asyncio.gather(*(_cancel_one(site, handle, logger) for handle in live))


async def _cancel_one(site: Site, handle: RunHandle, logger: Logger) -> None:
    try:
        await site.cancel(handle)
    except MantikError as error:
        link = next(iter(handle.links.values()), "")
        logger.error("%s may be live. %s %s", handle.describe(), error, link)
    else:
        logger.info("Cancelled %s.", handle.describe())
