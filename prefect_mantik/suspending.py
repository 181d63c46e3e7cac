"""A wait without a process: the flow run is suspended until `watch_runs` sees that its runs ended.

Where that cannot work the wait says why, once, and holds the process.
"""

from __future__ import annotations

import inspect
from asyncio import sleep
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import NamedTuple
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import asuspend_flow_run, suspend_flow_run

from prefect_mantik.kept import KEY_PREFIX, LABEL, LIMIT, Execution, Wait, digest_of, execution_of
from prefect_mantik.ledger import FlowRunLedger
from prefect_mantik.log import run_logger
from prefect_mantik.loop import acall, call
from prefect_mantik.runs import RunHandle
from prefect_mantik.waiting.rounds import ask

WATCHER = "watch-runs"
"""Name of the flow that resumes what is suspended here."""

AT_ONCE = 0.5
"""Seconds in which other waits of the same flow may come, such as those of one `asyncio.gather`."""

_DEPLOY = (
    "prefect --no-prompt deploy prefect_mantik.flows.watch_runs:watch_runs -n watcher -p <work pool> "
    "--cron '*/10 * * * *' --param for_seconds=570"
)
_HOLDS = "The wait holds this process instead."


class _Plan(NamedTuple):
    """What a wait is to do.

    Attributes:
        left: Seconds until its timeout passes, for a wait that holds.
        key: With which to suspend; empty: it holds.
        execution: What is to be suspended.
        wait: For whom.
    """

    left: float | None
    key: str = ""
    execution: Execution | None = None
    wait: Wait | None = None


def suspend_until_ended(handles: Sequence[RunHandle], timeout: float | None) -> float | None:
    """Suspend the flow run, unless the runs have ended or it cannot be done: then give the seconds left to hold.

    Raises:
        Pause: Prefect's signal that ends the process of a suspended flow run. No error that a flow's code would catch.
    """
    plan = call(_plan, list(handles), timeout)
    if plan.key:
        try:
            outcome = suspend_flow_run(timeout=None, key=plan.key)
            if inspect.iscoroutine(outcome):
                outcome.close()
                raise RuntimeError("an async flow awaits `await_for_runs`")
            _give_up(plan, "Prefect let it run on")
        except Exception as error:  # noqa: BLE001  # refused, or a Prefect that is away: the wait must not end by it
            _give_up(plan, error)
    return plan.left


async def asuspend_until_ended(handles: Sequence[RunHandle], timeout: float | None) -> float | None:
    """As `suspend_until_ended`, awaited."""
    plan = await acall(_plan, list(handles), timeout)
    if plan.key:
        try:
            await asuspend_flow_run(timeout=None, key=plan.key)
            _give_up(plan, "Prefect let it run on")
        except Exception as error:  # noqa: BLE001  # refused, or a Prefect that is away: the wait must not end by it
            _give_up(plan, error)
    return plan.left


def _give_up(plan: _Plan, why: object) -> None:
    """Such as a flow run that was cancelled a moment ago."""
    if plan.execution and plan.wait in plan.execution.open:
        plan.execution.open.remove(plan.wait)
        plan.execution.key = ""
    run_logger().warning("This flow run was not suspended: %s. %s", why, _HOLDS)


async def _plan(handles: list[RunHandle], timeout: float | None) -> _Plan:
    try:
        return await _planned(handles, timeout)
    except Exception as error:  # noqa: BLE001  # a Prefect that is away: the wait must not end by it
        run_logger().warning("This flow run cannot be suspended: %s: %s. %s", type(error).__name__, error, _HOLDS)
        return _Plan(timeout)


async def _planned(handles: list[RunHandle], timeout: float | None) -> _Plan:
    why_not = _why_not_here(handles)
    execution = None if why_not else await _execution()
    until = execution.begin_wait(handles, timeout) if execution else None
    left = (until - datetime.now(timezone.utc)).total_seconds() if until else timeout
    first = await ask(handles)
    if first.all_ended(handles):
        return _Plan(left)
    if until and left is not None and left <= 0:
        run_logger().warning("The timeout of this wait passed at %s, while it was suspended.", f"{until:%F %H:%M} UTC")
        return _Plan(0.0)
    unopened = [handle for handle in handles if handle not in first.sites]
    if unopened:
        why_not = why_not or f"{unopened[0].describe()} cannot be reached. {first.troubles[unopened[0]]}"
    why_not = why_not or await _why_not_at_this_server()
    if why_not or execution is None:
        run_logger().warning("This flow run cannot be suspended: %s. %s", (why_not or "").rstrip("."), _HOLDS)
        return _Plan(left)
    return await _keep(execution, Wait(handles, until), left)


