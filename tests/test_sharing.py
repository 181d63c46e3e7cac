"""Among processes one asks for all: what is lost, who dies, who stands still, and how many words it takes."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from prefect.events import Event, Resource

from prefect_mantik.errors import BlockInvalid, LoginRefused
from prefect_mantik.runs import RunHandle, RunStatus
from prefect_mantik.sites.base import Site
from prefect_mantik.waiting import sharing
from prefect_mantik.waiting.settings import MantikSettings
from tests.polled_site import Answer, PolledSite, Waiter, run, script, state
from tests.shared_polls import Hub, Process, a_hub, asked_by_all
from tests.virtual_clock import START

HOUR = 3600.0
LATE = sharing.PATIENCE * 1.15 * 1.1 + 66 + 5
"""Seconds after which an end is noticed at the latest, whatever is lost: patience, an interval, jitter."""


hub = pytest.fixture(a_hub)


def ending(ends: dict[str, float]) -> Answer:
    """Runs that run until a time each."""

    def answer(handle: RunHandle, now: float) -> RunStatus:
        end = ends.get(handle.remote_id, 1e9)
        return state("FINISHED" if now >= end else "RUNNING", now, started_at=START)

    return answer


RUNNING = ending({})


# --- One asks for all ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one_call", [True, False])
@pytest.mark.parametrize("count", [2, 4])
async def test_processes_together_ask_as_one_does(hub: Hub, count: int, one_call: bool) -> None:
    ends = {str(number): HOUR + number for number in range(count)}
    processes = [Process(hub, ending(ends), one_call=one_call) for _ in range(count)]
    alone = Process(Hub(hub.clock), ending(ends), one_call=one_call)
    waiters = [process.wait_for(run(number)) for number, process in enumerate(processes)]
    waiters.append(alone.wait_for(*map(run, range(count))))
    await asyncio.gather(*(waiter.until("FINISHED") for waiter in waiters))
    assert sum(process.site.requests for process in processes) <= 1.1 * alone.site.requests
    assert all(process.site.requests < 12 for process in processes[1:])


@pytest.mark.parametrize("count", [2, 4])
async def test_processes_that_wait_for_the_same_run(hub: Hub, count: int) -> None:
    processes = [Process(hub, ending({"0": HOUR})) for _ in range(count)]
    waiters = [process.wait_for(run()) for process in processes]
    await asyncio.gather(*(waiter.until("FINISHED") for waiter in waiters))
    assert {tuple(waiter.states) for waiter in waiters} == {("RUNNING", "FINISHED")}
    assert hub.clock.now < HOUR + 70
    assert sum(process.site.requests for process in processes) <= 1.1 * 95


async def test_each_end_is_told_in_time(hub: Hub) -> None:
    ends = {"0": 9000.0, "1": 600.0, "2": 2400.0}
    first, second = Process(hub, ending(ends)), Process(hub, ending(ends))
    first.wait_for(run(0))
    waiters = {number: second.wait_for(run(number)) for number in (1, 2)}
    for number, waiter in waiters.items():
        await waiter.until("FINISHED")
        assert hub.clock.now <= ends[str(number)] + 1.1 * min(0.1 * ends[str(number)], 60) + 3


async def test_changes_on_the_way_are_told_too(hub: Hub) -> None:
    answer = script({0: "SCHEDULED", 400: "RUNNING", 800: "SCHEDULED", 1200: "RUNNING", 1600: "FAILED"})
    first, second = Process(hub, answer), Process(hub, answer)
    first.wait_for(run(0))
    waiter = second.wait_for(run(1))
    await waiter.until("FAILED")
    assert waiter.states == ["SCHEDULED", "RUNNING", "SCHEDULED", "RUNNING", "FAILED"]
    assert second.site.requests < 4


async def test_a_run_that_joins_later_is_asked_at_once_and_then_no_more(hub: Hub) -> None:
    first, second = Process(hub, RUNNING), Process(hub, RUNNING)
    first.wait_for(run(0))
    second.wait_for(run(1))
    await hub.clock.sleep(1000)
    before = second.site.requests
    waiter = second.wait_for(run(2))
    await waiter.until("RUNNING")
    assert hub.clock.now < 1001
    await hub.clock.sleep(1000)
    assert second.site.requests <= before + 2
    assert len(first.asked(2)) > 10


async def test_another_wait_for_a_run_that_is_covered_asks_nobody(hub: Hub) -> None:
    first, second = Process(hub, RUNNING), Process(hub, RUNNING)
    first.wait_for(run(0))
    second.wait_for(run(1))
    await hub.clock.sleep(1000)
    before = second.site.requests
    assert second.wait_for(run(1)).states == ["RUNNING"]
    await hub.clock.sleep(1000)
    assert second.site.requests == before
    assert second.sharing.follows


async def test_a_run_of_a_site_that_is_not_saved_is_asked_by_its_own_process(hub: Hub) -> None:
    first, second = (Process(hub, ending({"x": 900})) for _ in range(2))
    first.wait_for(run(0))
    second.wait_for(run(1))
    await second.wait_for(run("x", site=None)).until("FINISHED")
    assert hub.clock.now < 970
    assert first.asked("x") == []


# --- Who asks goes away ----------------------------------------------------------------------------------------------


async def test_who_asks_and_has_nothing_left_to_wait_for_is_replaced_at_once(hub: Hub) -> None:
    ends = {"0": 1000.0, "1": 5000.0, "2": 5000.0}
    processes = [Process(hub, ending(ends)) for _ in range(3)]
    waiters = [process.wait_for(run(number)) for number, process in enumerate(processes)]
    await waiters[0].until("FINISHED")
    left = hub.clock.now
    await asyncio.gather(*(waiter.until("FINISHED") for waiter in waiters))
    assert asked_by_all(hub, 1, left + 0.1)[0] < left + 8
    assert len(processes[2].asked(2, left + 30, 5000)) == 0
    assert hub.clock.now < 5070


async def test_a_killed_process_is_replaced_within_90_seconds(hub: Hub) -> None:
    processes = [Process(hub, RUNNING) for _ in range(3)]
    for number, process in enumerate(processes):
        process.wait_for(run(number))
    for killed_at, victim in ((2000.0, 0), (4011.0, 1)):
        await hub.clock.sleep(killed_at - hub.clock.now)
        processes[victim].kill()
    await hub.clock.sleep(2000)
    assert asked_by_all(hub, 2, 2000, 2090)
    assert asked_by_all(hub, 2, 4011, 4101)
    assert len(processes[2].asked(2, 2300, 4000)) < 3
    assert max(gaps(processes[2].asked(2, 4200))) < 67


async def test_a_process_that_stood_still(hub: Hub) -> None:
    """It is replaced; when it wakes, one of them asks, and nothing old is believed."""
    answer = script({0: "SCHEDULED", 1500: "RUNNING", 4000: "FINISHED"})
    first, second = Process(hub, answer), Process(hub, answer)
    mine, waiter = first.wait_for(run(0)), second.wait_for(run(1))
    await hub.clock.sleep(1000)
    first.stop()
    await hub.clock.sleep(1000)
    assert second.asked(1, 1000, 1090)
    assert waiter.states == ["SCHEDULED", "RUNNING"]
    first.go_on()
    await asyncio.gather(waiter.until("FINISHED"), mine.until("FINISHED"))
    assert len(second.asked(1, 2100, 4000)) < 5
    assert waiter.states in (["SCHEDULED", "RUNNING", "FINISHED"], ["SCHEDULED", "RUNNING"] * 2 + ["FINISHED"])
    assert hub.clock.now < 4070


async def test_a_guest_that_stood_still_asks_and_then_lets_ask_again(hub: Hub) -> None:
    first, second = (Process(hub, ending({"1": 3000})) for _ in range(2))
    first.wait_for(run(0))
    waiter = second.wait_for(run(1))
    await hub.clock.sleep(1000)
    second.stop()
    await hub.clock.sleep(1000)
    second.go_on()
    await waiter.until("FINISHED")
    assert len(second.asked(1, 2000)) < 5
    assert hub.clock.now < 3070


async def test_who_died_is_not_asked_for_for_ever(hub: Hub) -> None:
    first, second = Process(hub, RUNNING), Process(hub, RUNNING)
    first.wait_for(run(0))
    second.wait_for(run(1))
    await hub.clock.sleep(1000)
    second.kill()
    await hub.clock.sleep(sharing.FORGOTTEN + 100)
    assert first.asked(1)
    assert first.asked(1, hub.clock.now) == []
    assert not first.sharing._guests
    await hub.clock.sleep(HOUR)
    assert first.asked(1, hub.clock.now - HOUR) == []


async def test_who_waits_no_more_is_asked_for_no_more(hub: Hub) -> None:
    first, second = Process(hub, RUNNING), Process(hub, RUNNING)
    first.wait_for(run(0))
    waiter = second.wait_for(run(1))
    await hub.clock.sleep(500)
    second.poller.leave(run(1), waiter.tell)
    await hub.clock.sleep(500)
    assert first.asked(1, 510) == []
    assert list(first.poller._seats) == [run(0)]


async def test_an_older_process_takes_over(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks differ: who comes later may have begun earlier."""
    first, second, third = (Process(hub, RUNNING) for _ in range(3))
    first.wait_for(run(0))
    second.wait_for(run(1))
    await hub.clock.sleep(1000)
    monkeypatch.setattr(sharing.time, "time", lambda: 1.0)
    third.wait_for(run(2))
    await hub.clock.sleep(1000)
    assert third.sharing._guests.keys() == {first.sharing._rank[1], second.sharing._rank[1]}
    assert len(first.asked(0, 1100)) + len(second.asked(1, 1100)) < 4
    assert len(third.asked(0, 1100)) > 10


