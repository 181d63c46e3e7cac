"""When the card of progress is renewed, and that nothing there disturbs a wait; against a scripted artifact."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import Any
from uuid import uuid4

import pytest

from prefect_mantik.errors import NotSupported, ServiceUnavailable
from prefect_mantik.progress import Progress, card, progress_card, reading
from prefect_mantik.progress.card import Card
from prefect_mantik.runs import MetricValue, Reason, RunHandle, RunState, RunStatus
from prefect_mantik.sites.base import Site
from prefect_mantik.tracking import TrackedRun
from prefect_mantik.waiting.observing import Observed

NOW = datetime(2026, 11, 1, 12, tzinfo=timezone.utc)
SITE: Site = object()  # type: ignore[assignment]  # the card asks no site


class Clock:
    """Virtual time. Whoever sleeps goes on when a test has moved it that far."""

    def __init__(self) -> None:
        self.now = 0.0

    async def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:  # noqa: ASYNC110  # virtual time passes between two turns of the loop
            await asyncio.sleep(0)

    async def pass_(self, seconds: float) -> None:
        step = 1 if seconds < 60 else 10
        for _ in range(round(seconds / step)):
            self.now += step
            await settle()


async def settle() -> None:
    for _ in range(40):
        await asyncio.sleep(0)


class FakeArtifact:
    """Keeps what was saved and when, or fails."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.saved: list[tuple[float, str]] = []
        self.error: Exception | None = None
        self.tries = 0

    async def save(self, markdown: str) -> None:
        self.tries += 1
        await asyncio.sleep(0)
        if self.error:
            raise self.error
        self.saved.append((self.clock.now, markdown))

    @property
    def text(self) -> str:
        return self.saved[-1][1]

    @property
    def pauses(self) -> list[float]:
        times = [time for time, _ in self.saved]
        return [after - before for before, after in itertools.pairwise(times)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    made = Clock()
    monkeypatch.setattr(card, "sleep", made.sleep)
    monkeypatch.setattr(card, "monotonic", lambda: made.now)
    yield made
    made.now = math.inf  # whoever sleeps still wakes up


@pytest.fixture
def artifact(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> FakeArtifact:
    made = FakeArtifact(clock)
    monkeypatch.setattr(card, "ProgressArtifact", lambda _: made)
    return made


@pytest.fixture(autouse=True)
def fresh_cards() -> Iterator[None]:
    card._cards().clear()
    yield
    card._cards().clear()


def handle(number: int = 0, **more: Any) -> RunHandle:
    name = f"train-{number}"
    return RunHandle(
        **{
            "site": "s/a",
            "site_name": "alder",
            "kind": "mantik",
            "remote_id": name,
            "site_key": "pm",
            "name": name,
            **more,
        }
    )


def status(state: str = "RUNNING", **more: Any) -> RunStatus:
    return RunStatus(state=RunState(state), observed_at=NOW, **more)


def seen(*states: str | None, first: int = 0, **more: Any) -> dict[RunHandle, Observed]:
    return {
        handle(number): Observed(SITE, status(state, **more) if state else None)
        for number, state in enumerate(states, first)
    }


async def look_for(
    clock: Clock, wait: Progress, runs: Mapping[RunHandle, Observed], seconds: float, every: int = 1
) -> None:
    for _ in range(round(seconds / every)):
        await wait.look(runs)
        await clock.pass_(every)


async def test_without_a_change_it_is_renewed_once_a_minute_and_ever_rarer(
    clock: Clock, artifact: FakeArtifact
) -> None:
    wait = Progress(Card(uuid4()))
    await look_for(clock, wait, seen("RUNNING"), 600)
    assert [60 <= pause <= 62 for pause in artifact.pauses] == [True] * 9
    await look_for(clock, wait, seen("RUNNING"), 36_000, every=60)
    assert len(artifact.saved) < 200  # of 610 minutes
    assert max(artifact.pauses) <= 670
    await wait.close(seen("FINISHED"))


async def test_changes_are_shown_soon_and_together(clock: Clock, artifact: FakeArtifact) -> None:
    wait = Progress(Card(uuid4()))
    await wait.look(seen("SCHEDULED", "SCHEDULED"))
    await settle()
    assert [time for time, _ in artifact.saved] == [0]
    await clock.pass_(1)
    await wait.look(seen("RUNNING", "SCHEDULED"))
    await clock.pass_(1)
    await wait.look(seen("RUNNING", "RUNNING"))
    await clock.pass_(10)
    assert len(artifact.saved) == 2
    assert artifact.pauses[0] <= 7
    assert "2 running" in artifact.text
    assert "queued" not in artifact.text


async def test_what_flaps_does_not_flood(clock: Clock, artifact: FakeArtifact) -> None:
    wait = Progress(Card(uuid4()))
    for number in range(300):
        await wait.look(seen(("RUNNING", "SCHEDULED")[number % 2]))
        await clock.pass_(1)
    assert min(artifact.pauses) >= card.SOONEST
    assert len(artifact.saved) <= 60


async def test_a_large_card_is_renewed_less_often(clock: Clock, artifact: FakeArtifact) -> None:
    wait = Progress(Card(uuid4()))
    for number in range(120):
        await wait.look(seen(*[("RUNNING", "SCHEDULED")[number % 2]] * 100))
        await clock.pass_(1)
    assert min(artifact.pauses) >= card.SOONEST + len(artifact.text) / 1024 - 1


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"site_word": "COMPLETING"}, True),
        ({"reason": Reason.STUCK, "message": "held"}, True),
        ({"message": "position 7 in the queue"}, False),
    ],
)
async def test_which_changes_are_shown_at_once(
    clock: Clock, artifact: FakeArtifact, change: dict[str, Any], shown: bool
) -> None:
    wait = Progress(Card(uuid4()))
    await look_for(clock, wait, seen("SCHEDULED"), 20)
    await look_for(clock, wait, seen("SCHEDULED", **change), 20)
    assert len(artifact.saved) == (2 if shown else 1)


