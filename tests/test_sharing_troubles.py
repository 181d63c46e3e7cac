"""What one process of several cannot do the others do for themselves."""

from __future__ import annotations

from datetime import timedelta

import pytest

from prefect_mantik.errors import ServiceUnavailable
from prefect_mantik.runs import RunHandle, RunState, RunStatus
from prefect_mantik.waiting import sharing
from prefect_mantik.waiting.interval import SHARE
from tests.polled_site import run, state
from tests.shared_polls import Hub, Process, a_hub
from tests.virtual_clock import START

hub = pytest.fixture(a_hub)


def running(_: RunHandle, now: float) -> RunStatus:
    return state("RUNNING", now, started_at=START)


async def test_who_cannot_reach_the_site_keeps_no_other_process_from_it(hub: Hub) -> None:
    """A laptop whose network is gone, but for Prefect."""

    def cut_off(handle: RunHandle, now: float) -> RunStatus:
        if now >= 500:
            raise ServiceUnavailable("no connection", method="GET", path="/")
        return running(handle, now)

    def ends(handle: RunHandle, now: float) -> RunStatus:
        return state("FINISHED", now) if now >= 1000 else running(handle, now)

    holder, other = Process(hub, cut_off), Process(hub, ends)
    holder.wait_for(run(0))
    waiter = other.wait_for(run(1))
    await hub.clock.sleep(400)
    assert other.sharing.follows
    await waiter.until("FINISHED")
    assert hub.clock.now < 1000 + 70


async def test_who_died_is_replaced_also_when_another_run_is_asked_meanwhile(hub: Hub) -> None:
    """Where one call asks for all runs, the ones that are covered are asked with it."""
    holder, other, third = (Process(hub, running) for _ in range(3))
    for number, process in enumerate((holder, other, third)):
        process.wait_for(run(number))
    await hub.clock.sleep(1000)
    assert other.sharing.follows
    holder.kill()
    other.wait_for(run("new"))
    await hub.clock.sleep(300)
    before = third.site.requests
    assert not other.sharing.follows
    await hub.clock.sleep(1500)
    assert third.sharing.follows
    assert third.site.requests <= before + 3


async def test_a_dead_process_whose_last_words_are_still_told_is_left(hub: Hub) -> None:
    """Prefect tells whoever connects what was said in the last minute: also by those that were killed since."""
    dead, guest = Process(hub, running), Process(hub, running)
    for number, process in enumerate((dead, guest)):
        process.wait_for(run(number))
    await hub.clock.sleep(1000)
    last = [event for _, event in hub.words if event.event.endswith("told")][-1]
    for process in (dead, guest):
        process.kill()
    begun = [Process(hub, running) for _ in range(4)]
    for process in begun:
        process.wait_for(run(0))
        hub.deliver(process, last)
    await hub.clock.sleep(200)
    assert [process.sharing.follows for process in begun] == [False, True, True, True]
    before = sum(process.site.requests for process in begun)
    await hub.clock.sleep(3600)
    assert sum(process.site.requests for process in begun) - before < 70


async def test_a_first_answer_that_was_lost_leaves_no_run_unasked(hub: Hub) -> None:
    """It may have told an end: the next word answers too, and tells only what came after."""

    def ends(handle: RunHandle, now: float) -> RunStatus:
        return state("FINISHED", now) if handle.remote_id == "1" and now >= 500 else running(handle, now)

    holder, other = Process(hub, ends), Process(hub, ends)
    holder.wait_for(run(0))
    await hub.clock.sleep(499)
    waiter = other.wait_for(run(1))
    await hub.clock.sleep(0.1)
    hub.cut = True  # what the holder answers is said and not heard
    await hub.clock.sleep(40)
    hub.cut = False
    await waiter.until("FINISHED")
    assert hub.clock.now < 500 + 70


async def test_what_does_not_change_is_known_to_be_so_now(hub: Hub) -> None:
    holder, other = Process(hub, running), Process(hub, running)
    holder.wait_for(run(0))
    told: list[RunStatus] = []

    def tell(status: RunStatus | Exception) -> None:
        assert isinstance(status, RunStatus)
        told.append(status)

    other._context.run(other.poller.join, run(1), other.site, tell, other._open)
    await hub.clock.sleep(3600)
    assert other.site.requests < 5
    assert told[-1].state is RunState.RUNNING
    assert 3600 - (told[-1].observed_at - START).total_seconds() < 60 + SHARE * 60 + 5


async def test_signs_of_life_reach_the_others_with_the_next_heartbeat(hub: Hub) -> None:
    """And are worth no word of their own."""

    def alive(_: RunHandle, now: float) -> RunStatus:
        return state("RUNNING", now, started_at=START, life_at=START + timedelta(seconds=now))

    holder, other = Process(hub, alive), Process(hub, alive)
    holder.wait_for(run(0))
    told: list[RunStatus | Exception] = []
    other._context.run(other.poller.join, run(1), other.site, told.append, other._open)
    await hub.clock.sleep(3600)
    assert isinstance(last := told[-1], RunStatus)
    assert last.life_at
    assert 3600 - (last.life_at - START).total_seconds() < 60 + sharing.HEARTBEAT + 5
    assert hub.words_an_hour() < 3600 / sharing.HEARTBEAT + 3600 / sharing.AGAIN + 10


@pytest.mark.parametrize("first", ["the older one", "who asks for others"])
async def test_who_is_heard_at_last_is_answered_at_once(hub: Hub, first: str) -> None:
    """The stream was away; whoever speaks next, all let the oldest ask some seconds later."""
    oldest, second, third = (Process(hub, running) for _ in range(3))
    apart = Hub(hub.clock)
    oldest.hub = apart
    hub.processes.remove(oldest)
    apart.processes.append(oldest)
    oldest.wait_for(run(0))
    await hub.clock.sleep(300)
    second.wait_for(run(1))
    if first == "who asks for others":
        third.wait_for(run(2))
    await hub.clock.sleep(1300)
    assert not oldest.sharing.follows
    assert not second.sharing.follows
    oldest.hub = hub
    hub.processes.append(oldest)
    said = len(hub.words)
    while len(hub.words) == said:
        await hub.clock.sleep(1)
    kind = hub.words[said][1].event
    assert kind.endswith("wanted" if first == "the older one" else "told")
    await hub.clock.sleep(20)
    assert second.sharing.follows
