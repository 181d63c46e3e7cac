"""What runs in the bare process: one try of a run, which is struck at one of its requests.

Nothing of the package is replaced but clocks where a trial says so: the hook sits around httpx, and counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import json
import os
import pkgutil
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import httpx
import tenacity

import prefect_mantik
from prefect_mantik import api, holding, tasks, turns
from prefect_mantik.documents import aload_block
from prefect_mantik.errors import MantikError
from prefect_mantik.jobs import TrainingJob
from prefect_mantik.ledger import FlowRunLedger
from prefect_mantik.loop import call
from prefect_mantik.runs import RunHandle, RunKey
from prefect_mantik.sites import base, direct, direct_site
from prefect_mantik.sites.opening import remember, site_of
from prefect_mantik.waiting import clock, watching
from tests.faults import orders
from tests.faults.orders import Order, Outcome, Request
from tests.faults.steps import is_ledger, route_of

_HEAVY = ("sandbox", "cli", "demo", "doctor", "flows")


def import_everything() -> None:
    """What is imported where it is used, too: a victim is forked from here, and its clock replaced everywhere."""
    for module in pkgutil.walk_packages(prefect_mantik.__path__, "prefect_mantik."):
        if module.name.split(".")[1] not in _HEAVY:
            importlib.import_module(module.name)


_REAL_TIME = time.time
_LONG_ENOUGH = 150.0

_FAST = 1500.0
"""Seconds of virtual time in one of real time."""


class Hook:
    """Counts the requests of this process, writes them down, and strikes."""

    def __init__(self, order: Order) -> None:
        self._order, self._directory = order, Path(order.directory)
        self._seen: Counter[tuple[str, str, str]] = Counter()
        self.phase: str = ""

    def install(self) -> None:
        """Stand around every request from here on."""
        hook, real = self, httpx.AsyncClient.send

        async def send(client: httpx.AsyncClient, request: httpx.Request, **more: Any) -> httpx.Response:
            route = route_of(str(request.url))
            if not hook.phase or (route.startswith("/api/") and not is_ledger(route)):
                return await real(client, request, **more)
            place = (hook.phase, request.method, route)
            hook._seen[place] += 1
            seen = Request(
                phase=hook.phase, method=request.method, route=route, nth=hook._seen[place], sent=time.monotonic()
            )
            hook._strike(seen, after=False)
            response: httpx.Response | None = None
            try:
                response = await real(client, request, **more)
            finally:
                hook._write(seen, response)
            hook._strike(seen, after=True)
            return response

        httpx.AsyncClient.send = send  # type: ignore[method-assign]

    def _write(self, seen: Request, response: httpx.Response | None) -> None:
        told = response.headers.get("Retry-After", "") if response is not None else ""
        status = response.status_code if response is not None else 0
        whole = dataclasses.replace(seen, status=status, answered=time.monotonic(), retry_after=told)
        with (self._directory / orders.REQUESTS).open("a") as file:
            file.write(json.dumps(dataclasses.asdict(whole)) + "\n")

    def _strike(self, seen: Request, *, after: bool) -> None:
        wanted = self._order.strike
        if wanted is None or wanted.after is not after:
            return
        if (wanted.phase, wanted.method, wanted.route, wanted.nth) != (seen.phase, seen.method, seen.route, seen.nth):
            return
        leave(self._directory / orders.AT_STRIKE, "")
        if wanted.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        await_file(self._directory / orders.GO_ON)


def leave(path: Path, text: str) -> None:
    """Write a file that is there at once and whole."""
    part = path.with_name(f".{path.name}")
    part.write_text(text)
    part.rename(path)


def await_file(path: Path) -> None:
    """Stand still, the event loop too, until a file is there."""
    deadline = time.monotonic() + _LONG_ENOUGH
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path.name} did not come")
        time.sleep(0.01)


def main(path: Path) -> None:
    """Carry out the order in a file."""
    order = orders.read_order(path)
    directory = Path(order.directory)
    hook = Hook(order)
    hook.install()
    with _surroundings(order):
        try:
            outcome = call(_run if order.verb == "run" else _cancel, order, hook)
        except Exception as error:  # noqa: BLE001  # whatever a user would see is what is judged
            ours = isinstance(error, MantikError)
            outcome = Outcome(error=type(error).__name__, message=str(error), in_phase=hook.phase, ours=ours)
            if not ours:
                import traceback

                traceback.print_exc()
    leave(directory / orders.OUTCOME, json.dumps(dataclasses.asdict(outcome)))


async def _run(order: Order, hook: Hook) -> Outcome:
    directory = Path(order.directory)
    job = await aload_block(TrainingJob, order.job)
    key, site = RunKey.model_validate(order.key), job.site.open(job.project)
    for name in ("settle", "silence_limit"):
        if (value := getattr(order, name)) is not None:
            setattr(site, name, value)
    if order.barrier:
        leave(directory / orders.READY, "")
        await_file(directory / orders.GO_ON)
    hook.phase = "submit"
    spec = job.spec({"gate": order.gate})
    handle = await site.submit(spec, key, ledger=FlowRunLedger(key.root_flow_run_id), if_ended=order.if_ended)
    leave(directory / orders.HANDLE, handle.model_dump_json())
    remember(handle, site, job.project)
    hook.phase = "wait"
    [result] = await holding.ahold([handle], timeout=order.timeout, on_timeout="leave")
    hook.phase = "gather"
    [metrics] = await tasks._gather([handle], None)
    final = {name: value.value for name, value in metrics.final.items()}
    return Outcome(state=str(result.status.state), reason=str(result.status.reason or ""), metrics=final)


async def _cancel(order: Order, hook: Hook) -> Outcome:
    hook.phase = "cancel"
    handle = RunHandle.model_validate(order.handle)
    await (await site_of(handle)).cancel(handle)
    return Outcome(state="cancelled")


@contextlib.contextmanager
def _surroundings(order: Order) -> Iterator[None]:
    """The clocks and limits that the order asks for. The process ends with them."""
    if order.first_minutes is not None:
        base.FIRST_MINUTES = order.first_minutes
    if order.patience is not None:
        turns.PATIENCE = order.patience
    if order.silence_limit is not None:
        _limit_silence(order.silence_limit)
    if order.clock:
        _shift_clock(order.clock)
    if order.hours:
        _run_through_hours(Path(order.directory))
    if order.file_size is not None:
        _limit_packed_files(order.file_size)
    yield


def _limit_silence(seconds: float) -> None:
    real = watching.heed_silence

    def heed(runs: Any) -> None:
        for run in runs:
            run.site.silence_limit = seconds
        real(runs)

    watching.heed_silence = heed


def _shift_clock(seconds: float) -> None:
    """Let every place of the package that reads the wall clock read one that is wrong."""
    from prefect_mantik import runs
    from prefect_mantik.tracking import client

    for model in (runs.RunStatus, runs.RunHandle, runs.MetricValue, runs.RunMetrics, runs.RunResult, base.Finding):
        model.model_rebuild()  # while their `datetime` is still Python's
    assert client.TrackedRun.model_fields

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(seconds=seconds)

    def wrong() -> float:
        return _REAL_TIME() + seconds

    for name, module in list(sys.modules.items()):
        if not name.startswith("prefect_mantik.") or name.startswith("prefect_mantik.sandbox"):
            continue
        for attribute, value in list(vars(module).items()):
            if value is _REAL_TIME:
                setattr(module, attribute, wrong)
            elif value is datetime:
                setattr(module, attribute, Wrong)
    time.time = wrong


def _run_through_hours(directory: Path) -> None:
    """The waits' own clock runs fast. Repeats within a call would take real time."""
    began = time.monotonic()

    async def sleep(seconds: float) -> None:
        leave(directory / orders.HOURS, f"{(clock.monotonic() - began) / 3600}")
        await asyncio.sleep(seconds / _FAST)

    clock.sleep = sleep
    clock.monotonic = lambda: began + (time.monotonic() - began) * _FAST
    api.stop_before_delay = lambda _: tenacity.stop_after_attempt(1)  # type: ignore[assignment, misc]


def _limit_packed_files(size: int) -> None:
    """A full disk, as far as a process can have one: no file may grow beyond a size while code is packed."""
    real = direct.staged_code

    @contextlib.asynccontextmanager
    async def staged_code(*arguments: Any) -> Any:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            async with real(*arguments) as staged:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
                yield staged
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    direct.staged_code = staged_code
    assert direct_site.direct is direct
