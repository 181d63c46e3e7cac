"""What a site does for runs that somebody waits for: a wait lets it, and is never ended or held up by it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from prefect_mantik.errors import ConfigurationError, LoginRefused, ServiceUnavailable
from prefect_mantik.runs import Reason, RunHandle, RunState, RunStatus
from prefect_mantik.sites.base import Site
from prefect_mantik.waiting import tending, waits
from prefect_mantik.waiting.waits import wait_until_ended
from tests.test_waiting import ScriptedSite, handle, no_reopen
from tests.virtual_clock import START, VirtualClock

Tend = Callable[[Mapping[RunHandle, RunStatus]], Awaitable[float | None]]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualClock:
    return VirtualClock().install(monkeypatch)


def site_that(tend: Tend, clock: VirtualClock, script: dict[float, RunStatus | str], **attributes: Any) -> ScriptedSite:
    return ScriptedSite(clock, script, tend=tend, **attributes)


def again_after(seconds: float | None) -> Tend:
    async def tend(_: Mapping[RunHandle, RunStatus]) -> float | None:
        return seconds

    return tend


def raising(*errors: Exception) -> Tend:
    """One after another, the last one for ever."""
    left = list(errors)

    async def tend(_: Mapping[RunHandle, RunStatus]) -> float | None:
        raise left.pop(0) if len(left) > 1 else left[0]

    return tend


async def hanging(_: Mapping[RunHandle, RunStatus]) -> float | None:
    await asyncio.Event().wait()
    return None


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    "error",
    [
        ServiceUnavailable("no token now"),
        LoginRefused("the password is another one"),
        ConfigurationError("the block is gone"),
        KeyError("what nobody thought of"),
        OSError(28, "No space left on device"),
        TimeoutError(),
        AssertionError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_help_that_fails_ends_no_wait_and_is_said_once(
    clock: VirtualClock, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    site = site_that(raising(error), clock, {0: "SCHEDULED", 900: "RUNNING", 1800: "FINISHED"})
    with caplog.at_level(logging.INFO):
        statuses = await wait_until_ended({handle(): site}, reopen=no_reopen)
    assert statuses[handle()].state is RunState.FINISHED
    [said] = warnings(caplog)
    assert said.removeprefix("training run 'train-0' at alder: ") == (str(error) or "no answer in time")


async def test_other_trouble_is_said_anew(clock: VirtualClock, caplog: pytest.LogCaptureFixture) -> None:
    tend = raising(ServiceUnavailable("first"), ServiceUnavailable("first"), ServiceUnavailable("second"))
    await wait_until_ended({handle(): site_that(tend, clock, {0: "RUNNING", 900: "FINISHED"})}, reopen=no_reopen)
    assert [said.rpartition(": ")[2] for said in warnings(caplog)] == ["first", "second"]


async def test_help_that_hangs_holds_up_the_end_of_a_wait_no_longer_than_its_time(
    clock: VirtualClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ten runs, together."""
    monkeypatch.setattr(tending, "TEND_TIMEOUT", 0.2)
    site = site_that(hanging, clock, {0: "FINISHED"})
    began = time.monotonic()
    statuses = await wait_until_ended({handle(number): site for number in range(10)}, reopen=no_reopen)
    assert time.monotonic() - began < 1.5  # one after another they would take 2 s
    assert {status.state for status in statuses.values()} == {RunState.FINISHED}
    assert len(warnings(caplog)) == 10


async def test_help_that_hangs_each_time_is_said_once(
    clock: VirtualClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tending, "TEND_TIMEOUT", 0.02)
    site = site_that(hanging, clock, {0: "SCHEDULED", 900: "FINISHED"})
    await wait_until_ended({handle(): site}, reopen=no_reopen)
    assert warnings(caplog) == ["training run 'train-0' at alder: no answer in time"]


async def test_help_for_one_run_that_fails_is_no_harm_to_the_others(clock: VirtualClock) -> None:
    helped: set[str] = set()

    async def tend(statuses: Mapping[RunHandle, RunStatus]) -> float | None:
        [run] = statuses
        if run.remote_id == "1":
            raise ServiceUnavailable("not this one")
        helped.add(run.remote_id)
        return None

    site = site_that(tend, clock, {0: "SCHEDULED", 300: "FINISHED"})
    await wait_until_ended({handle(number): site for number in range(3)}, reopen=no_reopen)
    assert helped == {"0", "2"}


