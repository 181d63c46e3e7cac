"""`python -m tests.faults.deployed [--only PATTERN] [--seed N]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.faults.deployed import run
from tests.faults.report import holds, table, write

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--only", help="names of trials, with * and separated by commas")
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()
rows = run(arguments.seed, arguments.only)
write(rows, Path("build/fault-matrix-deployed.json"))
print(table(rows))
sys.exit(0 if holds(rows) else 1)
