"""What a flow run keeps while it is suspended: the runs that it waits for, and what its code was told so far.

A flow that is resumed executes from its top. Its submits find their runs by key; but one that ended badly meanwhile
would be submitted again, or raise, before the wait could tell the flow of it. So each submit of a resumed flow is given
the handle that it was given before, the first of a key the first one, and so on; and each wait its first deadline.
All of it is in one label of the flow run, which the next suspension replaces.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

from prefect import State
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from pydantic import BaseModel, ConfigDict

from prefect_mantik.errors import MantikError
from prefect_mantik.log import run_logger
from prefect_mantik.loop import per_process
from prefect_mantik.runs import RunHandle, RunKey, RunSpec
from prefect_mantik.sites.base import Site
from prefect_mantik.sites.notes import refuse_other_description

LABEL = "mantik.suspended"

KEY_PREFIX = "mantik-"
"""Of the keys with which waits suspend their flow runs."""

LIMIT = 400_000
"""Characters of the label: a thousand runs take about a third of it."""

_UNPACKED_LIMIT = 64 * 2**20
_DIGEST_LENGTH = 16


class Kept(BaseModel):
    """What the label of a suspended flow run says.

    Attributes:
        flow_run: Whose it is.
        key: The key of the suspension that it belongs to, as Prefect's state shows it.
        handles: All runs that are meant below, by their place in this list.
        waiting: Those that are waited for.
        until: When the first timeout of the waits passes.
        submits: What submits were given, by site key.
        waits: The deadlines of waits, by the digest of what they wait for.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    flow_run: UUID
    key: str
    handles: list[RunHandle]
    waiting: list[int]
    until: datetime | None = None
    submits: dict[str, list[int]]
    waits: dict[str, list[datetime | None]]

    @property
    def awaited(self) -> list[RunHandle]:
        """The runs that are waited for."""
        return [self.handles[place] for place in self.waiting]

    def written(self) -> str:
        """The text of the label."""
        text = self.model_dump_json(exclude_defaults=True)
        return base64.b85encode(zlib.compress(text.encode(), 9)).decode()


def kept_of(flow_run: FlowRun) -> Kept | None:
    """What a flow run keeps; None where it keeps nothing.

    Raises:
        MantikError: The label cannot be read.
    """
    text = (flow_run.labels or {}).get(LABEL)
    if not text:
        return None
    try:
        found = Kept.model_validate_json(zlib.decompressobj().decompress(base64.b85decode(str(text)), _UNPACKED_LIMIT))
        _ = found.awaited
    except (ValueError, zlib.error, IndexError) as error:  # pydantic's errors are ValueErrors
        kind = type(error).__name__
    else:
        return found if found.flow_run == flow_run.id else None
    raise MantikError(
        f"Its label {LABEL} cannot be read ({kind}): resume it by hand, its training runs are found by their keys."
    )


def digest_of(handles: Iterable[RunHandle]) -> str:
    """A short name for a set of runs, the same in every process."""
    identities = sorted("\n".join(handle.identity) for handle in handles)
    return hashlib.sha256("\n\n".join(identities).encode()).hexdigest()[:_DIGEST_LENGTH]


@dataclass
class Wait:
    """A wait that wants to suspend its flow run.

    Attributes:
        handles: What it waits for.
        until: When its timeout passes.
    """

    handles: Sequence[RunHandle]
    until: datetime | None


