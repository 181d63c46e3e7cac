"""What is remembered of a key outside the site: that a submit was announced, by whom, and of what.

A site cannot tell whether a submit that it has not shown yet was cut short, nor which of two child flows a key belongs
to. The ledger keeps one note for each key for that.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, NamedTuple, Protocol
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from prefect_mantik.errors import KeyInUse
from prefect_mantik.runs import RunHandle, RunKey, RunSpec

if TYPE_CHECKING:
    from prefect_mantik.sites.base import Site

_NAME_LENGTH, _OUTLINE_LENGTH = 60, 160
_DIGEST_LENGTH = 8
_SECRET = re.compile("token|secret|passw|key|credential", re.IGNORECASE)


class Step(NamedTuple):
    """One flow run on the way from a root flow run to whoever submits.

    Attributes:
        flow_run_id: Which.
        execution: Id of its state Running: another one each time that it begins anew (retry, resume).
    """

    flow_run_id: UUID
    execution: UUID | None


Way = Sequence[Step]
"""From a root flow run down to one of its tree; empty outside of flow runs."""


class SubmitNote(BaseModel):
    """What a root flow run remembers of a key.

    Attributes:
        attempt: Number of the attempt.
        name: The key's name, or how it begins.
        site: Reference of the site's block, where it is saved.
        site_name: What to call the site.
        project_id: Of the platform's project that it was submitted for.
        pending: Whether a submit was announced of which no handle is recorded.
        receipt: What the site called the job, where it said that it took it.
        remote_id: The job, once it is known.
        by: The way from the root to the flow run that submitted; empty outside of flow runs.
        outline: The description in one line, for people.
        digest: First characters of the digest of the description.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    attempt: int
    name: str = ""
    site: str | None = None
    site_name: str = ""
    project_id: UUID | None = None
    pending: bool = True
    receipt: str | None = None
    remote_id: str | None = None
    by: tuple[Step, ...] = ()
    outline: str = ""
    digest: str = ""


class Contended(Exception):
    """Somebody else announced a submit of the same key at the same time. Not an error: begin again with a look."""


class Ledger(Protocol):
    """Remembers, outside the site, that we are about to submit: a crash may leave a job that is not visible yet.

    Attributes:
        remembers: Whether anything is kept: outside a flow run there is no place for it.
    """

    remembers: bool

    def turn(self, key: RunKey) -> AbstractAsyncContextManager[None]:
        """Let submitters of a key go one after another, as far as that can be had. Advice: never raises."""
        ...

    async def look_up(self, key: RunKey) -> tuple[SubmitNote | None, Way]:
        """What is remembered of a key; and the way from the root flow run to the one that asks."""
        ...

    async def open(self, key: RunKey, note: SubmitNote) -> None:
        """Announce an attempt. It must be written when this returns.

        Raises:
            Contended: Another submitter came since `look_up`.
            SubmitRefused: The flow run was cancelled: nothing may be made for it any more.
        """
        ...

    async def accepted(self, key: RunKey, note: SubmitNote) -> None:
        """Note that the site took the job. Never raises: the job exists."""
        ...

    async def close(self, key: RunKey, remote_id: str | None = None) -> None:
        """The announced submit is settled: its job is known by its id, or none was made. Never raises."""
        ...

    async def take_back(self, key: RunKey, before: SubmitNote | None) -> None:
        """It is certain that the announced attempt made no job: what was noted before it counts. Never raises."""
        ...


def note_of(spec: RunSpec, key: RunKey, attempt: int, site: Site, way: Way) -> SubmitNote:
    """The announcement of an attempt."""
    return SubmitNote(
        attempt=attempt,
        name=key.name[:_NAME_LENGTH],
        site=site.reference,
        site_name=site.name,
        project_id=site.project_id,
        by=tuple(way),
        outline=outline(spec),
        digest=spec.digest[:_DIGEST_LENGTH],
    )


