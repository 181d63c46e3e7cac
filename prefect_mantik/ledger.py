"""What we keep with Prefect: the origin, and notes in the labels of a root flow run. Never a secret.

A note is either an announced submit (see `sites.submission`) or the reference of a site that was submitted to, so that
whoever ends the flow run knows whom to ask. Labels stay with the flow run: nothing is left to clean up.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
from collections.abc import Mapping
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectAlreadyExists
from prefect.runtime import flow_run as runtime_flow_run
from prefect.variables import Variable

from prefect_mantik.errors import MantikError
from prefect_mantik.log import run_logger
from prefect_mantik.loop import per_process
from prefect_mantik.runs import RunKey, Scope, check_key_name
from prefect_mantik.sites.base import Announcement, Site

ORIGIN_VARIABLE = "prefect_mantik_origin"

_SITE_LABEL = "mantik.site."
_INTENT_LABEL = "mantik.submit."
_TRIES = 5


@per_process
def _writing() -> asyncio.Lock:
    return asyncio.Lock()


async def current_key(name: str, root: UUID | None, scope: Scope = "flow") -> RunKey:
    """The key of a run in the tree of a root flow run; without one, a key that outlives flow runs.

    Raises:
        KeyInvalid: The name cannot be a key.
    """
    check_key_name(name)
    root = root if scope == "flow" else None
    return RunKey(name=name, scope="flow" if root else "origin", origin=await origin(), root_flow_run_id=root)


async def root_flow_run_id() -> UUID | None:
    """The root of the tree of the flow run that is executing; None outside of one."""
    # Prefect walks up the parents by blocking calls.
    found = await asyncio.to_thread(lambda: runtime_flow_run.root_flow_run_id)
    return UUID(str(found)) if found else None


async def origin() -> str:
    """The random id of this Prefect server, made on first use."""
    known = await Variable.aget(ORIGIN_VARIABLE)
    if known is None:
        made = base64.b32encode(secrets.token_bytes(10)).decode().lower()
        with contextlib.suppress(ObjectAlreadyExists, ValueError):  # somebody else was first: theirs counts
            await Variable.aset(ORIGIN_VARIABLE, made)
        known = await Variable.aget(ORIGIN_VARIABLE)
    return str(known)


class FlowRunLedger:
    """Notes in the labels of one root flow run; without one (a script, a notebook) it remembers nothing.

    Args:
        root: Root flow run.
    """

    def __init__(self, root: UUID | None) -> None:
        self._root = root
        self.remembers = root is not None

    async def announced(self, key: RunKey) -> Announcement | None:
        """See `sites.base.Ledger`."""
        return (await self.announcements()).get(key.site_key)

    async def announcements(self) -> dict[str, Announcement]:
        """All announced submits without a recorded handle, by site key."""
        return {
            name.removeprefix(_INTENT_LABEL): Announcement.model_validate_json(note)
            for name, note in (await self._labels()).items()
            if name.startswith(_INTENT_LABEL) and note
        }

    async def open(self, key: RunKey, attempt: int, site: Site) -> None:
        """See `sites.base.Ledger`."""
        notes = {_intent(key): _announcement(attempt, site).model_dump_json()}
        if site.reference:
            notes[_SITE_LABEL + site.reference] = site.reference
        if not await self._write(notes):
            raise MantikError(
                f"Prefect did not keep notes in the labels of flow run {self._root}. Nothing was submitted."
            )

    async def accepted(self, key: RunKey, attempt: int, site: Site, receipt: str) -> None:
        """See `sites.base.Ledger`."""
        await self._note_of_a_job(key, _announcement(attempt, site, receipt).model_dump_json())

    async def close(self, key: RunKey) -> None:
        """See `sites.base.Ledger`."""
        await self._note_of_a_job(key, "")

    async def _note_of_a_job(self, key: RunKey, note: str) -> None:
        try:
            kept = (await self._labels()).get(_intent(key), "") == note or await self._write({_intent(key): note})
        except Exception as error:  # noqa: BLE001  # whatever Prefect does now, it must not hide a job that exists
            run_logger().warning("Prefect did not take a note on '%s' (%s): a retry looks longer.", key.name, error)
            return
        if not kept:
            run_logger().warning("Prefect did not keep a note on '%s': a retry looks longer.", key.name)

    async def sites(self) -> list[str]:
        """References of the saved sites that this flow run submitted to."""
        return [value for name, value in (await self._labels()).items() if name.startswith(_SITE_LABEL)]

    async def _labels(self) -> dict[str, str]:
        if self._root is None:
            return {}
        async with get_client() as client:
            return {name: str(value) for name, value in ((await client.read_flow_run(self._root)).labels or {}).items()}

    async def _write(self, notes: Mapping[str, str]) -> bool:
        """Write labels and read them back: the server merges by reading and writing, so that writers may lose some."""
        if self._root is None:
            return True
        async with _writing(), get_client() as client:
            for _ in range(_TRIES):
                await client.update_flow_run_labels(self._root, dict(notes))
                labels = (await client.read_flow_run(self._root)).labels or {}
                if all(labels.get(name) == value for name, value in notes.items()):
                    return True
        return False


def _announcement(attempt: int, site: Site, receipt: str | None = None) -> Announcement:
    return Announcement(attempt=attempt, site=site.reference, project_id=site.project_id, receipt=receipt)


def _intent(key: RunKey) -> str:
    return _INTENT_LABEL + key.site_key
