"""Makes the automation that turns flow runs of dead hosts Crashed: `... SECONDS`, how long a silence may be."""

from __future__ import annotations

import sys

from prefect_mantik.lifecycle.heartbeat import crash_runs_of_dead_hosts

if __name__ == "__main__":
    print("ready", crash_runs_of_dead_hosts(within=float(sys.argv[1])))
