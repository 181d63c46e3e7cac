"""Flow runs of a host that died become Crashed, so that somebody notices and they can be retried."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from prefect.automations import Automation
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture

from prefect_mantik.loop import acall, call

AUTOMATION = "prefect-mantik: flow runs without heartbeat are Crashed"

WAITING = "prefect-mantik.flow-run.waiting"
"""What the watcher sends for each suspended flow run: a last heartbeat may come after the word that it is suspended."""

_HEARTBEAT = "prefect.flow-run.heartbeat"
_SILENT = (
    "Completed",
    "Failed",
    "Cancelled",
    "Crashed",
    "TimedOut",
    "Suspended",
    "Paused",
    "AwaitingRetry",
    "Scheduled",
)
_ENDS = tuple(f"prefect.flow-run.{state}" for state in _SILENT)
"""States in which no process sends heartbeats, and none is missed."""


def crash_runs_of_dead_hosts(*, within: float = 600.0, flows: Sequence[str] | None = None) -> UUID:
    """Create the automation that turns flow runs without a heartbeat into Crashed, or update it; give its id.

    Nothing in Prefect does that by itself: a flow run whose host died stays Running. Its training runs go on meanwhile,
    and a retry of the flow run finds them. The process of a flow run sends a heartbeat every 180 s; with
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY (seconds, at least 30) set for the worker, as often as that says.

    Args:
        within: Seconds without a heartbeat after which a flow run counts as dead: three times their frequency or
            more, or live ones are hit.
        flows: Names of the flows that are watched. By default all flows of the Prefect server, other people's too.

    Example:
        ```python
        from prefect_mantik import crash_runs_of_dead_hosts

        crash_runs_of_dead_hosts(within=600, flows=["train-across-sites"])
        ```
    """
    return call(_ensure, within, flows)


async def acrash_runs_of_dead_hosts(*, within: float = 600.0, flows: Sequence[str] | None = None) -> UUID:
    """As `crash_runs_of_dead_hosts`, awaited."""
    return await acall(_ensure, within, flows)


async def _ensure(within: float, flows: Sequence[str] | None) -> UUID:
    wanted = _automation(within, flows)
    try:
        wanted.id = (await Automation.aread(name=AUTOMATION)).id
    except ValueError:  # there is none of that name
        wanted = await wanted.acreate()
    else:
        await wanted.aupdate()
    return UUID(str(wanted.id))


def _automation(within: float, flows: Sequence[str] | None) -> Automation:
    # After a heartbeat either another one is expected or an end; `for_each` counts every flow run by itself.
    trigger = EventTrigger(
        after={_HEARTBEAT},
        expect={_HEARTBEAT, WAITING, *_ENDS},
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related={"prefect.resource.role": "flow", "prefect.resource.name": list(flows)} if flows else {},
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=within),
    )
    message = f"No heartbeat for {within:.0f} s: its host is gone. Retry it: its training runs are found again."
    return Automation(
        name=AUTOMATION,
        description="Made by prefect-mantik.",
        trigger=trigger,
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=message)],
    )
