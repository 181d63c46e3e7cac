"""One room for the figures of all benchmarks: how they are printed, kept, and shown in the documentation.

python benchmarks/report.py     writes the table of docs/benchmarks.md from benchmarks/results.json
"""

from __future__ import annotations

import json
import os
import platform
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- figures: `make bench` writes them -->", "<!-- end of figures -->"

_PACKAGES = ("prefect", "httpx", "pyunicore", "pyfirecrest", "mlflow-skinny")
_WIDTH = 120


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        name: What was measured, and its key among all results.
        ours: Our figure; None where it could not be measured.
        peer: That of whom we are compared with, if anybody.
        ratio: What the target is about, where that is a ratio.
        target: What was aimed at, in words; empty where it is only reported.
        met: Whether it was reached; None where there is no target, or nothing could be measured.
        unit: Of both figures.
        note: Who the peer is, what was simulated, how often it was measured.
    """

    name: str
    ours: float | None
    peer: float | None = None
    ratio: float | None = None
    target: str = ""
    met: bool | None = None
    unit: str = ""
    note: str = ""


def report(*rows: Row) -> None:
    """Print rows, and keep them with the results of all benchmarks."""
    print(table(rows), flush=True)
    known = {entry["name"]: entry for entry in _read()}
    known |= {row.name: {**asdict(row), **surroundings()} for row in rows}
    RESULTS.write_text(json.dumps(list(known.values()), indent=1) + "\n")


def surroundings() -> dict[str, Any]:
    """The machine, its load, the versions and the date of a figure."""
    versions = {"python": platform.python_version(), **{name: metadata.version(name) for name in _PACKAGES}}
    return {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "load": round(os.getloadavg()[0], 1),
        "versions": versions,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def table(rows: Sequence[Row]) -> str:
    """Rows as lines that fit a terminal; notes stand below their row."""
    heads = ("name", "ours", "peer", "ratio", "target", "met")
    cells = [heads, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
    widths[0] = min(widths[0], _WIDTH - sum(widths[1:]) - 2 * len(heads))
    lines = []
    for line, note in zip(cells, ("", *(row.note for row in rows)), strict=True):
        name, *more = textwrap.wrap(line[0], max(20, widths[0])) or [""]
        rest = (cell.ljust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        lines.append("  ".join((name.ljust(widths[0]), *rest)).rstrip())
        lines += [f"  {part}" for part in more]
        lines += textwrap.wrap(note, _WIDTH, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    unit = f" {row.unit}" if row.unit else ""
    ours = f"{number(row.ours)}{unit}"
    peer = f"{number(row.peer)}{unit}" if row.peer is not None else "-"
    return row.name, ours, peer, number(row.ratio), row.target or "-", verdict(row.met)


def number(value: float | None) -> str:
    """A figure with three digits that count."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def verdict(met: bool | None) -> str:
    """The word for it."""
    return {True: "met", False: "MISSED", None: "-"}[met]


def page_table(entries: Sequence[dict[str, Any]]) -> str:
    """Results as a table of the documentation."""
    lines = ["| what | ours | peer | ratio | target | met | how |", "|---|---|---|---|---|---|---|"]
    for entry in entries:
        row = Row(**{name: entry[name] for name in Row.__dataclass_fields__})
        lines.append(f"| {' | '.join((*_cells(row), row.note))} |")
    if entries:
        last = max(entries, key=lambda entry: str(entry["date"]))
        versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
        lines += ["", f"Last run: {last['date']}, {last['machine']}, {versions}."]
    return "\n".join(lines)


def _read() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    return found


def main() -> int:
    """Put the table into its place on the page."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{page_table(_read())}\n\n{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