def made_by_note(note: SubmitNote | None, handle: RunHandle) -> bool:
    """Whether the submit that a note is of made a job. A key that outlives flow runs may have jobs of several."""
    return note is not None and note.attempt == handle.attempt and (note.pending or note.remote_id == handle.remote_id)


def outline(spec: RunSpec) -> str:
    """A description in one line: the entry point with its parameters, the code, what is asked of the site."""
    parameters = ", ".join(
        f"{name}={'***' if _SECRET.search(name) else value}" for name, value in spec.parameters.items()
    )
    code = ", ".join(
        f"{name} {_without_credentials(str(value))}"
        for name, value in spec.code.model_dump(mode="json", exclude_none=True).items()
    )
    resources = spec.backend_config.get("Resources", {})
    asked = ", ".join(f"{name} {value}" for name, value in resources.items()) if isinstance(resources, dict) else ""
    text = f"{spec.entry_point}({parameters}) of {code}{f', {asked}' if asked else ''}"
    return text if len(text) <= _OUTLINE_LENGTH else f"{text[: _OUTLINE_LENGTH - 3]}..."


def _without_credentials(text: str) -> str:
    """A git URL without what people put into URLs though they should not."""
    return re.sub(r"//[^/@]*@", "//", text).partition("?")[0]


def is_another_flow_runs(note: SubmitNote, way: Way) -> bool:
    """Whether a key was used by another flow run of the same tree.

    A child flow run is a new one when its parent begins anew. So what counts is the last flow run that both ways have
    in common: has it begun anew since, the key belongs to whoever asks now.
    """
    if not note.by or not way or note.by[-1].flow_run_id == way[-1].flow_run_id:
        return False
    common = [
        (theirs, ours) for theirs, ours in zip(note.by, way, strict=False) if theirs.flow_run_id == ours.flow_run_id
    ]
    return bool(common) and common[-1][0].execution == common[-1][1].execution


def refuse_foreign(note: SubmitNote, key: RunKey, spec: RunSpec, site: Site, way: Way, shared: bool) -> None:
    """Refuse a key that belongs to another site, or to another flow run of the same tree.

    Raises:
        KeyInUse: It does. Both runs are shown.
    """
    both = f"Theirs: {_shown(note.outline, note.digest)}. Yours: {_shown(outline(spec), spec.digest)}."
    if note.site_name and (note.site, note.site_name) != (site.reference, site.name):
        raise KeyInUse(
            f"Key '{key.name}' was used in this flow run for a run at {note.site_name}, not at {site.name}. {both} A "
            "run has one site: use another key."
        )
    if not shared and is_another_flow_runs(note, way):
        raise KeyInUse(
            f"Key '{key.name}' was used by another flow run of the same tree ({note.by[-1].flow_run_id}) for a run at "
            f"{note.site_name}. {both} Use another key, or pass shared=True to take the run that exists."
        )


def refuse_other_description(
    note: SubmitNote | None, key: RunKey, spec: RunSpec, handle: RunHandle, shared: bool
) -> None:
    """Refuse a job that bears the key and another description.

    Raises:
        KeyInUse: It does. Both are shown, theirs as far as it is known.
    """
    if shared or not handle.spec_digest or spec.digest.startswith(handle.spec_digest):
        return
    known = note is not None and note.digest == handle.spec_digest[:_DIGEST_LENGTH]
    theirs = _shown(note.outline if note and known else "", handle.spec_digest)
    link = next(iter(handle.links.values()), "")
    raise KeyInUse(
        f"Key '{key.name}' belongs to another run at {handle.site_name}: {handle.remote_id}"
        f"{f', see {link}' if link else ''}. Theirs: {theirs}. Yours: {_shown(outline(spec), spec.digest)}. "
        "Use another key, or pass shared=True to take the run that exists."
    )


def _shown(text: str, digest: str) -> str:
    known = f"{text}, " if text else ""
    return f"{known}description {digest[:_DIGEST_LENGTH]}"
