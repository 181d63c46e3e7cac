"""The engine that all kinds of site submit by, against a site that a test scripts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any, ClassVar
from uuid import uuid4

import pytest

from prefect_mantik.errors import SubmitUnknown
from prefect_mantik.runs import CodeRepository, RunHandle, RunKey, RunSpec, RunState, RunStatus
from prefect_mantik.sites import submission
from prefect_mantik.sites.base import Site
from prefect_mantik.sites.notes import Contended, SubmitNote
from prefect_mantik.sites.submission import TraceFound
from tests.sandbox_jobs import MemoryLedger, new_key

SPEC = RunSpec(
    project_id=uuid4(),
    experiment_repository_id=uuid4(),
    code=CodeRepository(repository_id=uuid4(), branch="main"),
    entry_point="main",
    backend_config={},
)


class TracingSite(Site):
    """Its lists are empty; preparing a submit finds a trace of each attempt that was made long ago."""

    kind = "firecrest"
    road = "by a test"
    reference, name, settle = "firecrest-site/cedar", "cedar", 0.0
    capabilities = frozenset()
    ends_duplicates = True

    def __init__(self, states: Sequence[RunState], *, shows: bool = True) -> None:
        self.states, self.shows = list(states), shows
        self.traced: list[RunHandle] = []
        self.posts = 0

    async def find(self, key: RunKey) -> list[RunHandle]:
        return list(self.traced)

    async def post(self, spec: RunSpec, key: RunKey, attempt: int) -> str:
        known = attempt <= len(self.states)
        if self.shows or not known:
            self.traced.append(handle(key, attempt, str(attempt)))
        if known:
            raise TraceFound
        self.posts += 1
        return str(attempt)

    async def ask(self, handles: Sequence[RunHandle]) -> dict[RunHandle, RunStatus]:
        states = [*self.states, RunState.SCHEDULED]
        return {
            handle: RunStatus(state=states[handle.attempt - 1], observed_at=datetime.now(timezone.utc))
            for handle in handles
        }

    async def _unused(self, *_: Any) -> None:
        raise AssertionError

    list = cancel = read_log = check = _unused  # type: ignore[assignment]
    account = None


TracingSite.__abstractmethods__ = frozenset()


def handle(key: RunKey, attempt: int, remote_id: str) -> RunHandle:
    return RunHandle(
        site="firecrest-site/cedar",
        site_name="cedar",
        kind="firecrest",
        remote_id=remote_id,
        site_key=key.site_key,
        attempt=attempt,
        name=key.name,
    )


async def test_a_job_that_only_left_a_trace_is_taken_as_it_is() -> None:
    site, key = TracingSite([RunState.FINISHED]), new_key()
    ledger = MemoryLedger()
    found = await site.submit(SPEC, key, ledger=ledger)
    assert (found.remote_id, site.posts, ledger.pending) == ("1", 0, {})


async def test_an_attempt_follows_those_that_left_only_traces() -> None:
    site, key = TracingSite([RunState.FAILED, RunState.FAILED]), new_key()
    found = await site.submit(SPEC, key, ledger=MemoryLedger(), if_ended="resubmit")
    assert (found.attempt, site.posts) == (3, 1)


async def test_a_trace_without_a_job_stops_and_asks() -> None:
    site, key = TracingSite([RunState.FINISHED], shows=False), new_key()
    with pytest.raises(SubmitUnknown, match="keeps a trace of a job under key"):
        await site.submit(SPEC, key, ledger=MemoryLedger())
    assert site.posts == 0


async def test_the_older_of_two_jobs_goes_by_the_sites_own_order() -> None:
    class Numbered(TracingSite):
        cancelled: ClassVar[list[str]] = []

        def seniority(self, handle: RunHandle) -> int:
            return int(handle.remote_id)

        async def cancel(self, handle: RunHandle) -> None:
            self.cancelled.append(handle.remote_id)

    site, key = Numbered([RunState.RUNNING]), new_key()
    site.traced = [handle(key, 1, "1000"), handle(key, 1, "999")]
    found = await site.submit(SPEC, key, ledger=MemoryLedger())
    assert (found.remote_id, site.cancelled) == ("999", ["1000"])


async def test_a_run_that_was_finished_while_we_stood_still_ends_our_job() -> None:
    """A laptop slept between its look and its POST, and another try brought the run home."""

    class Slept(TracingSite):
        cancelled: ClassVar[list[str]] = []

        async def post(self, spec: RunSpec, key: RunKey, attempt: int) -> str:
            self.traced = [handle(key, 1, "theirs"), handle(key, 1, "ours")]
            return "ours"

        async def ask(self, handles: Sequence[RunHandle]) -> dict[RunHandle, RunStatus]:
            now = datetime.now(timezone.utc)
            states = {"theirs": RunState.FINISHED, "ours": RunState.SCHEDULED}
            return {one: RunStatus(state=states[one.remote_id], observed_at=now) for one in handles}

        async def cancel(self, handle: RunHandle) -> None:
            self.cancelled.append(handle.remote_id)

    site, key = Slept([]), new_key()
    found = await site.submit(SPEC, key, ledger=MemoryLedger())
    assert (found.remote_id, site.cancelled) == ("theirs", ["ours"])


async def test_who_announces_at_the_same_time_begins_again_with_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    class Theirs(MemoryLedger):
        async def open(self, key: RunKey, note: SubmitNote) -> None:
            site.traced = [handle(key, 1, "theirs")]
            raise Contended

    monkeypatch.setattr(submission, "_STEP_BACK", (0.0, 0.0))
    site, key = TracingSite([]), new_key()
    found = await site.submit(SPEC, key, ledger=Theirs())
    assert (found.remote_id, site.posts) == ("theirs", 0)