# --- What is lost ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [0.1, 0.3, 0.6, 0.9])
async def test_words_that_are_lost_cost_requests_and_no_states(hub: Hub, lost: float) -> None:
    hub.lost = lost
    ends = {str(number): 300.0 + 700 * number for number in range(8)}
    processes = [Process(hub, ending(ends)) for _ in range(4)]
    noticed: dict[int, float] = {}

    async def notice(number: int, waiter: Waiter) -> None:
        await waiter.until("FINISHED")
        noticed[number] = hub.clock.now

    waiters = [(number, processes[number % 4].wait_for(run(number))) for number in range(8)]
    await asyncio.gather(*(notice(number, waiter) for number, waiter in waiters))
    assert max(noticed[number] - ends[str(number)] for number in noticed) < LATE


async def test_a_new_run_whose_word_is_lost_is_asked_here(hub: Hub) -> None:
    """Also where another one ended at the same time, so that their number is the same."""
    ends = {"1": 1000.0, "2": 1400.0}
    first, second = Process(hub, ending(ends)), Process(hub, ending(ends))
    first.wait_for(run(0))
    before = second.wait_for(run(1))
    await before.until("FINISHED")
    second.wait_for(run(3))
    waiter = second.wait_for(run(2))
    hub.cut = True
    await hub.clock.sleep(3)
    hub.cut = False
    await waiter.until("FINISHED")
    assert hub.clock.now < 1400 + 70