async def test_a_close_writes_the_final_states_at_once(clock: Clock, artifact: FakeArtifact) -> None:
    wait = Progress(Card(uuid4()))
    await wait.look(seen("RUNNING"))
    await settle()
    await wait.look(seen("FINISHED"))  # its update is still to come
    await wait.close(seen("FINISHED"))
    assert len(artifact.saved) == 2
    assert "1 finished" in artifact.text
    await clock.pass_(120)
    assert len(artifact.saved) == 2


async def test_a_wait_that_gave_up_says_so(clock: Clock, artifact: FakeArtifact) -> None:
    wait = Progress(Card(uuid4()))
    await wait.look(seen("RUNNING"))
    await wait.close(seen("RUNNING"))
    assert "RUNNING, not waited for any more" in artifact.text


async def test_many_waits_share_a_card(clock: Clock, artifact: FakeArtifact) -> None:
    shared = Card(uuid4())
    waits = [Progress(shared) for _ in range(20)]
    await asyncio.gather(*(wait.look(seen("RUNNING", first=number)) for number, wait in enumerate(waits)))
    await clock.pass_(20)
    assert len(artifact.saved) <= 2
    assert "**20 training runs**: 20 running." in artifact.text
    before = len(artifact.saved)
    await asyncio.gather(*(wait.close(seen("FINISHED", first=number)) for number, wait in enumerate(waits)))
    assert len(artifact.saved) <= before + 2
    assert "**20 training runs**: 20 finished." in artifact.text
    assert not shared.is_open


async def test_a_later_wait_adds_to_the_card(clock: Clock, artifact: FakeArtifact) -> None:
    shared = Card(uuid4())
    for number in range(3):
        wait = Progress(shared)
        await wait.look(seen("RUNNING", first=number))
        await wait.close(seen("FINISHED", first=number))
    assert "**3 training runs**: 3 finished." in artifact.text


async def test_prefect_away_is_said_once_and_tried_again(
    clock: Clock, artifact: FakeArtifact, caplog: pytest.LogCaptureFixture
) -> None:
    wait, artifact.error = Progress(Card(uuid4())), OSError("refused")
    with caplog.at_level(logging.INFO):
        await look_for(clock, wait, seen("SCHEDULED"), 300)
        await look_for(clock, wait, seen("RUNNING"), 300)
        assert 5 <= artifact.tries <= 12
        artifact.error = None
        await look_for(clock, wait, seen("RUNNING"), 70)
    assert "1 running" in artifact.text
    lines = [record.message for record in caplog.records if "card of progress" in record.message]
    assert len(lines) == 2
    assert lines[0].endswith("tried again. Prefect: refused")


async def test_the_last_update_is_tried_again(clock: Clock, artifact: FakeArtifact) -> None:
    wait, artifact.error = Progress(Card(uuid4())), OSError("refused")
    closing = asyncio.ensure_future(wait.close(seen("FINISHED")))
    await clock.pass_(1)
    artifact.error = None
    await clock.pass_(5)
    await closing
    assert "1 finished" in artifact.text


