"""What `from prefect_mantik import submit_run, TrainingJob` adds to importing prefect, its JobBlock and httpx.

Fresh processes in turn, so that a machine that slows down slows both; medians and the largest are printed.

    python benchmarks/import_cost.py [rounds]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.report import Row, report

TARGET = 0.15
ROUNDS = 9

_BASE = (
    "import time; start = time.perf_counter(); import prefect, httpx; from prefect.blocks.abstract import JobBlock; "
)
_PREFECT = _BASE + "prefect.flow, prefect.task; "
_OURS = "middle = time.perf_counter(); from prefect_mantik import submit_run, TrainingJob; "
_REPORT = "print(middle - start, time.perf_counter() - middle)"


def measured() -> tuple[float, float]:
    """Seconds for the base and for what we add, in one fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", _PREFECT + _OURS + _REPORT], capture_output=True, text=True, check=True, timeout=120
    )
    base, added = done.stdout.split()[-2:]
    return float(base), float(added)


def main() -> int:
    """Print one row. It reports, as the other benchmarks do: a noisy machine is no broken build."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    measured()  # compiles
    bases, added = zip(*(measured() for _ in range(rounds)), strict=True)
    ours, base = statistics.median(added), statistics.median(bases)
    note = (
        f"from prefect_mantik import submit_run, TrainingJob, after prefect, its JobBlock and httpx (the peer); "
        f"largest {max(added):.3f}; median of {rounds}, fresh processes in turn"
    )
    report(Row("import", ours, base, ours / base, f"<= {TARGET} s", ours <= TARGET, "s", note))
    return 0


if __name__ == "__main__":
    sys.exit(main())
