"""What we keep with Prefect: the origin, and notes in the labels of a root flow run. Never a secret.

There is one note for each key that was submitted (`sites.notes.SubmitNote`), and the reference of each site, so that
whoever ends the flow run knows whom to ask for what. Labels stay with the flow run: nothing is left to clean up.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.runtime import flow_run as runtime_flow_run
from prefect.variables import Variable
from pydantic import ValidationError

from prefect_mantik.errors import MantikError, SubmitRefused
from prefect_mantik.labels import labels_of
from prefect_mantik.log import run_logger
from prefect_mantik.loop import per_process
from prefect_mantik.runs import RunKey, Scope, check_key_name
from prefect_mantik.sites.notes import Contended, Step, SubmitNote, Way
from prefect_mantik.turns import turn

ORIGIN_VARIABLE = "prefect_mantik_origin"

_SITE_LABEL = "mantik.site."
_KEY_LABEL = "mantik.key."
_TRY_LABEL = "mantik.try."
_ORIGIN_LABEL = "mantik.origin"
_READ_AGAIN = 0.2
_PAGE, _LOST_PAGES = 200, 20
_SOMEBODYS = SubmitNote(attempt=1)
"""What is known of a submit of which only its first label was written."""
_TRIES = 5


async def current_key(name: str, root: UUID | None, scope: Scope = "flow") -> RunKey:
    """The key of a run in the tree of a root flow run; without one, a key that outlives flow runs.

    Raises:
        KeyInvalid: The name cannot be a key.
    """
    check_key_name(name)
    root = root if scope == "flow" else None
    made_by = await origin_of(root) if root else await origin()
    return RunKey(name=name, scope="flow" if root else "origin", origin=made_by, root_flow_run_id=root)


async def root_flow_run_id() -> UUID | None:
    """The root of the tree of the flow run that is executing; None outside of one."""
    # Prefect walks up the parents by blocking calls.
    found = await asyncio.to_thread(lambda: runtime_flow_run.root_flow_run_id)
    return UUID(str(found)) if found else None


async def root_of(client: PrefectClient, flow_run: FlowRun) -> UUID:
    """The root of the tree of any flow run, whether it is executing or not."""
    while (parent := await _parent_of(client, flow_run)) is not None:
        flow_run = await client.read_flow_run(parent)
    return flow_run.id


async def _parent_of(client: PrefectClient, flow_run: FlowRun) -> UUID | None:
    if flow_run.parent_task_run_id is None:
        return None
    return (await client.read_task_run(flow_run.parent_task_run_id)).flow_run_id


async def origin() -> str:
    """The random id of this Prefect server, made on first use, and restored where somebody deleted it."""
    known = await Variable.aget(ORIGIN_VARIABLE)
    if known is None:
        made = await _lost_origin() or base64.b32encode(secrets.token_bytes(10)).decode().lower()
        with contextlib.suppress(ObjectAlreadyExists, ValueError):  # somebody else was first: theirs counts
            await Variable.aset(ORIGIN_VARIABLE, made)
        known = await Variable.aget(ORIGIN_VARIABLE)
    return str(known)


async def origin_of(root: UUID) -> str:
    """The origin of the keys of a root flow run: it stays the same whatever becomes of the variable."""
    async with _learning_origins():  # many submits of a flow begin at once
        if root not in _origins():
            labels = (await labels_of(root).exchange({})).labels or {}
            _origins()[root] = str(labels.get(_ORIGIN_LABEL) or await origin())
    return _origins()[root]


@per_process
def _learning_origins() -> asyncio.Lock:
    return asyncio.Lock()


@per_process
def _origins() -> dict[UUID, str]:
    return {}


async def remember_origin() -> None:
    """Write the origin into the labels of the root flow run that is executing, so that it is not lost."""
    if root := await root_flow_run_id():
        async with get_client() as client:
            await client.update_flow_run_labels(root, {_ORIGIN_LABEL: await origin_of(root)})


async def _lost_origin() -> str | None:
    """The origin that flow runs remember. Without it their jobs would be submitted again under new names."""
    began = FlowRunFilterState(type=FlowRunFilterStateType(not_any_=[StateType.SCHEDULED]))
    async with get_client() as client:
        for page in range(_LOST_PAGES):
            latest = await client.read_flow_runs(
                flow_run_filter=FlowRunFilter(state=began),
                sort=FlowRunSort.START_TIME_DESC,
                limit=_PAGE,
                offset=page * _PAGE,
            )
            for flow_run in latest:
                if flow_run.labels and _ORIGIN_LABEL in flow_run.labels:
                    run_logger().warning(
                        "The variable %s was deleted. It is restored from the labels of an earlier flow run, so that "
                        "running jobs are found.",
                        ORIGIN_VARIABLE,
                    )
                    return str(flow_run.labels[_ORIGIN_LABEL])
            if len(latest) < _PAGE:
                break
    return None


class FlowRunLedger:
    """Notes in the labels of one root flow run; without one (a script, a notebook) it remembers nothing.

    Args:
        root: Root flow run.
    """

    def __init__(self, root: UUID | None) -> None:
        self._root = root
        self.remembers = root is not None
        self._try = secrets.token_hex(4)
        self._seen: set[str] = set()

    def turn(self, key: RunKey) -> AbstractAsyncContextManager[None]:
        """See `sites.notes.Ledger`."""
        return turn(key.site_key)

    async def look_up(self, key: RunKey) -> tuple[SubmitNote | None, Way]:
        """See `sites.notes.Ledger`."""
        if self._root is None:
            return None, ()
        root = await labels_of(self._root).exchange({})
        async with get_client() as client:
            way = await _way(client, root)
            note = _note_of(root.labels or {}, key)
            if note and note.by and way and note.by[-1].flow_run_id != way[-1].flow_run_id:
                note = await _inherited(client, note)
        self._seen = _tries(root.labels, key)
        if self._seen and not (note and note.pending):
            # A submit that was cut short, or is about to announce itself: of the first attempt, or of the next.
            note = note.model_copy(update={"attempt": note.attempt + 1, "pending": True}) if note else _SOMEBODYS
        return note, way

    async def notes(self) -> dict[str, SubmitNote]:
        """The notes of all keys that this flow run and its child flows submitted, by site key."""
        return _notes(await self._labels())

    async def open(self, key: RunKey, note: SubmitNote) -> None:
        """See `sites.notes.Ledger`.

        A label of our own comes first and tells whoever else submits the key: who finds another's beside it steps back
        and leaves nothing. The note is written only then.
        """
        if self._root is None:
            return
        mine = f"{_TRY_LABEL}{key.site_key}.{self._try}"
        # Twice: of two who write at once one may be lost, and read its own label back all the same.
        for pause in (_READ_AGAIN, 0.0):
            await self._must_write({mine: "1"})
            if _tries(await self._labels(), key) - self._seen - {mine}:
                await self._write({mine: ""})
                raise Contended
            await asyncio.sleep(pause)
        labels = {_label(key): _written(note), _ORIGIN_LABEL: await origin_of(self._root)}
        if note.site:
            labels[_SITE_LABEL + note.site] = note.site
        await self._must_write(labels)
        state = (await labels_of(self._root).exchange({})).state
        if state and (state.is_cancelling() or state.is_cancelled()):
            await self._write({mine: "", _label(key): ""})
            raise SubmitRefused(f"Nothing was submitted for key '{note.name}': its flow run was cancelled.")

    async def _must_write(self, labels: Mapping[str, str]) -> None:
        if not await self._write(labels):
            raise MantikError(
                f"Prefect did not keep notes in the labels of flow run {self._root}. Nothing was submitted: submit "
                "again under the same key."
            )

    async def accepted(self, key: RunKey, note: SubmitNote) -> None:
        """See `sites.notes.Ledger`."""
        await self._note_of_a_job(key, lambda _: note)

    async def close(self, key: RunKey, remote_id: str | None = None) -> None:
        """See `sites.notes.Ledger`."""
        known = {"pending": False, "receipt": None, **({"remote_id": remote_id} if remote_id else {})}
        await self._note_of_a_job(key, lambda note: note and note.model_copy(update=known))

    async def take_back(self, key: RunKey, before: SubmitNote | None) -> None:
        """See `sites.notes.Ledger`."""
        kept = before.model_copy(update={"pending": False}) if before and before.remote_id else None
        await self._note_of_a_job(key, lambda _: kept)

    async def _note_of_a_job(self, key: RunKey, change: Callable[[SubmitNote | None], SubmitNote | None]) -> None:
        try:
            labels = await self._labels()
            before = _note_of(labels, key)
            after = change(before)
            settled = {} if after and after.pending else dict.fromkeys(_tries(labels, key), "")
            written = {} if after == before else {_label(key): _written(after) if after else ""}
            kept = not (settled or written) or await self._write({**settled, **written})
        except Exception as error:  # noqa: BLE001  # whatever Prefect does now, it must not hide a job that exists
            run_logger().warning("Prefect did not take a note on '%s' (%s): a retry looks longer.", key.name, error)
            return
        if not kept:
            run_logger().warning("Prefect did not keep a note on '%s': a retry looks longer.", key.name)

    async def sites(self) -> list[str]:
        """References of the saved sites that this flow run submitted to."""
        return [str(value) for name, value in (await self._labels()).items() if name.startswith(_SITE_LABEL)]

    async def keep(self, label: str, text: str) -> bool:
        """Write a label of the flow run, and say whether it is there."""
        return await self._write({label: text})

    async def _labels(self) -> Mapping[str, Any]:
        return {} if self._root is None else (await labels_of(self._root).exchange({})).labels or {}

    async def _write(self, notes: Mapping[str, str]) -> bool:
        """Write labels and read them back: the server merges by reading and writing, so that writers may lose some."""
        if self._root is None:
            return True
        for _ in range(_TRIES):
            labels = (await labels_of(self._root).exchange(notes)).labels or {}
            if all(labels.get(name) == value for name, value in notes.items()):
                return True
        return False


def _label(key: RunKey) -> str:
    return _KEY_LABEL + key.site_key


def _written(note: SubmitNote) -> str:
    return note.model_dump_json(exclude_defaults=True)


def notes_of(flow_run: FlowRun) -> dict[str, SubmitNote]:
    """The notes of all keys that a root flow run and its child flow runs submitted, by site key."""
    return _notes(flow_run.labels or {})


def _notes(labels: Mapping[str, Any]) -> dict[str, SubmitNote]:
    read = {
        name.removeprefix(_KEY_LABEL): _read(name, text) for name, text in labels.items() if name.startswith(_KEY_LABEL)
    }
    return {site_key: note for site_key, note in read.items() if note}


def _note_of(labels: Mapping[str, Any], key: RunKey) -> SubmitNote | None:
    return _read(_label(key), labels.get(_label(key)))


def _read(name: str, text: Any) -> SubmitNote | None:
    try:
        return SubmitNote.model_validate_json(str(text)) if text else None
    except ValidationError:  # written by hand: it must not hide the others
        run_logger().warning("The label %s of a flow run is no note of ours.", name)
        return None


async def _inherited(client: PrefectClient, note: SubmitNote) -> SubmitNote:
    """A note of a flow run that ended without success is anybody's: whoever calls that child flow again goes on."""
    try:
        state = (await client.read_flow_run(note.by[-1].flow_run_id)).state
    except ObjectNotFound:
        return note
    ended_badly = state is not None and state.is_final() and not state.is_completed()
    return note.model_copy(update={"by": ()}) if ended_badly else note


def _tries(labels: Mapping[str, Any] | None, key: RunKey) -> set[str]:
    """The labels of submits of a key that are under way, or were cut short."""
    return {name for name, text in (labels or {}).items() if name.startswith(f"{_TRY_LABEL}{key.site_key}.") and text}


async def _way(client: PrefectClient, root: FlowRun) -> Way:
    """The flow runs from a root down to the one that is executing, each with the state that it executes in."""
    executing = runtime_flow_run.id
    if executing is None:
        return ()
    way = [Step(root.id, root.state_id)]
    below: list[Step] = []
    current = UUID(str(executing))
    while current != root.id:
        flow_run = await client.read_flow_run(current)
        below.insert(0, Step(current, flow_run.state_id))
        parent = await _parent_of(client, flow_run)
        if parent is None:
            return ()  # submitted on behalf of another tree
        current = parent
    return [*way, *below]
