"""A flow started by hand: `python -m tests.faults.deployed.by_hand SHAPE MARK SECONDS JOB...`, or with `serve`."""

from __future__ import annotations

import asyncio
import inspect
import sys

from tests.faults.deployed.flows import SHAPES

if __name__ == "__main__":
    shape, mark, seconds, *jobs = sys.argv[1:]
    if shape == "serve":
        SHAPES["held"].serve(name="served")
    else:
        given = SHAPES[shape](jobs, mark, float(seconds))
        if inspect.isawaitable(given):
            asyncio.run(given)
