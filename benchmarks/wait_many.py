"""Very many runs in one process: memory and CPU of a waiting run, and a day of 10,000 runs at 50 sites.

Time is virtual and the sites are stubs, but for the CPU of a run: there both sides ask a real server, the sandbox.

    python benchmarks/wait_many.py
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import math
import random
import resource
import statistics
import subprocess
import sys
import time as wall
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.report import Row, report
from benchmarks.virtual import StubSite, VirtualTime, never, stub_handle
from prefect_mantik.loop import call
from prefect_mantik.waiting.waits import wait_until_ended

SITES, RUNS_AT_A_SITE, HOURS, ROUNDS = 50, 200, 24.0, 5
CALLS_AN_HOUR = 120
"""What a site that is asked once a minute may get, twice."""


def rss() -> int:
    """Bytes of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


async def waiting(runs: int) -> float:
    """Bytes for each of some runs that wait for an hour, beside the handles, which the flow holds anyway."""
    time = VirtualTime()
    site = StubSite(time, {str(number): 36_000.0 for number in range(runs)})
    handles = [stub_handle(str(number)) for number in range(runs)]
    with time.installed():
        await _let_wait(handles[:10], site, 60.0, time)  # what any wait needs once
        site.asked.update(dict.fromkeys(site.ends, 0))
        gc.collect()
        before = rss()
        after = await _let_wait(handles, site, time.now + 3600.0, time)
    return (after - before) / runs


async def _let_wait(handles: list[Any], site: StubSite, until: float, time: VirtualTime) -> int:
    wait = asyncio.ensure_future(wait_until_ended(dict.fromkeys(handles, site), reopen=never))
    while time.now < until:
        await time.sleep(60.0)
    gc.collect()
    now = rss()
    wait.cancel()
    await asyncio.wait([wait])
    return now


async def a_day() -> dict[str, float]:
    """A watcher with a wait for each site, over a day; at one site of five each run is a call."""
    luck, time = random.Random(1), VirtualTime()
    sites: list[StubSite] = []
    for number in range(SITES):
        ends = {
            f"{number}-{index}": math.exp(luck.uniform(math.log(600), math.log(HOURS * 3600)))
            for index in range(RUNS_AT_A_SITE)
        }
        sites.append(StubSite(time, ends, account=f"site-{number}", one_call=number % 5 > 0))
    before, began, cpu = rss(), wall.monotonic(), wall.process_time()
    with time.installed():
        await asyncio.gather(
            *(
                wait_until_ended({stub_handle(id, site.account): site for id in site.ends}, reopen=never)
                for site in sites
            )
        )
    hours = {site: max(site.ends.values()) / 3600 for site in sites}
    return {
        "wall": wall.monotonic() - began,
        "cpu": wall.process_time() - cpu,
        "bytes": rss() - before,
        "calls": max(site.requests / hours[site] for site in sites if site.one_call),
        "each": max(max(site.asked[id] / (site.ends[id] / 3600) for id in site.ends) for site in sites),
        "late": max(site.seen_ended[id] - site.ends[id] for site in sites for id in site.ends),
    }


def of_a_process(what: str) -> Any:
    """What a fresh process measures: memory that was used once is not given back."""
    done = subprocess.run([sys.executable, __file__, what], capture_output=True, text=True, check=True, timeout=1500)
    return json.loads(done.stdout.strip().splitlines()[-1])


def memory_row(runs: int, rounds: int) -> Row:
    """Memory of a waiting run."""
    each = statistics.median(of_a_process(str(runs)) for _ in range(rounds)) / 1024
    note = f"resident memory, virtual hour, stub site, without the handle; median of {rounds} processes"
    return Row(f"memory of a waiting run, {runs:,} of them", each, None, None, "<= 5 KB", each <= 5, "KB", note)


def day_rows(day: dict[str, float]) -> list[Row]:
    """The day of 10,000 runs."""
    simulated = (
        f"virtual time, stub sites (at one of five a run is a call), {SITES} waits, runs of 10 min to 24 h, once"
    )
    name, target = "10,000 runs at 50 sites for 24 h", f"<= {CALLS_AN_HOUR} (its budget), no end > 66 s late"
    costs = f"CPU {day['cpu']:.0f} s; memory {day['bytes'] / 2**20:.0f} MB with the stubs"
    seen = f"a run that is a call itself: {day['each']:.0f} an hour at most; latest end seen {day['late']:.0f} s late"
    met = day["calls"] <= CALLS_AN_HOUR and day["late"] <= 66
    return [
        Row(f"{name}: wall time", day["wall"], None, None, "", None, "s", f"{simulated}; {costs}"),
        Row(f"{name}: calls an hour at a one-call site", day["calls"], None, None, target, met, "", seen),
    ]


def main() -> int:
    """Measure and report."""
    if len(sys.argv) > 1:
        logging.disable(logging.CRITICAL)
        what = sys.argv[1]
        print(json.dumps(call(a_day) if what == "day" else call(waiting, int(what))))
        return 0
    report(memory_row(1000, ROUNDS), memory_row(10_000, ROUNDS), *day_rows(of_a_process("day")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
