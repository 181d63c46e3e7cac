"""A site whose answers a test gives by function of the run and the virtual time, and that keeps who was asked when."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from prefect_mantik.runs import RunHandle, RunState, RunStatus
from prefect_mantik.sites.base import Site
from prefect_mantik.waiting import clock as waits_clock
from tests.virtual_clock import START, VirtualClock

Answer = Callable[[RunHandle, float], RunStatus]


class PolledSite(Site):
    """One account of a site.

    Args:
        clock: The time.
        answer: What is said of a run; what it raises is raised by the whole call.
        account: Sites with the same one share polls.
        **attributes: Of the site.
    """

    kind = "unicore"
    reference, name, settle = "unicore-site/birch", "birch", 1.0
    capabilities = frozenset()
    _shared: str | None = None
    _quiet = 0.0

    def __init__(self, clock: VirtualClock, answer: Answer, account: str = "one", **attributes: Any) -> None:
        self.clock, self.answer, self._account = clock, answer, account
        self.asked: list[tuple[float, list[str]]] = []
        self.refined: list[set[str]] = []
        self.seconds = 0.0
        for attribute, value in attributes.items():
            setattr(self, attribute, value)

    @property
    def account(self) -> str:
        return self._account

    @property
    def shared_account(self) -> str | None:
        return self._shared

    @property
    def quiet(self) -> float:
        return self._quiet

    @property
    def requests(self) -> int:
        """Calls, or runs asked where each is a call."""
        return len(self.asked) if self.one_call else sum(len(runs) for _, runs in self.asked)

    def gaps(self, run: str = "0") -> list[float]:
        """Seconds between two polls of a run."""
        times = [at for at, runs in self.asked if run in runs]
        return [after - before for before, after in itertools.pairwise(times)]

    async def ask(self, handles: Sequence[RunHandle]) -> dict[RunHandle, RunStatus]:
        self.asked.append((self.clock.now, [handle.remote_id for handle in handles]))
        if self.seconds:
            await waits_clock.sleep(self.seconds)
        return {handle: self.answer(handle, self.clock.now) for handle in handles}

    async def refine(self, statuses: Mapping[RunHandle, RunStatus]) -> dict[RunHandle, RunStatus]:
        self.refined.append({handle.remote_id for handle in statuses})
        return dict(statuses)

    async def post(self, *_: Any) -> None:
        raise AssertionError

    find = list = cancel = read_log = check = post  # type: ignore[assignment]


PolledSite.__abstractmethods__ = frozenset()


def run(number: int | str = 0, site: str | None = "unicore-site/birch") -> RunHandle:
    """A run, by its number."""
    name = f"train-{number}"
    return RunHandle(site=site, site_name="birch", kind="unicore", remote_id=str(number), site_key="pm", name=name)


def state(said: str, now: float, **more: Any) -> RunStatus:
    """A status as of now."""
    ends = RunState(said).is_end
    observed = START + timedelta(seconds=now)
    given = {"queued_at": START, "observed_at": observed, "ended_at": observed if ends else None}
    return RunStatus(state=RunState(said), **{**given, **more})


def script(changes: Mapping[float, str]) -> Answer:
    """The same for all runs: states by the time from which on they hold."""

    def answer(_: RunHandle, now: float) -> RunStatus:
        return state([said for at, said in sorted(changes.items()) if at <= now][-1], now)

    return answer


class Waiter:
    """Somebody who waits for runs, and keeps what was told."""

    def __init__(self) -> None:
        self.told: list[RunStatus | Exception] = []
        self.news = asyncio.Event()

    def tell(self, status: RunStatus | Exception) -> None:
        self.told.append(status)
        self.news.set()

    @property
    def states(self) -> list[str]:
        """The states told, without repeats."""
        said = [str(status.state) if isinstance(status, RunStatus) else repr(status) for status in self.told]
        return [word for number, word in enumerate(said) if number == 0 or said[number - 1] != word]

    async def until(self, word: str) -> None:
        while not self.states or self.states[-1] != word:
            self.news.clear()
            await self.news.wait()
