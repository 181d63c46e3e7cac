"""Submitters of one key take turns where Prefect lets them, and go on where it does not."""

from __future__ import annotations

import asyncio
import time
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.client.schemas.objects import GlobalConcurrencyLimit

from prefect_mantik import turns
from prefect_mantik.ledger import FlowRunLedger, origin
from prefect_mantik.loop import acall
from prefect_mantik.runs import RunKey
from prefect_mantik.sites.notes import Contended, SubmitNote
from tests.conftest import PrefectServer


@pytest.fixture(autouse=True)
async def nobody_holds_a_slot(prefect_server: PrefectServer) -> None:
    """Processes that other tests killed hold theirs for a minute, and keys share sixty-four limits."""
    async with get_client() as client:
        for limit in await client.read_global_concurrency_limits():
            await client.delete_global_concurrency_limit_by_name(limit.name)


async def limit_of(site_key: str) -> GlobalConcurrencyLimit:
    async with get_client() as client:
        return await client.read_global_concurrency_limit_by_name(turns.limit_name(site_key))


async def in_turn(site_key: str, events: list[str], name: str, seconds: float = 0.5) -> None:
    async with turns.turn(site_key):
        events.append(f"{name} began")
        await asyncio.sleep(seconds)
        events.append(f"{name} ended")


async def test_one_after_another(prefect_server: PrefectServer) -> None:
    events: list[str] = []
    await asyncio.gather(*(acall(in_turn, "one after another", events, name) for name in "ab"))
    first, second = (event[0] for event in events[::2])
    assert first != second
    assert events == [f"{first} began", f"{first} ended", f"{second} began", f"{second} ended"]
    assert (await limit_of("one after another")).active_slots == 0


async def test_an_error_gives_the_slot_back_and_goes_on_up(prefect_server: PrefectServer) -> None:
    async def fail() -> None:
        async with turns.turn("an error"):
            raise ValueError("of the caller")

    with pytest.raises(ValueError, match="of the caller"):
        await acall(fail)
    assert (await limit_of("an error")).active_slots == 0


async def test_a_slot_that_is_never_given_back_costs_some_seconds(
    prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(turns, "PATIENCE", 1.0)
    name = turns.limit_name("never given back")
    await acall(in_turn, "never given back", [], "the first", 0)  # other keys share the limit: it may be there already
    async with get_client() as client:
        await client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(active_slots=1))
    began, events = time.monotonic(), list[str]()
    await acall(in_turn, "never given back", events, "a", 0)
    assert events == ["a began", "a ended"]
    assert time.monotonic() - began < 20
    assert f"Submitting without a slot of the limit {name} (it is held by another submit" in caplog.text
    async with get_client() as client:
        await client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(active_slots=0))


async def test_a_prefect_that_is_away_is_no_reason_to_stop(
    prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise OSError("no route to Prefect")

    monkeypatch.setattr(turns, "concurrency", gone)
    events: list[str] = []
    await acall(in_turn, "away", events, "a", 0)
    assert events == ["a began", "a ended"]
    assert "OSError: no route to Prefect" in caplog.text


@flow
def pipeline() -> None:
    """Only gives its name to a flow run."""


async def new_flow_run() -> UUID:
    async with get_client() as client:
        return (await client.create_flow_run(pipeline)).id


def note() -> SubmitNote:
    return SubmitNote(attempt=1, name="train", site_name="alder")


async def test_of_two_announcements_at_once_at_most_one_is_made(prefect_server: PrefectServer) -> None:
    """Without turns: Prefect merges labels by reading and writing, and the last of two writers may win."""
    for _ in range(5):
        root = await acall(new_flow_run)
        key = RunKey(name="train", origin=await acall(origin), root_flow_run_id=root)
        ledgers = [FlowRunLedger(root) for _ in range(3)]
        for ledger in ledgers:
            await acall(ledger.look_up, key)
        outcomes = await asyncio.gather(
            *(acall(ledger.open, key, note()) for ledger in ledgers), return_exceptions=True
        )
        assert sum(outcome is None for outcome in outcomes) <= 1
        assert all(outcome is None or isinstance(outcome, Contended) for outcome in outcomes)


async def test_what_was_announced_before_is_no_contention(prefect_server: PrefectServer) -> None:
    """A submit that was killed leaves its announcement; whoever saw it looks for its job, and may then announce."""
    root = await acall(new_flow_run)
    key = RunKey(name="train", origin=await acall(origin), root_flow_run_id=root)
    killed, late = FlowRunLedger(root), FlowRunLedger(root)
    await acall(late.look_up, key)
    await acall(killed.look_up, key)
    await acall(killed.open, key, note())
    with pytest.raises(Contended):
        await acall(late.open, key, note())
    seen, _ = await acall(late.look_up, key)
    assert seen is not None
    assert seen.pending
    await acall(late.open, key, note())
    await acall(late.close, key, "4711")
    after = (await acall(late.notes))[key.site_key]
    assert (after.pending, after.remote_id) == (False, "4711")