async def test_without_a_stream_each_asks_for_itself(hub: Hub) -> None:
    hub.cut = True
    processes = [Process(hub, ending({"0": HOUR, "1": HOUR})) for _ in range(2)]
    waiters = [process.wait_for(run(number)) for number, process in enumerate(processes)]
    await asyncio.gather(*(waiter.until("FINISHED") for waiter in waiters))
    assert hub.clock.now < HOUR + 70
    assert len(hub.words) < 30


async def test_two_that_ask_become_one(hub: Hub) -> None:
    """They, and those that they ask for, could not hear each other."""
    processes = [Process(hub, RUNNING) for _ in range(4)]
    halves = [Hub(hub.clock), Hub(hub.clock)]
    for number, process in enumerate(processes):
        process.hub = halves[number % 2]
        halves[number % 2].processes.append(process)
        process.wait_for(run(number))
    await hub.clock.sleep(1000)
    assert [process.sharing.follows for process in processes] == [False, False, True, True]
    for process in processes:
        process.hub = hub
    await hub.clock.sleep(200)
    assert [process.sharing.follows for process in processes] == [False, True, True, True]
    requests = [process.site.requests for process in processes]
    await hub.clock.sleep(1000)
    assert [process.site.requests for process in processes][1:] == requests[1:]


async def test_two_that_did_not_hear_of_each_other_when_they_began(hub: Hub) -> None:
    """Both were still connecting."""
    hub.cut = True
    processes = [Process(hub, RUNNING) for _ in range(2)]
    for number, process in enumerate(processes):
        process.wait_for(run(number))
    await hub.clock.sleep(3)
    hub.cut = False
    await hub.clock.sleep(120)
    assert [process.sharing.follows for process in processes] == [False, True]


# --- What is odd -----------------------------------------------------------------------------------------------------


async def test_what_cannot_be_opened_by_who_asks_is_asked_by_who_waits(hub: Hub) -> None:
    def opens(handle: RunHandle) -> Site:
        if handle.site == "unicore-site/hidden":
            raise BlockInvalid("not for you")
        return first.site

    first, second = (Process(hub, ending({"2": 2000})) for _ in range(2))
    first.opens = opens
    first.wait_for(run(0))
    hidden = second.wait_for(run(2, "unicore-site/hidden"))
    second.wait_for(run(1))
    await hub.clock.sleep(1000)
    assert second.sharing.follows
    await hidden.until("FINISHED")
    assert hub.clock.now < 2070
    assert first.asked(2) == []
    assert first.asked(1)
    assert len(hub.words) < 90


