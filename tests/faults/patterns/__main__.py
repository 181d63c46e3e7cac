"""`python -m tests.faults.patterns [--only PATTERN] [--fault TEXT]`: every pattern under every fault, beside ours."""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prefect_mantik.sandbox.env_file import read_env_file
from tests.faults.deployed.prefect_api import WrongOutcome
from tests.faults.deployed.together import together
from tests.faults.deployed.world import World, made
from tests.faults.patterns.deploy import PATTERNS_POOL
from tests.faults.patterns.trials import AFTERWARDS, AT_THE_POST, FAULTS, Try

FILE = Path("build/fault-matrix-patterns.json")
NAMES = {
    "two-tasks": "submit task, wait task",
    "one-task": "submit and wait in one task",
    "transaction": "transaction around submit",
    "ours": "prefect-mantik",
}
SITES = ("birch", "cedar")
AT_ONCE = 6


def main(only: str = "", fault: str = "") -> int:
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    began = time.monotonic()
    cells = [
        (name, what, site)
        for what, name, site in itertools.product(FAULTS, NAMES, SITES)
        if only in name and fault in what
    ]
    with made(("first",)) as world:
        office = world.offices["first"]
        world.children.run("deploy", "tests.faults.patterns.deploy", api_url=office.server.api_url)
        # Patterns have no blocks: their secrets are in the environment.
        world.children.start(
            "patterns-worker",
            *("prefect", "worker", "start", "--pool", PATTERNS_POOL),
            api_url=office.server.api_url,
            PREFECT_WORKER_QUERY_SECONDS="2",
            **read_env_file(world.sandbox.env_file),
        )
        print(f"[{time.monotonic() - began:4.0f} s] {len(cells)} flow runs", flush=True)
        tries = []
        for faults in (AT_THE_POST, AFTERWARDS):
            tries += together([partial(_play, world, *cell) for cell in cells if cell[1] in faults], AT_ONCE)
        rows = [_row(name, what, [t for t in tries if (t[0], t[1]) == (name, what)]) for name, what in _pairs(cells)]
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(rows, indent=1) + "\n")
    _print(rows)
    print(f"[{time.monotonic() - began:4.0f} s] over", flush=True)
    ours = [row for row in rows if row["pattern"] == NAMES["ours"]]
    holds = all(
        row["jobs"] == row["logical_runs"] and not (row["overlapping"] or row["left_running"] or row["errors"])
        for row in ours
    )
    return 0 if holds else 1


def _play(world: World, name: str, what: str, site: str) -> tuple[str, str, Try, str]:
    each = Try(world, name, site)
    start, error = time.monotonic(), ""
    try:
        FAULTS[what](each)
        each.finish()
    except (WrongOutcome, OSError) as caught:
        log = world.offices["first"].api.log(each.id)[-15:] if each.id else []
        error = "\n    ".join([str(caught), *log])
        print(f"{name} at {site}, {what}: {error}", flush=True)
    print(f"  {name} at {site}, {what}: {each.state}, {time.monotonic() - start:.0f} s", flush=True)
    return name, what, each, error


def _pairs(cells: Sequence[tuple[str, str, str]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((name, what) for name, what, _ in cells))


def _row(name: str, what: str, done: Sequence[tuple[str, str, Try, str]]) -> dict[str, Any]:
    tries = [each for _, _, each, _ in done]
    return {
        "pattern": NAMES[name],
        "fault": what,
        "logical_runs": len(tries),
        "jobs": sum(len(each.jobs()) for each in tries if each.id),
        "overlapping": sum(each.overlapping() for each in tries if each.id),
        "left_running": sum(each.left_running for each in tries),
        "states": [each.state for each in tries],
        "errors": [error for *_, error in done if error],
    }


def _print(rows: Sequence[dict[str, Any]]) -> None:
    print(f"{'pattern':<30}{'fault':<34}{'runs':>5}{'jobs':>5}{'over-':>7}{'left':>6}  states")
    print(f"{'':<30}{'':<34}{'':>5}{'':>5}{'lap':>7}{'on':>6}")
    for row in sorted(rows, key=lambda row: list(FAULTS).index(row["fault"])):
        numbers = f"{row['logical_runs']:>5}{row['jobs']:>5}{row['overlapping']:>7}{row['left_running']:>6}"
        print(f"{row['pattern']:<30}{row['fault']:<34}{numbers}  {', '.join(sorted(set(row['states'])))}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of a pattern's name: two-tasks, one-task, transaction, ours")
    parser.add_argument("--fault", default="", help="part of a fault's name")
    arguments = parser.parse_args()
    sys.exit(main(arguments.only, arguments.fault))
