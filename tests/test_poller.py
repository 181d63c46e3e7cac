"""One poller for each account of a process: who joins and leaves, what goes wrong, how often is asked."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
from collections.abc import Mapping, Sequence
from datetime import timedelta

import pytest

from prefect_mantik.errors import LoginRefused, ServiceUnavailable
from prefect_mantik.runs import Reason, RunHandle, RunState, RunStatus
from prefect_mantik.sites.base import Pace, not_asked, not_told
from prefect_mantik.waiting import poller
from prefect_mantik.waiting.poller import MOST_TRIES, poller_of
from prefect_mantik.waiting.waits import wait_until_ended
from tests.polled_site import PolledSite, Waiter, run, script, state
from tests.test_waiting import no_reopen
from tests.virtual_clock import START, VirtualClock

HOUR = 3600.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualClock:
    poller._pollers().clear()  # of a test that failed
    return VirtualClock().install(monkeypatch)


async def wait_for(sites: Mapping[RunHandle, PolledSite]) -> dict[RunHandle, RunStatus]:
    return await wait_until_ended(sites, reopen=no_reopen)


# --- Who joins and leaves --------------------------------------------------------------------------------------------


async def test_two_waits_for_one_run_share_its_polls(clock: VirtualClock) -> None:
    site = PolledSite(clock, script({0: "RUNNING", HOUR: "FINISHED"}))
    alone = PolledSite(clock, script({0: "RUNNING", HOUR: "FINISHED"}), account="two")
    first, second, other = await asyncio.gather(
        wait_for({run(): site}), wait_for({run(): site}), wait_for({run(1): alone})
    )
    assert first == second
    assert other[run(1)].state is RunState.FINISHED
    assert abs(site.requests - alone.requests) <= 5


async def test_who_joins_later_is_told_at_once_what_is_known(clock: VirtualClock) -> None:
    site = PolledSite(clock, script({0: "RUNNING", HOUR: "FINISHED"}))
    first, second = Waiter(), Waiter()
    poller_of(site).join(run(), site, first.tell)
    await first.until("RUNNING")
    poller_of(site).join(run(), site, second.tell)
    assert second.states == ["RUNNING"]
    await asyncio.gather(first.until("FINISHED"), second.until("FINISHED"))


async def test_a_run_that_is_left_and_joined_while_it_is_asked_is_not_forgotten(clock: VirtualClock) -> None:
    """What was asked for the first says that it ended; the second must hear of it too."""
    site = PolledSite(clock, script({0: "FINISHED"}), seconds=5.0)
    first, second, third = Waiter(), Waiter(), Waiter()
    polls = poller_of(site)
    polls.join(run(), site, first.tell)
    polls.join(run(1), site, third.tell)
    await clock.sleep(1.0)
    polls.leave(run(), first.tell)
    polls.join(run(), site, second.tell)
    await asyncio.wait_for(asyncio.gather(second.until("FINISHED"), third.until("FINISHED")), 10)
    assert first.told == []


async def test_a_run_that_joins_during_a_round_is_asked_right_after_it(clock: VirtualClock) -> None:
    site = PolledSite(clock, script({0: "RUNNING", 60: "FINISHED"}), seconds=3.0)
    first, second = Waiter(), Waiter()
    poller_of(site).join(run(), site, first.tell)
    await clock.sleep(1.0)
    poller_of(site).join(run(1), site, second.tell)
    await second.until("RUNNING")
    assert clock.now <= 7
    await asyncio.gather(first.until("FINISHED"), second.until("FINISHED"))


async def test_a_wait_that_joins_when_the_last_one_just_ended(clock: VirtualClock) -> None:
    site = PolledSite(clock, script({0: "FINISHED"}))
    before = poller_of(site)
    for _ in range(3):
        assert (await asyncio.wait_for(wait_for({run(): site}), 10))[run()].state is RunState.FINISHED
    late = Waiter()
    before.join(run(), site, late.tell)  # who kept it
    await asyncio.wait_for(late.until("FINISHED"), 10)


async def test_nothing_is_left_of_a_wait(clock: VirtualClock) -> None:
    site = PolledSite(clock, script({0: "RUNNING", 600: "FINISHED"}))
    await wait_for({run(number): site for number in range(20)})
    waiting = asyncio.ensure_future(wait_for({run(99): PolledSite(clock, script({0: "RUNNING"}))}))
    await clock.sleep(700)
    waiting.cancel()
    await clock.sleep(1)
    assert poller._pollers() == {}
    names = [str(task.get_coro()) for task in asyncio.all_tasks()]
    assert [name for name in names if "Poller" in name or "wait_until" in name] == []


# --- What goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one_call", [True, False])
async def test_one_odd_answer_hides_no_other(clock: VirtualClock, one_call: bool) -> None:
    def answer(handle: RunHandle, now: float) -> RunStatus:
        if handle.remote_id == "17" and now < 300:
            raise KeyError("what nobody thought of")
        return script({0: "RUNNING", 200: "FINISHED"})(handle, now)

    site = PolledSite(clock, answer, one_call=one_call)
    waiters = {run(number): Waiter() for number in range(40)}
    for handle, waiter in waiters.items():
        poller_of(site).join(handle, site, waiter.tell)
    await asyncio.gather(*(waiter.until("FINISHED") for waiter in waiters.values()))
    odd = waiters.pop(run(17))
    assert odd.states == ["UNKNOWN", "FINISHED"]
    assert isinstance(odd.told[0], RunStatus)
    assert odd.told[0].reason is Reason.UNREADABLE
    assert {tuple(waiter.states) for waiter in waiters.values()} == {("RUNNING", "FINISHED")}


async def test_if_all_answers_are_odd_the_site_is_not_asked_for_each(clock: VirtualClock) -> None:
    def answer(handle: RunHandle, now: float) -> RunStatus:
        if now < 60:
            raise KeyError("a new version")
        return state("FINISHED", now)

    site = PolledSite(clock, answer)
    await wait_for({run(number): site for number in range(1000)})
    at_once = max(sum(at == other for other, _ in site.asked) for at, _ in site.asked)
    assert at_once <= 2 * MOST_TRIES


async def test_runs_that_cannot_be_read_keep_none_from_being_asked(clock: VirtualClock) -> None:
    """More of them than are asked in one part."""

    def answer(handle: RunHandle, now: float) -> RunStatus:
        odd = int(handle.remote_id) < 40 and now < 2 * HOUR
        return state("UNKNOWN", now) if odd else state("FINISHED" if now > 100 else "RUNNING", now)

    site = PolledSite(clock, answer, one_call=False)
    good = {run(number): Waiter() for number in range(40, 50)}
    for handle in [run(number) for number in range(40)]:
        poller_of(site).join(handle, site, Waiter().tell)
    for handle, waiter in good.items():
        poller_of(site).join(handle, site, waiter.tell)
    await asyncio.gather(*(waiter.until("FINISHED") for waiter in good.values()))
    assert clock.now < 200
    await clock.sleep(3 * HOUR)


async def test_each_site_of_an_account_refines_its_own_runs(clock: VirtualClock) -> None:
    answer = script({0: "RUNNING", 60: "FINISHED"})
    alder, birch = PolledSite(clock, answer), PolledSite(clock, answer, name="birch")
    runs = {run(0, "a/alder"): alder, run(1, "a/alder"): alder, run(2, "a/birch"): birch}
    await wait_for(runs)
    assert set(map(frozenset, alder.refined)) == {frozenset({"0", "1"})}
    assert set(map(frozenset, birch.refined)) == {frozenset({"2"})}
    assert {frozenset(asked) for _, asked in [*alder.asked, *birch.asked]} == {frozenset({"0", "1", "2"})}


async def test_a_refinement_that_fails_is_said_once(clock: VirtualClock, caplog: pytest.LogCaptureFixture) -> None:
    async def refine(_: Mapping[RunHandle, RunStatus]) -> dict[RunHandle, RunStatus]:
        raise KeyError("odd")

    site = PolledSite(clock, script({0: "RUNNING", HOUR: "FINISHED"}), refine=refine)
    await wait_for({run(): site})
    said = [record.message for record in caplog.records if "only what its account" in record.message]
    assert said == ["birch: only what its account tells is known (KeyError)."]


async def test_a_mistake_of_ours_reaches_who_waits(clock: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> float:
        raise ZeroDivisionError

    monkeypatch.setattr(poller.interval, "jittered", broken)
    site = PolledSite(clock, script({0: "RUNNING"}))
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(wait_for({run(): site, run(1): site}), 10)
    monkeypatch.undo()
    VirtualClock().install(monkeypatch)
    assert await wait_for({run(): PolledSite(clock, script({0: "FINISHED"}))})


# --- An account that is away -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("one_call", "count"), [(True, 300), (False, 200)])
async def test_hours_of_outage_of_a_site_with_many_runs(
    clock: VirtualClock, one_call: bool, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(handle: RunHandle, now: float) -> RunStatus:
        if HOUR < now < 3 * HOUR:
            raise ServiceUnavailable("GET /jobs: no connection.")
        return state("RUNNING" if now < 3.5 * HOUR else "FINISHED", now)

    site = PolledSite(clock, answer, one_call=one_call)
    with caplog.at_level(logging.INFO):
        await wait_for({run(number): site for number in range(count)})
    away = [(at, runs) for at, runs in site.asked if HOUR < at < 3 * HOUR]
    calls = len(away) if one_call else sum(len(runs) for _, runs in away)
    assert calls < 2 * 70 * (1 if one_call else poller.AT_ONCE)
    lines = [record.message for record in caplog.records if "RUNNING" not in record.message]
    lines = [line for line in lines if "FINISHED" not in line]
    assert len(lines) == 2
    assert "training runs at birch: state unknown. GET /jobs: no connection. The jobs are not touched" in lines[0]
    assert "can be asked again after" in lines[1]
    assert 3.5 * HOUR < site.asked[-1][0] < 3.5 * HOUR + 70


async def test_who_joins_while_an_account_is_away_has_it_asked_no_sooner(clock: VirtualClock) -> None:
    def answer(handle: RunHandle, now: float) -> RunStatus:
        if now < 120:
            raise ServiceUnavailable("no connection")
        return state("FINISHED", now)

    site, waiter = PolledSite(clock, answer), Waiter()
    for number in range(60):
        poller_of(site).join(run(number), site, waiter.tell)
        await clock.sleep(2)
    assert len([at for at, _ in site.asked if at < 120]) <= 6
    await waiter.until("FINISHED")


async def test_a_run_of_which_nothing_is_known_for_a_while_keeps_its_pace(clock: VirtualClock) -> None:
    def answer(handle: RunHandle, now: float) -> RunStatus:
        if handle.remote_id == "1" and HOUR < now < 2 * HOUR:
            return not_asked(ServiceUnavailable("no answer"))
        return state("RUNNING" if now < 2.5 * HOUR else "FINISHED", now)

    site = PolledSite(clock, answer, one_call=False)
    await wait_for({run(number): site for number in range(2)})
    late = [at for at, runs in site.asked if "1" in runs and at > HOUR - 200]
    assert min(after - before for before, after in itertools.pairwise(late)) > 50


async def test_runs_that_a_site_knows_nothing_of_hide_no_others(clock: VirtualClock) -> None:
    """It answers: were they taken for a site that is away, runs behind them would never be asked."""

    def answer(handle: RunHandle, now: float) -> RunStatus:
        if int(handle.remote_id) < 3 * poller.AT_ONCE:
            return not_told("no such job, and its account is gone")
        return state("RUNNING" if now < HOUR else "FINISHED", now)

    site, waiter = PolledSite(clock, answer, one_call=False), Waiter()
    for number in range(4 * poller.AT_ONCE):
        poller_of(site).join(run(number), site, lambda _: None)
    poller_of(site).join(run(1000), site, waiter.tell)
    await waiter.until("RUNNING")
    assert clock.now < 1
    await waiter.until("FINISHED")
    assert clock.now < HOUR + 70


async def test_a_server_that_asks_for_rest_is_given_it(clock: VirtualClock) -> None:
    def answer(handle: RunHandle, now: float) -> RunStatus:
        if now < 10:
            raise ServiceUnavailable("slow down", retry_after=300)
        return state("FINISHED", now)

    site = PolledSite(clock, answer)
    late = Waiter()
    waiting = asyncio.ensure_future(wait_for({run(): site}))
    await clock.sleep(100)
    poller_of(site).join(run(1), site, late.tell)
    await asyncio.gather(waiting, late.until("FINISHED"))
    assert [at for at, _ in site.asked if 0 < at < 300] == []


async def test_rest_that_a_site_tells_beside_its_answers_is_given_too(clock: VirtualClock) -> None:
    """Of jobs that are asked one by one some are answered, others told to wait."""
    site = PolledSite(clock, script({0: "RUNNING", 900: "FINISHED"}), pace=Pace(5, 10))
    waiting = asyncio.ensure_future(wait_for({run(): site}))
    await clock.sleep(100)
    site._quiet = 200.0
    await clock.sleep(20)
    site._quiet = 0.0
    await waiting
    assert 195 < max(site.gaps()) < 215


async def test_rest_that_is_asked_for_in_the_middle_of_a_round_is_given_at_once(clock: VirtualClock) -> None:
    """Of many runs that are a call each; the others are due as before, and nothing is said of them meanwhile."""
    sites: list[PolledSite] = []

    def answer(handle: RunHandle, now: float) -> RunStatus:
        if now < 100 and handle.remote_id == "40":
            sites[0]._quiet = 200.0
            raise ServiceUnavailable("slow down", retry_after=200)
        return state("FINISHED", now)

    class OneByOne(PolledSite):
        async def ask(self, handles: Sequence[RunHandle]) -> dict[RunHandle, RunStatus]:
            self.asked.append((self.clock.now, [handle.remote_id for handle in handles]))
            found = {}
            for handle in handles:
                try:
                    found[handle] = self.answer(handle, self.clock.now)
                except ServiceUnavailable as error:
                    found[handle] = not_asked(error)
            return found

    sites.append(OneByOne(clock, answer, one_call=False))
    waiting = asyncio.ensure_future(wait_for({run(number): sites[0] for number in range(100)}))
    await clock.sleep(100)
    assert [len(runs) for _, runs in sites[0].asked] == [poller.AT_ONCE] * 2
    sites[0]._quiet = 0.0
    statuses = await waiting
    assert {status.state for status in statuses.values()} == {RunState.FINISHED}
    assert sites[0].asked[2][0] >= 200


async def test_a_rest_of_years_ends_after_an_hour(clock: VirtualClock) -> None:
    def answer(handle: RunHandle, now: float) -> RunStatus:
        if now == 0:
            raise ServiceUnavailable("slow down", retry_after=1e9)
        return state("FINISHED", now)

    await wait_for({run(): PolledSite(clock, answer)})
    assert clock.now < 1.1 * HOUR


async def test_a_refused_login_is_paused_for_all(clock: VirtualClock) -> None:
    def answer(handle: RunHandle, now: float) -> RunStatus:
        if now < 60:
            raise LoginRefused("no")
        return state("FINISHED", now)

    site, waiter = PolledSite(clock, answer), Waiter()
    poller_of(site).join(run(), site, waiter.tell)
    await waiter.until("FINISHED")
    assert isinstance(waiter.told[0], RunStatus)
    assert waiter.told[0].reason is Reason.PAUSED


# --- How often -------------------------------------------------------------------------------------------------------


async def test_lateness_is_a_tenth_of_the_age_or_a_minute(clock: VirtualClock) -> None:
    for ends in (20.0, 100.0, 333.0, 1500.0, 4000.0):
        began = clock.now
        site = PolledSite(clock, script({0: "RUNNING", began + ends: "FINISHED"}), account=str(ends))
        await wait_for({run(): site})
        assert clock.now - began - ends <= 1.1 * min(max(5.0, 0.1 * (began + ends)), 60.0) + 0.1  # queued since 0


async def test_a_run_that_is_waited_for_again_is_asked_by_its_age(clock: VirtualClock) -> None:
    def answer(handle: RunHandle, now: float) -> RunStatus:
        return state("FINISHED" if now > 600 else "RUNNING", now, started_at=START - timedelta(hours=9))

    site = PolledSite(clock, answer)
    await wait_for({run(): site})
    assert min(site.gaps()) > 50


@pytest.mark.parametrize("wrong", [-HOUR, HOUR])
async def test_our_own_clock_may_be_wrong(clock: VirtualClock, wrong: float) -> None:
    """The site's times are compared with each other only."""

    def answer(handle: RunHandle, now: float) -> RunStatus:
        theirs = START + timedelta(seconds=now + wrong)
        said = "FINISHED" if now > 300 else "RUNNING"
        return state(said, now, started_at=START + timedelta(seconds=wrong), observed_at=theirs)

    site = PolledSite(clock, answer)
    await wait_for({run(): site})
    assert min(site.gaps()) < 6
    assert 25 < max(site.gaps()) < 36