async def test_a_prefect_that_never_answers_holds_nothing_up(
    clock: Clock, artifact: FakeArtifact, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def hang(_: str) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(artifact, "save", hang)
    monkeypatch.setattr(card, "DEADLINE", 0.05)
    monkeypatch.setattr(card, "LAST_TRIES", (0.0,))
    wait = Progress(Card(uuid4()))
    await asyncio.wait_for(wait.look(seen("RUNNING")), 0.05)
    await asyncio.wait_for(wait.close(seen("FINISHED")), 5)
    assert [record for record in caplog.records if "no answer within" in record.message]


async def test_only_so_many_runs_are_remembered(
    clock: Clock, artifact: FakeArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card, "MOST_RUNS", 5)
    shared = Card(uuid4())
    for number in range(8):
        wait = Progress(shared)
        await wait.look(seen("RUNNING", first=number))
        await wait.close(seen("FINISHED", first=number))
    wait = Progress(shared)
    await wait.close(seen(*["FINISHED"] * 7, first=20))
    assert "**7 training runs**" in artifact.text  # those of the wait itself are never forgotten
    assert "8 more ended earlier." in artifact.text


def test_outside_of_a_flow_run_there_is_no_card() -> None:
    assert progress_card() is None


async def test_waits_of_one_flow_run_get_one_card_and_closed_ones_are_forgotten(
    clock: Clock, artifact: FakeArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [uuid4() for _ in range(30)]
    for id in ids:
        monkeypatch.setenv("PREFECT__FLOW_RUN_ID", str(id))
        first, second = progress_card(), progress_card()
        assert first is not None
        assert second is not None
        assert first._card is second._card
        await first.look(seen("RUNNING"))
        await first.close(seen("FINISHED"))
    assert list(card._cards()) == ids[-card.CLOSED_CARDS - 1 :]


# --- What was logged ------------------------------------------------------------------------------------------------


class FakeTracking:
    """A tracking account that counts its searches."""

    def __init__(self) -> None:
        self.searches: list[list[str]] = []
        self.error: Exception | None = None
        self.value = 0.5

    async def runs_by_id(self, ids: list[str], experiments: list[str], *, timeout: float) -> dict[str, TrackedRun]:
        self.searches.append(sorted(ids))
        if self.error:
            raise self.error
        metric = MetricValue(value=self.value, step=3, time=NOW)
        return {
            id: TrackedRun(run_id=id, experiment_id="1", metrics={"loss": metric}, parameters={"epochs": "10"}, tags={})
            for id in ids
        }


@pytest.fixture
def trackings(monkeypatch: pytest.MonkeyPatch) -> dict[str | None, FakeTracking]:
    accounts: dict[str | None, FakeTracking] = {"one": FakeTracking(), "two": FakeTracking()}

    async def tracking_of(run: RunHandle) -> FakeTracking:
        if run.account not in accounts:
            raise NotSupported("its account is not saved")
        return accounts[run.account]

    monkeypatch.setattr(reading, "tracking_of", tracking_of)
    return accounts


def at_work(account: str | None, *states: str) -> dict[RunHandle, RunStatus | None]:
    return {
        handle(number, remote_id=f"{account}-{number}", account=account, mlflow_run_id=f"{account}-{number}"): status(
            state
        )
        for number, state in enumerate(states)
    }


async def test_one_search_for_each_account(trackings: dict[str | None, FakeTracking]) -> None:
    known = reading.LastLogged()
    runs = {
        **at_work("one", *["RUNNING"] * 90, "SCHEDULED"),
        **at_work("two", "RUNNING", "FINISHED"),
        **at_work(None, "RUNNING"),
        handle(7): status(),
    }
    await known.refresh(runs)
    assert [len(found) for found in trackings["one"].searches] == [90]
    assert trackings["two"].searches == [["two-0", "two-1"]]
    told = [known.of(run) for run in runs]
    assert [logged and (logged.metric, logged.step) for logged in told].count(("loss", "3 of 10")) == 92
    assert told.count(None) == 3
    await known.refresh(runs)
    assert trackings["two"].searches[1] == ["two-0"]  # what has ended logs no more


@pytest.mark.parametrize("error", [ServiceUnavailable("away"), KeyError("run_id"), ValueError("odd")])
async def test_mlflow_away_shows_what_was_known(trackings: dict[str | None, FakeTracking], error: Exception) -> None:
    known, runs = reading.LastLogged(), {**at_work("one", "RUNNING"), **at_work("two", "RUNNING")}
    trackings["one"].error = error
    await known.refresh(runs)
    assert [known.of(run) is None for run in runs] == [True, False]
    trackings["one"].error, trackings["two"].error = None, error
    await known.refresh(runs)
    assert [known.of(run) is None for run in runs] == [False, False]


async def test_mlflow_that_hangs_holds_no_update_up(
    trackings: dict[str | None, FakeTracking], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(*_: Any, **__: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(trackings["one"], "runs_by_id", hang)
    monkeypatch.setattr(reading, "DEADLINE", 0.05)
    await asyncio.wait_for(reading.LastLogged().refresh(at_work("one", "RUNNING")), 5)
