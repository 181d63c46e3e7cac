"""A slice of the fault matrix for the fast tests: the cells that tell most. `make fault-test` runs all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from prefect_mantik.ledger import origin
from prefect_mantik.loop import call
from prefect_mantik.sandbox.process import SandboxProcess
from tests.conftest import PrefectServer
from tests.faults import answers, kills, report, rivals
from tests.faults.bench import Bench, save_blocks
from tests.faults.kinds import FIRECREST, KINDS, PLATFORM, UNICORE, Kind
from tests.faults.orders import Strike
from tests.faults.plan import Planned, Recording
from tests.faults.run import run_one
from tests.faults.steps import Gap
from tests.faults.trial import Trial


@pytest.fixture(scope="module")
def bench(
    mantik_sandbox: SandboxProcess, prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    """The session's sandbox and Prefect server, with blocks of our own."""
    directory = tmp_path_factory.mktemp("faults")
    made = Bench(
        "faults-slice",
        mantik_sandbox,
        prefect_server.environment(),
        prefect_server.api_url,
        call(origin),
        directory,
    )
    save_blocks(made)
    yield made
    made.behave()
    made.close()


def _recording(kind: Kind) -> Recording:
    """The one place that the slice strikes: the POST that makes the job."""
    before = Strike(method="POST", route=kind.post_route)
    return Recording(kind, [Gap("POST", before), Gap("accept", kills.behind(before))], [])


def _killed(kind: Kind) -> Planned:
    return Planned(kind, "SIGKILL", "accept", kills.killer(kills.behind(Strike(method="POST", route=kind.post_route))))


def _dropped(kind: Kind) -> Planned:
    run: Callable[[Trial], None] = lambda trial: answers.faulty(trial, _recording(kind), "POST", "drop_after")  # noqa: E731
    return Planned(kind, "dropped after accept", "POST", run)


def _two(kind: Kind) -> Planned:
    return Planned(kind, "two submitters", "look", lambda trial: rivals.both(trial, forced=False))


SLICE = [
    *(_killed(kind) for kind in KINDS.values()),
    *(_dropped(KINDS[name]) for name in (PLATFORM, UNICORE, FIRECREST)),
    _two(KINDS[UNICORE]),
]


@pytest.mark.parametrize("planned", SLICE, ids=[planned.name for planned in SLICE])
def test_numbers_hold(bench: Bench, planned: Planned) -> None:
    cell = run_one(bench, planned, number=SLICE.index(planned))
    assert cell.broken() == [], report.table([cell])
    assert cell.trials == cell.jobs == cell.attempts == cell.mlflow_runs == 1