@dataclass
class Execution:
    """One time that a root flow run began, in this process; together with those before it that were suspended.

    Attributes:
        root: The flow run.
        state_id: Of its state Running.
        submits: What submits were given, by site key, in their order.
        waits: The deadlines of waits that suspend, by the digest of what they wait for, in their order.
        open: The waits that want to suspend it now.
        key: Of the suspension that is under way.
        writing: One wait after another writes the label.
    """

    root: UUID
    state_id: UUID | None
    submits: dict[str, list[RunHandle]] = field(default_factory=dict)
    waits: dict[str, list[datetime | None]] = field(default_factory=dict)
    open: list[Wait] = field(default_factory=list)
    key: str = ""
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _asked: Counter[str] = field(default_factory=Counter)

    def given(self, key: RunKey, spec: RunSpec, site: Site, shared: bool) -> RunHandle | None:
        """The run that this submit was given before the flow run was suspended; None where it was not reached.

        Raises:
            KeyInUse: That run has another description.
        """
        before, place = self.submits.get(key.site_key, []), self._asked[key.site_key]
        if place >= len(before) or before[place].site != site.reference:
            return None
        refuse_other_description(None, key, spec, before[place], shared)
        self._asked[key.site_key] += 1
        run_logger().info("%s was submitted before this flow run was suspended.", before[place].describe())
        return before[place]

    def give(self, key: RunKey, handle: RunHandle) -> None:
        """Remember what a submit is given."""
        self.submits.setdefault(key.site_key, []).append(handle)
        self._asked[key.site_key] = len(self.submits[key.site_key])

    def begin_wait(self, handles: Sequence[RunHandle], timeout: float | None) -> datetime | None:
        """When the timeout of a wait passes: it goes on from when the wait was reached first."""
        digest = digest_of(handles)
        deadlines, place = self.waits.setdefault(digest, []), self._asked[digest]
        self._asked[digest] += 1
        if place == len(deadlines):
            deadlines.append(None if timeout is None else datetime.now(timezone.utc) + timedelta(seconds=timeout))
        return deadlines[place]

    @property
    def awaited(self) -> list[RunHandle]:
        """The runs of all waits that want to suspend it."""
        return list(dict.fromkeys(handle for wait in self.open for handle in wait.handles))

    def kept(self) -> Kept:
        """What its label has to say."""
        awaited = self.awaited
        submits = {key: list(given) for key, given in self.submits.items()}
        for handle in awaited:  # also what was submitted elsewhere, such as by a task in another process
            if handle not in submits.setdefault(handle.site_key, []):
                submits[handle.site_key].append(handle)
        handles = list(dict.fromkeys([*awaited, *(handle for given in submits.values() for handle in given)]))
        place = {handle: number for number, handle in enumerate(handles)}
        return Kept(
            flow_run=self.root,
            key=self.key,
            handles=handles,
            waiting=[place[handle] for handle in awaited],
            until=min((wait.until for wait in self.open if wait.until), default=None),
            submits={key: [place[handle] for handle in given] for key, given in submits.items()},
            waits=self.waits,
        )


async def execution_of(root: UUID | None) -> Execution | None:
    """What is known of this time that a root flow run executes; None where nothing can ever suspend it."""
    context = FlowRunContext.get()
    if root is None or context is None or context.flow_run is None:
        return None
    if context.flow_run.id == root and context.flow_run.deployment_id is None:
        return None
    async with _looking(root), get_client() as client:
        flow_run = await client.read_flow_run(root)
        known = _executions().get(root)
        # In any other state it is being suspended, paused or cancelled, and this is still the same time.
        if known is None or (flow_run.state_id != known.state_id and flow_run.state and flow_run.state.is_running()):
            known = _executions()[root] = await _begun(client, flow_run, known)
    return known


@per_process
def _looking(root: UUID) -> asyncio.Lock:
    """A thousand submits begin at the same time: one reads what was kept."""
    return asyncio.Lock()


@per_process
def _executions() -> dict[UUID, Execution]:
    return {}


async def _begun(client: PrefectClient, flow_run: FlowRun, known: Execution | None) -> Execution:
    before = _before(await client.read_flow_run_states(flow_run.id), flow_run.state_id)
    if known and before and before.is_paused() and not before.state_details.pause_reschedule:
        known.state_id = flow_run.state_id  # paused in this process, and not suspended
        return known
    begun = Execution(flow_run.id, flow_run.state_id)
    try:
        kept = kept_of(flow_run)
    except MantikError as error:
        run_logger().warning("%s", error)
        return begun
    if kept and before and before.is_paused() and before.state_details.pause_key == kept.key:
        begun.submits = {key: [kept.handles[place] for place in places] for key, places in kept.submits.items()}
        begun.waits = {digest: list(deadlines) for digest, deadlines in kept.waits.items()}
    return begun


def _before(states: Sequence[State[Any]], current: UUID | None) -> State[Any] | None:
    """The state that a flow run was in before it was scheduled, and began, for the last time."""
    in_order = sorted(states, key=lambda state: state.timestamp)
    places = [place for place, state in enumerate(in_order) if state.id == current]
    earlier = in_order[: places[0]] if places else in_order
    return next((state for state in reversed(earlier) if not (state.is_scheduled() or state.is_pending())), None)
