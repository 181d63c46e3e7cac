"""Runs the matrix: workers with a sandbox each, one Prefect server for all."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import queue
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.faults import books, cells
from tests.faults.bench import Bench, save_blocks, until
from tests.faults.kinds import KINDS, Kind
from tests.faults.orders import Strike
from tests.faults.plan import Planned, Recording
from tests.faults.report import Cell
from tests.faults.steps import gaps
from tests.faults.trial import Trial

SLOTS = 8
_print_turn = threading.Lock()


def say(text: str) -> None:
    """Print whole lines, whoever else prints."""
    with _print_turn:
        print(text, file=sys.stderr, flush=True)


def record(bench: Bench, kind: Kind) -> Recording:
    """The sequences of requests of an undisturbed run and of a cancel."""
    run = Trial(bench, kind, 0, f"record-{kind.slug}")
    try:
        one = run.start()
        until(lambda: one.ended or len([1 for seen in one.requests() if seen.phase == "wait"]) > 1, "it waits")
        run.open_gate()
        run.expect_finished(run.result_of(one))
        if run.complaints:
            raise RuntimeError(f"An undisturbed run at {kind.name} fails: {run.complaints}\n{run.stderr()}")
    finally:
        run.close()
    return Recording(kind, list(gaps(one.requests())), _record_cancel(bench, kind))


def _record_cancel(bench: Bench, kind: Kind) -> list[Strike]:
    run = Trial(bench, kind, 0, f"record-cancel-{kind.slug}")
    bench.control.switch(all_endpoints=True)
    try:
        one = run.start()
        run.until_running()
        until(lambda: one.handle() is not None, "the handle is there")
        one.kill()
        told = one.handle()
        again = run.start(verb="cancel", handle=told.model_dump(mode="json") if told else None)
        run.result_of(again)
        changing = [gap.strike for gap in gaps(again.requests()) if gap.strike.method != "GET"]
        return [place for place in changing if not place.route.endswith(("/search", "/token", "/tokens/create"))]
    finally:
        run.close()
        bench.behave()


def run_one(bench: Bench, planned: Planned, *, number: int) -> Cell:
    """One trial; a failed one says all that is needed to repeat it."""
    bench.behave()
    trial = Trial(bench, planned.kind, planned.seed, f"{number:03}-{planned.name}")
    began = time.monotonic()
    try:
        planned.run(trial)
    except Exception:  # noqa: BLE001  # a trial that breaks is a wrong outcome, and says why
        trial.complaints.append(traceback.format_exc())
    bench.control.clear_faults()
    there = books.settled(bench, trial.key)
    cell = Cell(
        kind=planned.kind.name,
        fault=planned.fault,
        step=planned.step,
        trials=1,
        logical_runs=trial.logical_runs,
        attempts=trial.attempts,
        jobs=len(there.jobs),
        overlapping=there.overlapping(trial.settle),
        left_running=len(there.live),
        mlflow_runs=len(there.mlflow),
        wrong_outcomes=int(bool(trial.complaints)),
        mlflow_open=len(there.open_runs),
    )
    trial.close()
    if cell.broken():
        name = f"{planned.kind.name} / {planned.fault} / {planned.step}"
        said = "\n  ".join([f"FAILED {name} (seed {planned.seed}): {'; '.join(cell.broken())}", *trial.complaints])
        say(f"{said}\n  {there.describe()}\n{trial.stderr()}\n--- end of {name}, {time.monotonic() - began:.0f} s")
    return cell


def run_all(
    benches: Sequence[Bench], planned: Sequence[Planned], *, progress: bool = True
) -> list[tuple[Planned, Cell, float]]:
    """Share the trials out among the benches; the results are in the order of the plan."""
    waiting: queue.SimpleQueue[tuple[int, Planned]] = queue.SimpleQueue()
    for item in enumerate(planned):
        waiting.put(item)
    done: dict[int, tuple[Planned, Cell, float]] = {}

    def work(bench: Bench) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                number, trial = waiting.get_nowait()
                began = time.monotonic()
                cell = run_one(bench, trial, number=number)
                done[number] = trial, cell, time.monotonic() - began
                if progress and len(done) % 20 == 0:
                    say(f"{len(done)} of {len(planned)} trials")

    in_parallel([functools.partial(work, bench) for bench in benches])
    return [done[number] for number in sorted(done)]


def in_parallel(works: Sequence[Callable[[], None]]) -> None:
    """Do all of it in threads that see the same Prefect settings; the first error is raised when all have ended."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  # for whoever waits
            errors.append(error)

    contexts = [contextvars.copy_context() for _ in works]
    threads = [
        threading.Thread(target=context.run, args=(guarded, work), daemon=True)
        for context, work in zip(contexts, works, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@contextlib.contextmanager
def prefect() -> Iterator[str]:
    """A Prefect server of one's own, and its URL."""
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield str(PREFECT_API_URL.value())


@contextlib.contextmanager
def benches(number: int) -> Iterator[tuple[list[Bench], list[Recording]]]:
    """So many benches at one Prefect server, and what they recorded of each kind of site."""
    from prefect_mantik.ledger import origin
    from prefect_mantik.loop import call
    from prefect_mantik.sandbox.process import start_sandbox

    directory = Path(tempfile.mkdtemp(prefix="faults-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        url = stack.enter_context(prefect())
        environment = {**os.environ, "PREFECT_API_URL": url, "PREFECT_LOGGING_LEVEL": "INFO"}
        name = call(origin)
        made: dict[int, Bench] = {}
        recorded: dict[str, Recording] = {}

        def make(count: int) -> None:
            sandbox = start_sandbox(slots=SLOTS)
            stack.callback(sandbox.stop)
            place = directory / f"worker-{count}"
            place.mkdir()
            made[count] = Bench(f"faults-{count}", sandbox, environment, url, name, place)
            stack.callback(made[count].close)
            save_blocks(made[count])
            for kind in list(KINDS.values())[count::number]:
                recorded[kind.name] = record(made[count], kind)

        in_parallel([functools.partial(make, count) for count in range(number)])
        yield [made[count] for count in sorted(made)], [recorded[kind] for kind in KINDS]


def matrix(seed: int, workers: int, only: Sequence[str] = ()) -> list[Cell]:
    """Record, plan, run; rows in the order of kinds and faults."""
    kinds = list(KINDS.values())
    with benches(workers) as (made, recordings):
        planned = [
            trial
            for trial in cells.all_trials(recordings, seed)
            if not only or any(_wanted(trial, each) for each in only)
        ]
        say(f"seed {seed}: {len(planned)} trials, {workers} workers")
        results = run_all(made, planned)
    slow = sorted(results, key=lambda result: -result[2])[:8]
    say("slowest: " + "; ".join(f"{trial.name} {seconds:.0f} s" for trial, _, seconds in slow))
    order = {kind.name: number for number, kind in enumerate(kinds)}
    rows = sorted(results, key=lambda result: (order[result[0].kind.name], result[0].seed))
    return [cell for _, cell, _ in rows]


def _wanted(trial: Planned, only: str) -> bool:
    """Whether a trial is meant by KIND/FAULT/STEP, of which each may be left out or be a part."""
    asked = [*(part.strip().lower() for part in only.split("/")), "", "", ""][:3]
    given = (trial.kind.name.lower(), trial.fault.lower(), trial.step.lower())
    kind_fits = asked[0] in ("", given[0]) or (asked[0] in given[0] and asked[0] not in [k.lower() for k in KINDS])
    return kind_fits and all(part in name for part, name in zip(asked[1:], given[1:], strict=True))
