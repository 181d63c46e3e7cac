"""The numbers of the matrix can fail, and its table fits."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.faults import books, report
from tests.faults.report import Cell

GOOD = Cell(
    kind="FirecREST, REST mode",
    fault="accept surfaces 90 s late, SIGKILL, and more words",
    step="note of accept and more",
    trials=1,
    logical_runs=1,
    attempts=1,
    jobs=1,
    overlapping=0,
    left_running=0,
    mlflow_runs=1,
    wrong_outcomes=0,
)


@pytest.mark.parametrize(
    "change",
    [
        {"jobs": 2},
        {"jobs": 0},
        {"mlflow_runs": 2},
        {"mlflow_open": 1},
        {"overlapping": 1},
        {"left_running": 1},
        {"wrong_outcomes": 1},
    ],
)
def test_a_number_that_is_not_as_promised_is_told(change: dict[str, int]) -> None:
    bad = dataclasses.replace(GOOD, **change)
    assert report.holds([GOOD])
    assert not report.holds([GOOD, bad])
    assert "NOT AS PROMISED" in report.table([GOOD, bad])


def test_nothing_at_all_does_not_hold() -> None:
    assert not report.holds([])


def test_rows_are_added_up_written_and_read(tmp_path: Path) -> None:
    other = dataclasses.replace(GOOD, layer="b")
    [mine, theirs] = report.merged([GOOD, other, GOOD])
    assert (mine.trials, mine.jobs, theirs.trials) == (2, 2, 1)
    path = tmp_path / "build" / "matrix.json"
    report.write([mine, theirs], path)
    assert report.read(path) == [mine, theirs]
    lines = report.table([mine, theirs]).splitlines()
    assert max(len(line) for line in lines if not line.startswith("NOT")) <= report.WIDTH


def _job(submitted: int, ended: int | None) -> dict[str, Any]:
    def at(second: int) -> str:
        return f"2026-01-01T00:00:{second:02}+00:00"

    return {"submitted": at(submitted), "ended": None if ended is None else at(ended), "live": ended is None}


@pytest.mark.parametrize(
    ("jobs", "pairs"),
    [
        pytest.param([_job(0, 20)], 0, id="one"),
        pytest.param([_job(0, 20), _job(20, 40)], 0, id="one after another"),
        pytest.param([_job(0, 20), _job(2, 6)], 0, id="the younger ended in time"),
        pytest.param([_job(0, 20), _job(2, 20)], 1, id="together"),
        pytest.param([_job(0, None), _job(2, None), _job(4, None)], 3, id="three that live on"),
    ],
)
def test_jobs_that_were_live_together_are_counted(jobs: list[dict[str, Any]], pairs: int) -> None:
    assert books.Books(jobs, []).overlapping(settle=1.5) == pairs


def test_a_second_job_is_known_at_one_place_only() -> None:
    (fault, step), *_ = report.KNOWN
    there = dataclasses.replace(GOOD, fault=fault, step=step, jobs=GOOD.jobs + GOOD.trials)
    assert report.holds([there])
    assert "KNOWN: " in report.table([there])
    assert not report.holds([dataclasses.replace(there, overlapping=1)])
    assert not report.holds([dataclasses.replace(there, jobs=there.jobs + 1)])
    assert not report.holds([dataclasses.replace(there, step="wait")])
