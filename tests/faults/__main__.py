"""`python -m tests.faults`: run the fault matrix, print it, write it, and fail when a number does not hold."""

from __future__ import annotations

import argparse
import importlib
import os
import secrets
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.report import Cell

OUTPUT = Path("build/fault-matrix.json")


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--layer", choices=("a", "b"), help="only this layer")
    parser.add_argument("--seed", type=int, help="of all chances; by default a new one")
    parser.add_argument(
        "--only", action="append", default=[], help="KIND/FAULT/STEP: such trials of layer a; parts may be empty"
    )
    parser.add_argument("--workers", type=int, default=3, help="sandboxes at the same time")
    parser.add_argument("--output", type=Path, help=f"by default {OUTPUT}; with --only nothing is written")
    asked = parser.parse_args()
    seed = asked.seed if asked.seed is not None else secrets.randbelow(10_000)
    # Prefect reads its settings when it is imported: nothing of the developer's own surroundings.
    for name in [name for name in os.environ if name.startswith(("PREFECT_", "MANTIK_", "MLFLOW_"))]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="prefect-home-") as home:
        # The server says each limit that two made at once with a traceback: what failed would be lost in them.
        os.environ.update(
            PREFECT_HOME=home, PREFECT_SERVER_ANALYTICS_ENABLED="false", PREFECT_SERVER_LOGGING_LEVEL="CRITICAL"
        )
        return _run(asked, seed)


def _run(asked: argparse.Namespace, seed: int) -> int:
    from tests.faults import cells, report, run

    output = asked.output or (None if asked.only else OUTPUT)
    began = time.monotonic()
    rows: list[Cell] = []
    if asked.layer != "b":
        rows += report.merged(run.matrix(seed, asked.workers, asked.only))
    if asked.layer != "a" and not asked.only:
        rows += _layer_b(seed)
    if output is not None:
        kept = report.read(output) if output.exists() and asked.layer else []
        report.write([*rows, *(row for row in kept if row.layer != asked.layer)], output)
    print(report.table(rows))
    if asked.layer != "b":
        print(cells.left_out())
    load = ", ".join(f"{number:.1f}" for number in os.getloadavg())
    print(f"seed {seed}, {time.monotonic() - began:.0f} s, load {load}, {os.cpu_count()} cores")
    return 0 if report.holds(rows) else 1


def _layer_b(seed: int) -> list[Cell]:
    try:
        deployed = importlib.import_module("tests.faults.deployed")
    except ModuleNotFoundError:
        print("layer b is not there", file=sys.stderr)
        return []
    return list(deployed.run(seed))


if __name__ == "__main__":
    sys.exit(main())
