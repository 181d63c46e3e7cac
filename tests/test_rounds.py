"""Runs that are asked for without anybody being told: as seldom as their site wishes, from round to round."""

from __future__ import annotations

import pytest

from prefect_mantik.errors import LoginRefused, ServiceUnavailable
from prefect_mantik.runs import RunHandle, RunState, RunStatus
from prefect_mantik.sites.base import Site
from prefect_mantik.waiting import poller, rounds
from prefect_mantik.waiting.rounds import Attendance
from tests.polled_site import PolledSite, run, state
from tests.virtual_clock import VirtualClock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualClock:
    poller._pollers().clear()  # of a test that failed
    return VirtualClock().install(monkeypatch)


def opened(monkeypatch: pytest.MonkeyPatch, site: PolledSite) -> list[RunHandle]:
    """Open this site for all runs; give for which it was opened."""
    found: list[RunHandle] = []

    async def site_of(handle: RunHandle) -> Site:
        found.append(handle)
        return site

    monkeypatch.setattr(rounds, "site_of", site_of)
    return found


async def some_rounds(clock: VirtualClock, seconds: float) -> list[RunStatus]:
    """A round every half minute."""
    attendance, until, told = Attendance(), clock.now + seconds, list[RunStatus]()
    while clock.now < until:
        told.append((await attendance.attend([run()])).statuses[run()])
        await clock.sleep(30)
    attendance.leave()
    return told


async def test_a_site_that_asks_for_rest_is_given_it_by_the_next_round_too(
    clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: RunHandle, now: float) -> RunStatus:
        if now < 3000:
            raise ServiceUnavailable("maintenance", method="GET", path="/", retry_after=3600)
        return state("FINISHED", now)

    site = PolledSite(clock, away)
    opened(monkeypatch, site)
    told = await some_rounds(clock, 4000)
    assert site.requests == 2
    assert {status.state for status in told[:100]} == {RunState.UNKNOWN}
    assert told[-1].state is RunState.FINISHED


async def test_a_refused_login_is_opened_anew_by_the_next_round(
    clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: RunHandle, now: float) -> RunStatus:
        if now < 100:
            raise LoginRefused("401", method="GET", path="/")
        return state("RUNNING", now)

    times = opened(monkeypatch, PolledSite(clock, refused))
    assert (await some_rounds(clock, 300))[-1].state is RunState.RUNNING
    assert len(times) == 5
