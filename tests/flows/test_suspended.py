"""What people see of a flow run while it is suspended: its log goes on, and its card."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client

from prefect_mantik import RunHandle, submit_run
from prefect_mantik.lifecycle.suspended import SuspendedFlowRun
from prefect_mantik.lifecycle.watcher import Watched, Watcher
from prefect_mantik.loop import call
from prefect_mantik.progress.artifact import PROGRESS_KEY
from prefect_mantik.runs import Reason, RunState, RunStatus
from prefect_mantik.sandbox.process import SandboxProcess
from prefect_mantik.sites.opening import site_of
from prefect_mantik.waiting.rounds import Round
from tests.conftest import PrefectServer
from tests.flows.conftest import kept_handles
from tests.flows.test_verbs import sleeper

pytestmark = pytest.mark.timeout(180)


def lines_of(server: PrefectServer, id: UUID) -> list[str]:
    wanted = {"logs": {"flow_run_id": {"any_": [str(id)]}}, "limit": 200}
    return [entry["message"] for entry in server.request("POST", "/logs/filter", wanted)]


def cards_of(server: PrefectServer, id: UUID) -> list[str]:
    wanted = {"artifacts": {"flow_run_id": {"any_": [str(id)]}, "key": {"any_": [PROGRESS_KEY]}}}
    return [found["data"] for found in server.request("POST", "/artifacts/filter", wanted)]


def until(what: str, true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.3)


@flow
def submits(seconds: float) -> RunHandle:
    return submit_run(sleeper("birch", seconds), key="long")


def test_the_log_tells_changes_and_the_card_all_of_it(
    sandbox: SandboxProcess, prefect_server: PrefectServer, suspended: Callable[..., UUID]
) -> None:
    id = suspended("mantik-a-1", kept_handles([submits(300)]))
    [job] = sandbox.control.jobs(live=True)
    until("it runs", lambda: sandbox.control.jobs(live=True)[0]["state"] == "RUNNING")
    watcher = Watcher()

    def ended() -> bool:
        seen = call(watcher.watch)
        assert isinstance(seen, Watched)
        return id in [each.id for each in seen.resumed]

    try:
        assert not ended()
        until("there is a card", lambda: cards_of(prefect_server, id))
        assert "1 running" in cards_of(prefect_server, id)[0]
        sandbox.control.end_job(job["id"], "FAILED")
        until("it is resumed", ended)
    finally:
        call(watcher.leave)
    (card,) = cards_of(prefect_server, id)
    assert "1 failed" in card
    until("it is told", lambda: any("at birch: FAILED" in line for line in lines_of(prefect_server, id)))
    assert not any("RUNNING" in line for line in lines_of(prefect_server, id))  # it was found so


def test_what_will_not_start_is_said_by_each_process_of_the_watcher_and_once_in_the_log(
    sandbox: SandboxProcess, prefect_server: PrefectServer, suspended: Callable[..., UUID]
) -> None:
    handle = submits(300)
    id = suspended("mantik-a-1", kept_handles([handle]))
    waits = RunStatus(state=RunState.SCHEDULED, site_word="PENDING", observed_at=datetime.now(timezone.utc))
    stuck = waits.model_copy(update={"reason": Reason.STUCK, "message": "over the limit of its partition"})

    async def shown(*statuses: RunStatus) -> list[str]:
        async with get_client() as client:
            view = SuspendedFlowRun(await client.read_flow_run(id))
        for status in statuses:
            await view.show([handle], Round({handle: status}, {handle: await site_of(handle)}))
        await view.leave()
        return view.stuck()

    words = f"{handle.describe()} will not start by itself: over the limit of its partition"
    assert call(one_after_another, shown, [(waits, stuck), (stuck, stuck)]) == [[words], [words]]
    until("it is told", lambda: lines_of(prefect_server, id))
    assert lines_of(prefect_server, id) == [words]


def test_what_cannot_be_shown_is_said_and_resumed_all_the_same(
    sandbox: SandboxProcess, suspended: Callable[..., UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = submits(0.1)
    id = suspended("mantik-a-1", kept_handles([handle]))

    async def broken(*_: Any) -> None:
        raise RuntimeError("no such colour")

    monkeypatch.setattr(SuspendedFlowRun, "show", broken)
    monkeypatch.setattr(SuspendedFlowRun, "leave", broken)
    watcher, seen = Watcher(), list[Watched]()

    def resumed() -> bool:
        seen.append(call(watcher.watch))
        return id in [each.id for each in seen[-1].resumed]

    until("it is resumed", resumed)
    call(watcher.leave)
    assert any(
        str(id) in words and "cannot be shown. RuntimeError: no such colour" in words for words in seen[0].troubles
    )


def test_a_card_that_prefect_does_not_take_holds_up_no_flow_run(
    sandbox: SandboxProcess, suspended: Callable[..., UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = submits(0.1)
    id = suspended("mantik-a-1", kept_handles([handle]))

    async def hangs(*_: Any) -> None:
        await asyncio.sleep(1000)

    monkeypatch.setattr("prefect_mantik.lifecycle.suspended.LAST_WORDS", 0.5)
    monkeypatch.setattr(SuspendedFlowRun, "leave", hangs)
    watcher = Watcher()
    until("it is resumed", lambda: id in [each.id for each in call(watcher.watch).resumed])
    call(watcher.leave)


def test_signs_of_life_are_few(
    sandbox: SandboxProcess, suspended: Callable[..., UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the first minutes, in which a last heartbeat may come; then once for each process of the watcher."""
    suspended("mantik-a-1", kept_handles([submits(300)]))
    signs: list[str] = []
    monkeypatch.setattr("prefect_mantik.lifecycle.watcher.emit_event", lambda name, **_: signs.append(name))
    for late, count in ((timedelta(minutes=10), 3), (timedelta(0), 1)):
        monkeypatch.setattr("prefect_mantik.lifecycle.watcher.LATE_HEARTBEAT", late)
        signs.clear()
        watcher = Watcher()
        for _ in range(3):
            call(watcher.watch)
        call(watcher.leave)
        assert len(signs) == count


async def one_after_another(work: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> list[Any]:
    return [await work(*each) for each in arguments]
