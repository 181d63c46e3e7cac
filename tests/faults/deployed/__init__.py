"""Layer (b) of the fault matrix: through real Prefect servers, real workers, saved blocks."""

from __future__ import annotations

from tests.faults.report import Cell


def run(seed: int, only: str | None = None) -> list[Cell]:
    """Do the trials and give their rows.

    Args:
        seed: For the moments at which things go wrong.
        only: A pattern of names, or None for all.
    """
    from tests.faults.deployed.running import run_trials

    return run_trials(seed, only)