async def test_a_block_that_leads_to_another_account_by_now_is_not_asked(hub: Hub) -> None:
    """Asked there, a run would count as lost."""
    first, second = (Process(hub, ending({"1": 2000}), one_call=False) for _ in range(2))
    other = PolledSite(hub.clock, script({0: "LOST"}), account="another one", one_call=False)
    first.opens = lambda _: other
    first.wait_for(run(0))
    waiter = second.wait_for(run(1))
    await hub.clock.sleep(2070)
    assert waiter.states == ["RUNNING", "FINISHED"]
    assert other.asked == []


async def test_who_is_refused_does_not_keep_others_from_asking(hub: Hub) -> None:
    """Its password is an old one, as it was when its wait began."""

    def refuses(handle: RunHandle, now: float) -> RunStatus:
        if now > 500:
            raise LoginRefused("another password")
        return state("RUNNING", now)

    first, second = Process(hub, refuses), Process(hub, ending({"1": 2000}))
    first.wait_for(run(0))
    waiter = second.wait_for(run(1))
    await waiter.until("FINISHED")
    assert hub.clock.now < 2070
    assert waiter.states == ["RUNNING", "FINISHED"]


async def test_words_of_unknown_forms_change_nothing(hub: Hub) -> None:
    first, second = (Process(hub, ending({"1": 3000})) for _ in range(2))
    first.wait_for(run(0))
    waiter = second.wait_for(run(1))
    await hub.clock.sleep(1000)
    requests = second.site.requests
    resource = Resource.model_validate({"prefect.resource.id": first.sharing._resource})
    older = {"from": [1.0, "of a later version"]}
    for name, payload in itertools.product(
        ("polls.told", "polls.wanted", "polls.left", "polls.sung"),
        ({}, {"from": 3}, older, {**older, "number": 7, "answers": {}, "statuses": "?", "runs": "?"}),
    ):
        event = Event(event=f"prefect-mantik.{name}", resource=resource, payload=payload)
        for process in hub.processes:
            hub.deliver(process, event)
    await hub.clock.sleep(500)
    assert second.errors
    assert second.sharing._holder == first.sharing._rank
    assert second.site.requests == requests
    await waiter.until("FINISHED")


async def test_words_that_are_heard_twice_and_words_of_the_past(hub: Hub) -> None:
    """A stream that connects anew repeats its last minute."""
    processes = [Process(hub, ending({"1": 3000})) for _ in range(3)]
    waiters = [process.wait_for(run(number)) for number, process in enumerate(processes)]
    await hub.clock.sleep(500)
    processes[2].poller.leave(run(2), waiters[2].tell)
    await hub.clock.sleep(1000)
    requests = [process.site.requests for process in processes]
    for _, event in reversed(hub.words):
        for process in hub.processes:
            hub.deliver(process, event)
    await hub.clock.sleep(100)
    assert processes[1].site.requests - requests[1] <= 2
    assert processes[0].sharing._guests.keys() == {processes[1].sharing._rank[1]}
    await waiters[1].until("FINISHED")
    assert hub.clock.now < 3070


# --- How many words --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 4])
async def test_long_runs_take_at_most_100_words_an_hour(hub: Hub, count: int) -> None:
    processes = [Process(hub, RUNNING) for _ in range(count)]
    for number, process in enumerate(processes):
        process.wait_for(run(number))
    await hub.clock.sleep(5 * HOUR)
    assert hub.words_an_hour() <= (100 if count > 1 else 15)
    repeated = (count - 1) * HOUR / sharing.AGAIN  # what is wanted, which the next heartbeat answers
    assert count == 1 or hub.words_an_hour() <= HOUR / sharing.HEARTBEAT + repeated + 8


async def test_many_changes_take_at_most_100_words_an_hour(hub: Hub) -> None:
    ends = {str(number): 60.0 * number for number in range(1, 120)}
    first, second = (Process(hub, ending(ends)) for _ in range(2))
    first.wait_for(run(0))
    waiters = [second.wait_for(run(number)) for number in range(1, 120)]
    await asyncio.gather(*(waiter.until("FINISHED") for waiter in waiters))
    assert hub.words_an_hour() <= 100
    assert hub.clock.now < 119 * 60 + 66 + sharing.HEARTBEAT + 5


async def test_sharing_can_be_switched_off(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect_mantik.waiting import poller

    monkeypatch.setattr(poller, "settings", lambda: MantikSettings(share_polls=False))
    process = Process(hub, ending({"0": 100}))
    await process.wait_for(run(0)).until("FINISHED")
    assert hub.words == []


def gaps(times: list[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(times)]
