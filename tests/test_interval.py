"""How long to wait before a run is asked again."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from prefect_mantik.runs import RunState, RunStatus
from prefect_mantik.sites.base import Pace
from prefect_mantik.waiting import interval, poller
from prefect_mantik.waiting.interval import Bounds
from prefect_mantik.waiting.settings import MantikSettings
from tests.polled_site import PolledSite, script
from tests.virtual_clock import START, VirtualClock

BOUNDS = Bounds(5.0, 60.0, 120.0)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def running(now: float, **more: datetime | None) -> RunStatus:
    return RunStatus(state=RunState.RUNNING, **{"started_at": START, "observed_at": at(now), **more})  # type: ignore[arg-type]


def queued(now: float, **more: datetime) -> RunStatus:
    return RunStatus(state=RunState.SCHEDULED, **{"queued_at": START, "observed_at": at(now), **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(("age", "expected"), [(0, 5), (50, 5), (100, 10), (400, 40), (600, 60), (86400, 60)])
def test_a_tenth_of_the_age_within_bounds(age: float, expected: float) -> None:
    assert interval.pause(running(age), 0.0, BOUNDS) == expected


@pytest.mark.parametrize(("age", "expected"), [(0, 5), (600, 60), (900, 90), (86400, 120)])
def test_slower_while_queued(age: float, expected: float) -> None:
    assert interval.pause(queued(age), 0.0, BOUNDS) == expected


def test_an_old_run_that_is_waited_for_anew_is_not_asked_as_a_young_one() -> None:
    assert interval.pause(running(7200), 0.0, BOUNDS) == 60


def test_where_a_site_tells_no_times_the_time_it_was_watched_counts() -> None:
    assert interval.pause(running(0, started_at=None), 300.0, BOUNDS) == 30


def test_a_site_whose_clock_runs_back_does_not_make_a_run_young() -> None:
    assert interval.pause(running(-3600), 300.0, BOUNDS) == 30


def test_a_run_that_was_never_told_of_is_asked_soon() -> None:
    assert interval.pause(None, 0.0, BOUNDS) == 5
    assert interval.pause(None, 9999.0, BOUNDS) == 60


def test_woken_early_at_the_expected_start() -> None:
    assert interval.pause(queued(3600, expected_at=at(3630)), 0.0, BOUNDS) == 30 + interval.AFTER_EXPECTED
    assert interval.pause(queued(3600, expected_at=at(9999)), 0.0, BOUNDS) == 120
    assert interval.pause(queued(3600, expected_at=at(3500)), 0.0, BOUNDS) == 120


def test_woken_early_at_the_end_of_the_time_limit() -> None:
    assert interval.pause(running(3600, expected_at=at(3602)), 0.0, BOUNDS) == 5
    assert interval.pause(running(3600, expected_at=at(3640)), 0.0, BOUNDS) == 42


def test_jitter_does_not_miss_an_expected_change_by_a_little() -> None:
    status = queued(3600, expected_at=at(3640))
    assert all(42 <= interval.jittered(status, 0.0, BOUNDS) <= 46.5 for _ in range(200))
    told = [interval.jittered(running(3600), 0.0, BOUNDS) for _ in range(200)]
    assert 57.5 <= min(told) < 58.5
    assert 58 < max(told) <= 60, "never later than the interval says"


def test_an_account_that_is_away_is_asked_less_and_less_often() -> None:
    pauses = [interval.after_failures(failures, BOUNDS) for failures in range(6)]
    assert pauses == [5, 10, 20, 40, 60, 60]
    assert interval.after_failures(10_000, BOUNDS) == 60


def site(**attributes: object) -> PolledSite:
    return PolledSite(VirtualClock(), script({0: "RUNNING"}), **attributes)


def test_a_block_may_say_how_often_its_site_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller, "settings", lambda: MantikSettings(poll_shortest=5, poll_longest=60, poll_queued=120))
    assert poller.bounds_of(site()) == BOUNDS
    assert poller.bounds_of(site(pace=Pace(shortest=90))) == Bounds(90, 90, 120)
    assert poller.bounds_of(site(pace=Pace(longest=30))) == Bounds(5, 30, 30)
    assert poller.bounds_of(site(pace=Pace(300, 60))) == Bounds(300, 300, 300), "at least is at least"
    assert poller.bounds_of(site(pace=Pace(1, 300))) == Bounds(1, 300, 300)