async def test_who_waits_is_woken_at_the_expected_start(clock: VirtualClock) -> None:
    def answer(handle: RunHandle, now: float) -> RunStatus:
        if now < 3000:
            return state("SCHEDULED", now, expected_at=START + timedelta(seconds=3000))
        return state("RUNNING" if now < 3030 else "FINISHED", now, started_at=START + timedelta(seconds=3000))

    site, waiter = PolledSite(clock, answer), Waiter()
    poller_of(site).join(run(), site, waiter.tell)
    await waiter.until("RUNNING")
    assert clock.now < 3010
    await waiter.until("FINISHED")


@pytest.mark.parametrize(("looks_every", "least", "most"), [(0.0, 85, 105), (20.0, 65, 85)])
async def test_an_hour_costs_about_a_hundred_polls_and_fewer_where_the_site_looks_seldom(
    clock: VirtualClock, looks_every: float, least: int, most: int
) -> None:
    answer = script({0: "SCHEDULED", 30: "RUNNING", HOUR: "FINISHED"})
    site = PolledSite(clock, answer, one_call=False, looks_every=looks_every)
    await wait_for({run(): site})
    assert least < site.requests < most


# --- Whose log -------------------------------------------------------------------------------------------------------

_WHO: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")


async def test_what_is_said_meanwhile_is_said_in_the_name_of_who_still_waits(clock: VirtualClock) -> None:
    names: list[tuple[float, str]] = []

    def answer(handle: RunHandle, now: float) -> RunStatus:
        names.append((now, _WHO.get()))
        return state("FINISHED" if now > (300 if handle == run(0) else 900) else "RUNNING", now)

    site = PolledSite(clock, answer)

    async def as_somebody(who: str, handle: RunHandle) -> None:
        _WHO.set(who)
        await wait_for({handle: site})

    await asyncio.gather(as_somebody("first", run(0)), as_somebody("second", run(1)))
    assert {who for at, who in names if at < 200} == {"first"}
    assert {who for at, who in names if at > 400} == {"second"}
