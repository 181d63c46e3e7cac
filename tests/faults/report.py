"""What the fault matrix came to: one row for each kind of site, fault and step; as JSON, and as a table."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Layer = Literal["a", "b"]

WIDTH = 100
_FAULT, _STEP, _NUMBER = 38, 20, 5


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The trials of one kind of site, fault and step, added up.

    Attributes:
        kind: Kind of site, as in `cells.KINDS`.
        fault: What went wrong.
        step: When: the step of the run that the fault met.
        trials: How often this was done.
        logical_runs: Keys that were submitted.
        attempts: Attempts that should have been made: one for a run, one more where a dead job was to be made again.
        jobs: Jobs that the sites took under these keys.
        overlapping: Pairs of jobs of one key that were live together for longer than the look after the POST takes.
        left_running: Jobs that were live when nobody wanted them any more.
        mlflow_runs: MLflow runs under these keys.
        wrong_outcomes: Trials that did not come to what they should.
        mlflow_open: MLflow runs under these keys that nobody closed.
        layer: a: the engine in bare processes. b: through a Prefect server and a worker.
    """

    kind: str
    fault: str
    step: str
    trials: int
    logical_runs: int
    attempts: int
    jobs: int
    overlapping: int
    left_running: int
    mlflow_runs: int
    wrong_outcomes: int
    mlflow_open: int = 0
    layer: Layer = "a"

    def broken(self) -> list[str]:
        """What does not hold and is not known, in words."""
        found = []
        if self.jobs != self.attempts and not self.known_second_job:
            found.append(f"{self.jobs} jobs for {self.attempts} attempts")
        if self.mlflow_runs != self.attempts:
            found.append(f"{self.mlflow_runs} MLflow runs for {self.attempts} attempts")
        counted = {
            "overlapping": self.overlapping,
            "left running": self.left_running,
            "MLflow runs left open": self.mlflow_open,
            "wrong outcomes": self.wrong_outcomes,
        }
        return found + [f"{number} {what}" for what, number in counted.items() if number]

    @property
    def known_second_job(self) -> bool:
        """Whether this is the second job that cannot be prevented."""
        return (self.fault, self.step) in KNOWN and self.jobs == self.attempts + self.trials


KNOWN = {
    ("SIGSTOP across the slot's lease", "POST"): (
        "a process that stands still between its look and its POST, for longer than another try takes, makes a second "
        "job when it wakes. No site can refuse that; the look after the POST ends the job at once"
    )
}
"""Where a second job cannot be prevented, by fault and step, with why. All other numbers must hold there too."""

NUMBERS = (
    "trials",
    "logical_runs",
    "attempts",
    "jobs",
    "overlapping",
    "left_running",
    "mlflow_runs",
    "wrong_outcomes",
)
_HEADS = ("tri-als", "runs", "att.", "jobs", "over-lap", "left on", "ML-flow", "bad")


def merged(cells: Iterable[Cell]) -> list[Cell]:
    """One row for each layer, kind, fault and step, in the order in which they come first."""
    rows: dict[tuple[str, str, str, str], Cell] = {}
    for cell in cells:
        place = (cell.layer, cell.kind, cell.fault, cell.step)
        rows[place] = added(rows[place], cell) if place in rows else cell
    return list(rows.values())


def added(one: Cell, other: Cell) -> Cell:
    """The sum of two rows, under the names of the first."""
    names = (*NUMBERS, "mlflow_open")
    return dataclasses.replace(one, **{name: getattr(one, name) + getattr(other, name) for name in names})


def holds(rows: Sequence[Cell]) -> bool:
    """Whether there are rows, and every number of theirs is as promised."""
    return bool(rows) and not any(row.broken() for row in rows)


def write(rows: Sequence[Cell], path: Path) -> None:
    """Write the rows as a JSON list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")


def read(path: Path) -> list[Cell]:
    """The rows of a file that `write` wrote."""
    return [Cell(**row) for row in json.loads(path.read_text())]


def table(rows: Sequence[Cell]) -> str:
    """The rows by kind of site, with sums, and below them what does not hold."""
    lines = [_heads(0), _heads(1), "-" * WIDTH]
    for kind in dict.fromkeys((row.layer, row.kind) for row in rows):
        of_kind = [row for row in rows if (row.layer, row.kind) == kind]
        lines.append(f"{kind[1]} (layer {kind[0]})")
        lines += [_line(f"  {row.fault}", row.step, row) for row in of_kind]
        lines.append(_line("  sum", "", _sum(of_kind)))
    if rows:
        lines += ["-" * WIDTH, _line("sum of all", f"{len(rows)} cells", _sum(rows))]
    lines += [
        f"NOT AS PROMISED: {row.kind} / {row.fault} / {row.step}: {'; '.join(row.broken())}"
        for row in rows
        if row.broken()
    ]
    lines += [
        textwrap.fill(f"KNOWN: {row.kind} / {row.fault} / {row.step}: {KNOWN[row.fault, row.step]}", WIDTH)
        for row in rows
        if row.known_second_job
    ]
    return "\n".join(lines)


def _sum(rows: Sequence[Cell]) -> Cell:
    total = rows[0]
    for row in rows[1:]:
        total = added(total, row)
    return total


def _heads(part: int) -> str:
    words = [head.replace("-", "- ").split()[part : part + 1] for head in _HEADS]
    numbers = "".join(f"{word[0] if word else '':>{_NUMBER}}" for word in words)
    return f"{'fault' if part else '':<{_FAULT}} {'step' if part else '':<{_STEP}} {numbers}".rstrip()


def _line(fault: str, step: str, row: Cell) -> str:
    numbers = "".join(f"{getattr(row, name):>{_NUMBER}}" for name in NUMBERS)
    mark = " !" if row.broken() and fault.startswith("  ") and step else ""
    return f"{_cut(fault, _FAULT)} {_cut(step + mark, _STEP)} {numbers}"


def _cut(text: str, width: int) -> str:
    return f"{text if len(text) <= width else text[: width - 1] + '~':<{width}}"
