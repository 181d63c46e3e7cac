"""What a wait says and when it ends, against a site that a test scripts: hours pass in no time."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from prefect_mantik.errors import BlockInvalid, SiteSilent, WaitTimeout
from prefect_mantik.runs import Reason, RunHandle, RunState, RunStatus
from prefect_mantik.sites.base import Site
from prefect_mantik.waiting import waits, watching
from prefect_mantik.waiting.waits import wait_until_ended
from tests.virtual_clock import START, VirtualClock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualClock:
    return VirtualClock().install(monkeypatch)


class ScriptedSite(Site):
    """Answers a status by the time that has passed."""

    kind = "mantik"
    reference, name, settle = "mantik-site/alder", "alder", 1.0
    capabilities = frozenset()

    def __init__(
        self, clock: VirtualClock, script: dict[float, RunStatus | str], account: str = "one", **attributes: Any
    ) -> None:
        self.clock, self.script, self._account, self.polls = clock, script, account, 0
        self.asked_at: list[float] = []
        for attribute, value in attributes.items():
            setattr(self, attribute, value)

    @property
    def account(self) -> str:
        return self._account

    @property
    def gaps(self) -> list[float]:
        """Seconds between two polls."""
        return [after - before for before, after in itertools.pairwise(self.asked_at)]

    async def ask(self, handles: Sequence[RunHandle]) -> dict[RunHandle, RunStatus]:
        self.polls += 1
        self.asked_at.append(self.clock.now)
        now = [said for at, said in sorted(self.script.items()) if at <= self.clock.now][-1]
        return {handle: self._status(now) for handle in handles}

    def _status(self, said: RunStatus | str) -> RunStatus:
        if isinstance(said, RunStatus):
            return said
        state = RunState(said)
        return RunStatus(
            state=state,
            queued_at=START,
            ended_at=self.clock.time() if state.is_end else None,
            observed_at=self.clock.time(),
        )

    async def post(self, *_: Any) -> None:
        raise AssertionError

    find = list = cancel = read_log = check = post  # type: ignore[assignment]


ScriptedSite.__abstractmethods__ = frozenset()


def handle(number: int = 0) -> RunHandle:
    return RunHandle(
        site="mantik-site/alder",
        site_name="alder",
        kind="mantik",
        remote_id=str(number),
        site_key="pm",
        name=f"train-{number}",
        links={"MLflow": f"http://mlflow/{number}"},
    )


async def no_reopen(_: RunHandle) -> Site:
    raise AssertionError("nothing to reopen")


def unknown(why: str, reason: Reason | None = None) -> RunStatus:
    return RunStatus(state=RunState.UNKNOWN, site_word=why, reason=reason, observed_at=START)


async def test_only_changes_are_logged_with_queue_and_run_times(
    clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    site = ScriptedSite(clock, {0: "SCHEDULED", 90: "RUNNING", 4000: "FINISHED"})
    with caplog.at_level(logging.INFO):
        statuses = await wait_until_ended({handle(): site}, reopen=no_reopen)
    lines = [record.message for record in caplog.records]
    assert len(lines) == 3
    assert lines[0] == "training run 'train-0' at alder: SCHEDULED"
    assert lines[1].startswith("training run 'train-0' at alder: RUNNING, waited 1 min")
    assert lines[2].startswith("training run 'train-0' at alder: FINISHED after 1 h 0")
    assert statuses[handle()].state is RunState.FINISHED


async def test_the_interval_grows_to_a_minute(clock: VirtualClock) -> None:
    site = ScriptedSite(clock, {0: "RUNNING", 3600: "FINISHED"})
    await wait_until_ended({handle(): site}, reopen=no_reopen)
    assert 4.5 <= min(site.gaps) < 6
    assert 54 < max(site.gaps) <= 66
    assert site.polls < 100


async def test_runs_of_one_account_share_a_poll(clock: VirtualClock) -> None:
    site = ScriptedSite(clock, {0: "RUNNING", 600: "FINISHED"})
    other = ScriptedSite(clock, {0: "RUNNING", 600: "FINISHED"}, account="two")
    runs = {handle(number): site for number in range(50)} | {handle(50): other}
    statuses = await wait_until_ended(runs, reopen=no_reopen)
    assert len(statuses) == 51
    assert site.polls < 120
    assert other.polls < 120


async def test_hours_of_outage_are_ridden_out_with_two_lines(
    clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    site = ScriptedSite(
        clock, {0: "RUNNING", 600: unknown("GET /x: no answer."), 6 * 3600: "RUNNING", 7 * 3600: "FINISHED"}
    )
    with caplog.at_level(logging.INFO):
        statuses = await wait_until_ended({handle(): site}, reopen=no_reopen)
    lines = [record.message for record in caplog.records]
    assert statuses[handle()].state is RunState.FINISHED
    assert len(lines) == 4
    assert "state unknown. GET /x: no answer. The job is not touched" in lines[1]
    assert "can be asked again after" in lines[2]


async def test_a_requeued_run_may_go_backwards(clock: VirtualClock, caplog: pytest.LogCaptureFixture) -> None:
    site = ScriptedSite(clock, {0: "RUNNING", 60: "SCHEDULED", 120: "RUNNING", 180: "FINISHED"})
    with caplog.at_level(logging.INFO):
        await wait_until_ended({handle(): site}, reopen=no_reopen)
    assert [record.message.split(": ")[1].split()[0].strip(",") for record in caplog.records] == [
        "RUNNING",
        "SCHEDULED",
        "RUNNING",
        "FINISHED",
    ]


async def test_a_refused_login_pauses_until_the_block_changes(
    clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    locked = ScriptedSite(clock, {0: unknown("login refused", Reason.PAUSED)})
    unlocked = ScriptedSite(clock, {0: "FINISHED"}, account="with the new password")
    reopened: list[float] = []

    async def reopen(_: RunHandle) -> Site:
        reopened.append(clock.now)
        return unlocked if clock.now > 250 else locked

    with caplog.at_level(logging.INFO):
        statuses = await wait_until_ended({handle(): locked}, reopen=reopen)
    assert statuses[handle()].state is RunState.FINISHED
    assert len([record for record in caplog.records if "login refused" in record.message]) == 1
    assert len(reopened) > 3


async def test_no_sign_of_life_warns_once_and_goes_on(clock: VirtualClock, caplog: pytest.LogCaptureFixture) -> None:
    site = ScriptedSite(clock, {0: "RUNNING", 9000: "FINISHED"}, silence_warning=1800.0)
    await wait_until_ended({handle(): site}, reopen=no_reopen)
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "no sign of life for 1" in warnings[0]
    assert "http://mlflow/0" in warnings[0]


async def test_metrics_are_signs_of_life(clock: VirtualClock, caplog: pytest.LogCaptureFixture) -> None:
    script: dict[float, RunStatus | str] = {
        float(at): RunStatus(state=RunState.RUNNING, observed_at=START, life_at=START + timedelta(seconds=at))
        for at in range(0, 9000, 900)
    }
    site = ScriptedSite(clock, {**script, 9000: "FINISHED"}, silence_warning=1800.0)
    await wait_until_ended({handle(): site}, reopen=no_reopen)
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == []


async def test_an_outage_is_no_silence(clock: VirtualClock, caplog: pytest.LogCaptureFixture) -> None:
    script: dict[float, RunStatus | str] = {0: "RUNNING", 300: unknown("down"), 8000: "RUNNING", 8500: "FINISHED"}
    site = ScriptedSite(clock, script, silence_warning=1800.0, silence_limit=3600.0)
    statuses = await wait_until_ended({handle(): site}, reopen=no_reopen)
    assert statuses[handle()].state is RunState.FINISHED
    assert not [record for record in caplog.records if "no sign of life" in record.message]


async def test_a_site_that_cannot_be_reopened_is_no_end(clock: VirtualClock, caplog: pytest.LogCaptureFixture) -> None:
    locked = ScriptedSite(clock, {0: unknown("login refused", Reason.PAUSED)})

    async def reopen(_: RunHandle) -> Site:
        if clock.now < 300:
            raise BlockInvalid("the password is only asterisks")
        return ScriptedSite(clock, {0: "FINISHED"})

    statuses = await wait_until_ended({handle(): locked}, reopen=reopen)
    assert statuses[handle()].state is RunState.FINISHED
    assert len([record for record in caplog.records if "only asterisks" in record.message]) == 1


async def test_silence_of_one_does_not_lose_the_others(clock: VirtualClock) -> None:
    silent = ScriptedSite(clock, {0: "RUNNING"}, silence_limit=3600.0)
    busy = ScriptedSite(clock, {0: "RUNNING", 20_000: "FINISHED"}, account="two")
    with pytest.raises(SiteSilent) as caught:
        await wait_until_ended({handle(0): silent, handle(1): busy}, reopen=no_reopen)
    assert caught.value.handles == [handle(0)]
    assert clock.now >= 20_000


async def test_a_timeout_of_nothing_still_asks_once() -> None:
    site = ScriptedSite(VirtualClock(), {0: "FINISHED"})
    assert len(await wait_until_ended({handle(): site}, reopen=no_reopen, timeout=0)) == 1


def test_an_outage_that_begins_and_ends_before_it_is_looked_at_is_none(caplog: pytest.LogCaptureFixture) -> None:
    one = watching.Watched(handle(), ScriptedSite(VirtualClock(), {}))
    away = RunStatus(state=RunState.UNKNOWN, site_word="no connection", observed_at=START)
    running = RunStatus(state=RunState.RUNNING, observed_at=START)
    watching.take([(one, away), (one, running)], [one])
    assert one.unknown_since is None
    assert "unknown" not in caplog.text
    watching.take([(one, running), (one, away)], [one])
    assert one.unknown_since is not None


async def test_the_silence_limit_stops_and_asks(clock: VirtualClock) -> None:
    site = ScriptedSite(clock, {0: "RUNNING"}, silence_limit=3600.0)
    with pytest.raises(SiteSilent, match="no sign of life for .* the job was left alone") as caught:
        await wait_until_ended({handle(): site}, reopen=no_reopen)
    assert caught.value.handles == [handle()]


async def test_a_timeout_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "ONE_ROUND", 0.1)
    clock = VirtualClock()
    done, running = ScriptedSite(clock, {0: "FINISHED"}), ScriptedSite(clock, {0: "RUNNING"}, account="two")
    began = time.monotonic()
    with pytest.raises(WaitTimeout, match="1 of 2 training runs had not ended after 0 s: ") as caught:
        await wait_until_ended({handle(0): done, handle(1): running}, reopen=no_reopen, timeout=0.3)
    assert caught.value.handles == [handle(1)]
    assert time.monotonic() - began < 5


async def test_a_run_that_will_not_start_is_said_once_for_each_cause(
    clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    def stuck(why: str) -> RunStatus:
        return RunStatus(state=RunState.SCHEDULED, reason=Reason.STUCK, message=why, observed_at=START)

    site = ScriptedSite(
        clock, {0: "SCHEDULED", 60: stuck("it is held."), 7200: stuck("too long."), 9000: "RUNNING", 9100: "FINISHED"}
    )
    with caplog.at_level(logging.WARNING):
        await wait_until_ended({handle(): site}, reopen=no_reopen)
    assert [record.message.partition(": ")[2] for record in caplog.records] == ["it is held.", "too long."]