async def test_an_end_is_tended_once_and_an_unknown_state_is_handed_on(clock: VirtualClock) -> None:
    seen: list[RunState] = []

    async def tend(statuses: Mapping[RunHandle, RunStatus]) -> float | None:
        seen.extend(status.state for status in statuses.values())
        return None

    unknown = RunStatus(state=RunState.UNKNOWN, site_word="no answer", observed_at=START)
    await wait_until_ended(
        {handle(): site_that(tend, clock, {0: unknown, 2: "RUNNING", 30: "FINISHED"})}, reopen=no_reopen
    )
    assert seen.count(RunState.FINISHED) == 1
    assert seen[-1] is RunState.FINISHED


# --- When to help again ---------------------------------------------------------------------------------------------


def counting(seconds: float | None, clock: VirtualClock, helped: list[float]) -> Tend:
    async def tend(_: Mapping[RunHandle, RunStatus]) -> float | None:
        helped.append(clock.now)
        return seconds

    return tend


def gaps(moments: list[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(moments)]


async def test_a_site_helps_as_soon_as_it_wants_to_and_is_asked_no_more_often(clock: VirtualClock) -> None:
    """A token that lives for seconds is handed on in time, also after hours in the queue."""
    helped: list[float] = []
    site = site_that(counting(2.0, clock, helped), clock, {0: "SCHEDULED", 3600: "FINISHED"})
    await wait_until_ended({handle(): site}, reopen=no_reopen)
    assert max(gaps(helped)) < 2.1
    assert site.polls < 100


@pytest.mark.parametrize("seconds", [0.0, 0.001, -5.0])
async def test_a_site_that_wants_to_help_at_once_does_not_help_all_the_time(
    clock: VirtualClock, seconds: float
) -> None:
    helped: list[float] = []
    site = site_that(counting(seconds, clock, helped), clock, {0: "SCHEDULED", 300: "FINISHED"})
    await wait_until_ended({handle(): site}, reopen=no_reopen)
    assert len(helped) <= clock.now / tending.SHORTEST + site.polls + 1


@pytest.mark.parametrize("seconds", [None, 12 * 3600.0])
async def test_a_site_that_has_time_is_called_with_news_or_each_minute(
    clock: VirtualClock, seconds: float | None
) -> None:
    helped: list[float] = []
    site = site_that(counting(seconds, clock, helped), clock, {0: "SCHEDULED", 3600: "FINISHED"})
    await wait_until_ended({handle(): site}, reopen=no_reopen)
    assert 30 < max(gaps(helped)) <= 132
    assert site.polls < 100


async def test_of_several_runs_each_is_helped_when_its_site_wants_to(clock: VirtualClock) -> None:
    script: dict[float, RunStatus | str] = {0: "SCHEDULED", 3600: "FINISHED"}
    hurried: list[float] = []
    sites = {
        handle(0): site_that(again_after(None), clock, script),
        handle(1): site_that(counting(5.0, clock, hurried), clock, script),
        handle(2): site_that(raising(ServiceUnavailable("no")), clock, script),
    }
    await wait_until_ended(sites, reopen=no_reopen)
    assert max(gaps(hurried)) < 5.1


# --- Held jobs ------------------------------------------------------------------------------------------------------


async def test_a_job_that_is_held_does_not_make_its_site_be_opened_anew(clock: VirtualClock) -> None:
    """It is PAUSED as a refused login is, but its state is known."""
    held = RunStatus(state=RunState.SCHEDULED, reason=Reason.PAUSED, site_word="UNDEFINED", observed_at=START)
    site = ScriptedSite(clock, {0: "RUNNING", 60: held, 600: "FINISHED"})
    reopened: list[RunHandle] = []

    async def reopen(run: RunHandle) -> Site:
        reopened.append(run)
        return site

    statuses = await wait_until_ended({handle(): site}, reopen=reopen)
    assert statuses[handle()].state is RunState.FINISHED
    assert reopened == []


async def test_the_books_of_a_run_that_ended_are_tried_again(clock: VirtualClock) -> None:
    """Prefect, or MLflow, is away at the moment when it ends."""
    tried: list[RunState] = []

    async def tend(statuses: Mapping[RunHandle, RunStatus]) -> float | None:
        tried.extend(status.state for status in statuses.values())
        if len(tried) < 3:
            raise ServiceUnavailable("away")
        return None

    site = site_that(tend, clock, {0: "FINISHED"})
    await wait_until_ended({handle(): site}, reopen=no_reopen)
    assert tried == [RunState.FINISHED] * 3


async def test_books_that_stay_open_are_no_time_out(clock: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "ONE_ROUND", 0.1)
    monkeypatch.setattr(tending, "TEND_TIMEOUT", 5.0)
    site = site_that(hanging, clock, {0: "FINISHED"})
    statuses = await wait_until_ended({handle(): site}, reopen=no_reopen, timeout=0.3)
    assert statuses[handle()].state is RunState.FINISHED
