"""How long a cancel takes: from the call to the site's accepting ours, apart from the site's own time to end a job."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from tests.faults.deployed.stage import Played

UNDER_A_WORKER = "direct and async waits under a worker"
KILLED_FIRST = "where Prefect must kill first"
BY_HAND = "flow started by hand"
GROUPS = {UNDER_A_WORKER: 10.0, KILLED_FIRST: 45.0, BY_HAND: 75.0}
"""The groups, with the seconds that 95 of 100 cancels should stay below."""

FILE = Path("build/fault-matrix-cancel.json")


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that no fewer than a share of all values reach or stay below."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def report(played: Sequence[Played]) -> None:
    """Print the times of each group, and write them to a file."""
    rows = []
    for group, target in GROUPS.items():
        of_group = [each for each in played if each.trial.group == group]
        delays = [delay for each in of_group for delay in each.delays]
        lags = [lag for each in of_group for lag in each.lags]
        if not of_group:
            continue
        row = {
            "group": group,
            "flow_runs": len(of_group),
            "jobs": len(delays),
            "not_cancelled": [each.trial.name for each in of_group if not each.delays],
            "p50": _rounded(delays, 0.5),
            "p95": _rounded(delays, 0.95),
            "target_p95": target,
            "site_lag_p50": _rounded(lags, 0.5),
            "site_lag_p95": _rounded(lags, 0.95),
            "delays": {each.trial.name: [round(delay, 2) for delay in each.delays] for each in of_group},
        }
        rows.append(row)
        print(
            f"cancel, {group}: {row['jobs']} jobs of {row['flow_runs']} flow runs, p50 {row['p50']} s, "
            f"p95 {row['p95']} s (target {target:.0f} s); the site's own time "
            f"p50 {row['site_lag_p50']} s, p95 {row['site_lag_p95']} s",
            flush=True,
        )
    if rows:
        FILE.parent.mkdir(exist_ok=True)
        FILE.write_text(json.dumps(rows, indent=1) + "\n")


def _rounded(values: Sequence[float], share: float) -> float | None:
    return round(percentile(values, share), 1) if values else None
