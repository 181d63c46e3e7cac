"""How late a wait learns of an end, beside a fixed interval that makes as many calls. Simulated: time is virtual.

python benchmarks/wait_lateness.py [jobs]
"""

from __future__ import annotations

import logging
import math
import random
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.report import Row, report
from benchmarks.virtual import StubSite, VirtualTime, never, stub_handle
from prefect_mantik.loop import call
from prefect_mantik.waiting.waits import wait_until_ended

JOBS, ROUNDS = 600, 5
SHORTEST, LONGEST, SHORT = 60.0, 12 * 3600.0, 600.0
JITTER = 1.1


class Seen(NamedTuple):
    """One job: how long it ran, how late that was seen, and what share of what may be that is."""

    seconds: float
    late: float
    share: float


async def ours(durations: list[float]) -> tuple[list[Seen], int]:
    """Each job at an account of its own; what was seen, and the calls."""
    time = VirtualTime()
    sites = {str(i): StubSite(time, {str(i): seconds}, account=f"a{i}") for i, seconds in enumerate(durations)}
    with time.installed():
        await wait_until_ended({stub_handle(id, f"a{id}"): site for id, site in sites.items()}, reopen=never)
    seen = []
    for id, site in sites.items():
        late = site.seen_ended[id] - site.ends[id]
        allowed = max(5.0, min(60.0, 0.1 * site.ends[id]))
        seen.append(Seen(site.ends[id], late, late / allowed))
    return seen, sum(site.requests for site in sites.values())


def fixed(durations: list[float], calls: int, luck: random.Random) -> list[Seen]:
    """The same jobs asked at one interval, so long that as many calls are made."""
    low, high = 1.0, 600.0
    for _ in range(60):
        middle = (low + high) / 2
        many = sum(1 + math.ceil(seconds / middle) for seconds in durations)
        low, high = (middle, high) if many > calls else (low, middle)
    interval = high
    lates = []
    for seconds in durations:
        first = luck.uniform(0, interval)
        late = (first - seconds) % interval
        lates.append(Seen(seconds, late, 0.0))
    return lates


def p95(seen: list[Seen]) -> float:
    """The 95th percentile of how late the ends of short jobs are seen."""
    return statistics.quantiles([one.late for one in seen if one.seconds < SHORT], n=20)[-1]


def main() -> int:
    """Measure and report."""
    logging.disable(logging.CRITICAL)
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else JOBS
    mine, theirs, worst = [], [], 0.0
    for round_number in range(ROUNDS):
        luck = random.Random(round_number)
        durations = [math.exp(luck.uniform(math.log(SHORTEST), math.log(LONGEST))) for _ in range(jobs)]
        seen, calls = call(ours, durations)
        mine.append(p95(seen))
        theirs.append(p95(fixed(durations, calls, luck)))
        worst = max(worst, *(one.share for one in seen))
    ours_p95, peer_p95 = statistics.median(mine), statistics.median(theirs)
    how = f"virtual time, stub site; {jobs} jobs log-uniform in 1 min to 12 h, median of {ROUNDS} mixes"
    report(
        Row(
            "p95 of lateness, jobs under 10 minutes",
            ours_p95,
            peer_p95,
            ours_p95 / peer_p95,
            "<= 0.8 of a fixed interval",
            ours_p95 / peer_p95 <= 0.8,
            "s",
            f"peer: one fixed interval with as many calls; {how}",
        ),
        Row(
            "largest lateness, of what is allowed",
            worst,
            None,
            None,
            "<= 1 (jitter: 1.1)",
            worst <= JITTER,
            "",
            f"allowed: 10 % of the age, 5 to 60 s, which a jitter of 10 % may exceed; {how}",
        ),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