async def _execution() -> Execution | None:
    context = FlowRunContext.get()
    return await execution_of(context.flow_run.id) if context and context.flow_run else None


def _why_not_here(handles: Sequence[RunHandle]) -> str:
    """Why the flow run that is executing can never be suspended; empty where it can."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return "there is none, this is no flow" if TaskRunContext.get() is None else "a task cannot suspend its flow"
    if TaskRunContext.get() is not None:
        return "Prefect suspends flows from their own code only, and this wait is within a task"
    if context.flow_run.parent_task_run_id is not None:
        return "it is a child flow run, and Prefect suspends root flow runs only"
    if context.flow_run.deployment_id is None:
        return "it has no deployment, so that nobody would start it again. Serve the flow, or deploy it to a work pool"
    unsaved = next((handle for handle in handles if handle.site is None), None)
    if unsaved:
        return f"the site of {unsaved.describe()} is not a saved block, so that only this process can ask it"
    return ""


async def _why_not_at_this_server() -> str:
    context = FlowRunContext.get()
    deployment = context.flow_run.deployment_id if context and context.flow_run else None
    try:
        async with get_client() as client:
            return await _no_deployment(client, deployment) or await _no_watcher(client)
    except Exception as error:  # noqa: BLE001  # a Prefect that is away: the wait must not end by it
        return f"the Prefect server does not tell what is deployed ({type(error).__name__}: {error})"


async def _no_deployment(client: PrefectClient, deployment: UUID | None) -> str:
    try:
        if deployment:
            await client.read_deployment(deployment)
    except ObjectNotFound:
        return "its deployment was deleted, so that nobody would start it again"
    return ""


async def _no_watcher(client: PrefectClient) -> str:
    named = FlowFilter(name=FlowFilterName(any_=[WATCHER]))
    deployed = await client.read_deployments(flow_filter=named, limit=50)
    if not deployed:
        return f"`watch_runs`, which would resume it, is not deployed at this Prefect server. To deploy it: {_DEPLOY}"
    if any(not each.paused and any(schedule.active for schedule in each.schedules) for each in deployed):
        return ""
    names = ", ".join(f"{WATCHER}/{each.name}" for each in deployed)
    return f"`watch_runs`, which would resume it, has no active schedule: {names} is paused or has none"


async def _keep(execution: Execution, wait: Wait, left: float | None) -> _Plan:
    """Write what is kept. Waits that come at the same time are suspended together, and resumed when all have ended."""
    execution.open.append(wait)
    await sleep(AT_ONCE)
    why_not = ""
    async with execution.writing:
        execution.key = execution.key or await _new_key(execution)
        text = execution.kept().written()
        if len(text) > LIMIT:
            why_not = f"what it would have to keep of its runs is too long: {len(text)} characters, of {LIMIT} at most"
        elif not await FlowRunLedger(execution.root).keep(LABEL, text):
            why_not = "Prefect did not keep its runs in the labels of the flow run"
    plan = _Plan(left, execution.key, execution, wait)
    if why_not:
        _give_up(plan, why_not)
        return _Plan(left)
    run_logger().info(
        "Suspended until %d training runs have ended%s: no process waits for them, `watch_runs` does.",
        len(execution.awaited),
        f", or until {wait.until:%F %H:%M} UTC" if wait.until else "",
    )
    return plan


async def _new_key(execution: Execution) -> str:
    """The same for the same runs, but for a number: Prefect suspends a flow run with a key once."""
    async with get_client() as client:
        policy = (await client.read_flow_run(execution.root)).empirical_policy
    stem = f"{KEY_PREFIX}{digest_of(execution.awaited)}"
    used = sum(key.rpartition("-")[0] == stem for key in policy.pause_keys or ())
    return f"{stem}-{used + 1}"
