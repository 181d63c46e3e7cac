"""The card of progress at a real Prefect server: one for each flow run, whoever waits and whatever went before."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import pytest
from prefect import flow, task
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_mantik import submit_runs, wait_for_runs
from prefect_mantik.loop import acall, call
from prefect_mantik.progress import Progress, artifact, card, progress_card
from prefect_mantik.progress.artifact import PROGRESS_KEY
from prefect_mantik.runs import RunHandle, RunState, RunStatus
from prefect_mantik.sandbox.process import SandboxProcess
from prefect_mantik.waiting.observing import Observed
from tests.conftest import PrefectServer
from tests.test_reports import Table

SITE: Any = object()


@pytest.fixture(autouse=True)
def fresh_cards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(card, "SOONEST", 0.2)
    card._cards().clear()
    yield
    card._cards().clear()


def seen(state: str, name: str = "train-0") -> dict[RunHandle, Observed]:
    handle = RunHandle(site="s/a", site_name="alder", kind="mantik", remote_id=name, site_key="pm", name=name)
    return {handle: Observed(SITE, RunStatus(state=RunState(state), observed_at=datetime.now(timezone.utc)))}


async def a_wait(name: str = "train-0", pause: float = 0.3) -> None:
    wait = progress_card()
    assert wait is not None
    await wait.look(seen("SCHEDULED", name))
    await asyncio.sleep(pause)
    await wait.look(seen("RUNNING", name))
    await asyncio.sleep(pause)
    await wait.close(seen("FINISHED", name))


async def restarted_wait(name: str = "train-0") -> None:
    card._cards().clear()
    await a_wait(name, pause=0)


def cards(server: PrefectServer, flow_run_id: str) -> list[dict[str, Any]]:
    body = {"artifacts": {"flow_run_id": {"any_": [flow_run_id]}, "key": {"any_": [PROGRESS_KEY]}}}
    found: list[dict[str, Any]] = server.request("POST", "/artifacts/filter", body)
    return found


def in_a_flow(*waits: Callable[[], Awaitable[None]], together: bool = False) -> str:
    """Run waits in a flow, one after another or at once; give the id of its run."""

    async def all_of_them() -> None:
        if together:
            await asyncio.gather(*(wait() for wait in waits))
        else:
            for wait in waits:
                await wait()

    @flow
    def waits_for_runs() -> str:
        call(all_of_them)
        return str(flow_run.id)

    return waits_for_runs()


def test_one_card_for_waits_one_after_another(prefect_server: PrefectServer) -> None:
    id = in_a_flow(lambda: a_wait("one"), lambda: a_wait("two"))
    (found,) = cards(prefect_server, id)
    assert found["type"] == "markdown"
    assert found["data"].startswith("**2 training runs**: 2 finished.")


def test_one_card_for_waits_at_once(prefect_server: PrefectServer) -> None:
    id = in_a_flow(*[lambda number=number: a_wait(f"train-{number}") for number in range(12)], together=True)  # type: ignore[misc]
    (found,) = cards(prefect_server, id)
    assert found["data"].startswith("**12 training runs**: 12 finished.")


def test_one_card_for_waits_in_tasks(prefect_server: PrefectServer) -> None:
    @task
    async def waits(name: str) -> None:
        await acall(a_wait, name)

    @flow
    def waits_in_tasks() -> str:
        waits.map(["one", "two", "three"]).result()
        return str(flow_run.id)

    (found,) = cards(prefect_server, waits_in_tasks())
    assert found["data"].startswith("**3 training runs**: 3 finished.")
    assert found["task_run_id"] is None


def test_found_again_after_a_restart(prefect_server: PrefectServer) -> None:
    id = in_a_flow(lambda: a_wait("before"), lambda: restarted_wait("after"))
    (found,) = cards(prefect_server, id)
    assert "after" in found["data"]


def test_each_flow_run_has_its_own(prefect_server: PrefectServer) -> None:
    first, second = in_a_flow(lambda: a_wait("one")), in_a_flow(lambda: a_wait("two"))
    assert ["one" in found["data"] for found in cards(prefect_server, first)] == [True]
    assert ["two" in found["data"] for found in cards(prefect_server, second)] == [True]


@pytest.mark.parametrize("blind", [2, 4], ids=["each looks before", "each looks before and after"])
def test_two_processes_at_the_same_moment_keep_one(
    prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch, blind: int
) -> None:
    """Each looks before the other's card can be seen."""
    looks = 0
    look = artifact.ProgressArtifact._only

    async def nothing_yet(self: artifact.ProgressArtifact, client: Any) -> Any:
        nonlocal looks
        looks += 1
        return None if looks <= blind else await look(self, client)

    monkeypatch.setattr(artifact.ProgressArtifact, "_only", nothing_yet)

    async def both() -> None:
        id = progress_card()._card._artifact._flow_run_id  # type: ignore[union-attr]
        one, other = Progress(card.Card(id)), Progress(card.Card(id))
        await asyncio.gather(one.close(seen("FINISHED", "one")), other.close(seen("FINISHED", "two")))
        await one.close(seen("FINISHED", "again"))

    (found,) = cards(prefect_server, in_a_flow(both))
    assert "again" in found["data"]


def test_a_card_that_somebody_deleted_is_made_anew(prefect_server: PrefectServer) -> None:
    async def deleted() -> None:
        wait = progress_card()
        assert wait is not None
        await wait.close(seen("RUNNING"))
        (found,) = await asyncio.to_thread(cards, prefect_server, str(flow_run.id))
        await asyncio.to_thread(prefect_server.request, "DELETE", f"/artifacts/{found['id']}")
        await wait.close(seen("FINISHED"))

    (found,) = cards(prefect_server, in_a_flow(deleted))
    assert "1 finished" in found["data"]


def test_prefect_away_and_back(prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "LAST_TRIES", (0.0,))

    async def away() -> None:
        wait = progress_card()
        assert wait is not None
        with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
            await wait.look(seen("RUNNING"))
            await asyncio.wait_for(wait.close(seen("RUNNING")), 15)
        await wait.close(seen("FINISHED"))

    (found,) = cards(prefect_server, in_a_flow(away))
    assert "1 finished" in found["data"]


@pytest.mark.timeout(300)  # the sandbox may have to be started
def test_the_card_shows_what_trainings_really_logged(sandbox: SandboxProcess, prefect_server: PrefectServer) -> None:
    @flow
    def trains() -> str:
        runs = submit_runs({name: f"train-{name}" for name in ("alder", "birch")}, parameters={"epochs": 3})
        results = wait_for_runs(runs)

        async def shown() -> None:
            wait = progress_card()
            assert wait is not None
            await wait.close({result.handle: Observed(SITE, result.status) for result in results})

        call(shown)
        return str(flow_run.id)

    (found,) = cards(prefect_server, trains())
    rows = [line for line in Table(found["data"]).rows if len(line) == 9]
    assert [row[1] for row in rows[1:]] == ["alder", "birch"]
    for row in rows[1:]:
        shown = dict(zip(rows[0], row, strict=True))
        assert shown["last metric"].startswith("val_loss 0."), shown
        assert shown["step"] == "2\u00a0of\u00a03"
        assert shown["ran"] != "-"
    assert found["data"].count("](http") == 2
