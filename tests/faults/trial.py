"""One trial: tries of one run, each a bare process, and what they came to."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect_mantik.runs import RunHandle
from tests.faults import orders, template
from tests.faults.bench import Bench, until
from tests.faults.kinds import QUICK_SETTLE, Kind
from tests.faults.orders import Order, Outcome, Request
from tests.faults.project import METRIC
from tests.faults.victim import leave

TRY_AGAIN = ("SubmitUnknown", "SubmitIncomplete", "SubmitRefused", "ServiceUnavailable", "RequestFailed")
"""Errors after which the design has a run tried again under the same key."""

LIMIT = 130.0
"""Seconds that one try may take."""


class Try:
    """One process that tries to bring a run home.

    Args:
        bench: Where it was started.
        order: What it was told.
    """

    def __init__(self, bench: Bench, order: Order) -> None:
        self.order, self.directory = order, Path(order.directory)
        bench.start(order.write())
        until((self.directory / template.PID).exists, "the victim is forked")
        self.pid = int((self.directory / template.PID).read_text())

    def until_struck(self) -> None:
        """Wait until it stands at its strike, or has died there."""
        self._until_file(orders.AT_STRIKE)

    def until_ready(self) -> None:
        """Wait until it stands before its submit."""
        self._until_file(orders.READY)

    def _until_file(self, name: str) -> None:
        path = self.directory / name
        until(lambda: path.exists() or self.ended, f"{name} of {self.directory}")
        if not path.exists():
            raise AssertionError(f"the process ended before {name}: {self.outcome()}\n{self.stderr()}")

    def go_on(self) -> None:
        """Let it go on."""
        leave(self.directory / orders.GO_ON, "")

    def kill(self) -> None:
        """SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.until_ended()

    def stop(self) -> None:
        """SIGSTOP."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return (self.directory / template.ENDED).exists()

    def until_ended(self) -> None:
        """Wait until the process is gone."""
        until(lambda: self.ended, f"the end of {self.directory}", LIMIT)

    def outcome(self) -> Outcome | None:
        """How it ended; None where it was killed."""
        path = self.directory / orders.OUTCOME
        return Outcome(**json.loads(path.read_text())) if path.exists() else None

    def handle(self) -> RunHandle | None:
        """The handle that it got, if any."""
        path = self.directory / orders.HANDLE
        return RunHandle.model_validate_json(path.read_text()) if path.exists() else None

    def requests(self) -> list[Request]:
        """What it asked, in order."""
        path = self.directory / orders.REQUESTS
        written = path.read_text() if path.exists() else ""
        lines = written.rpartition("\n")[0].splitlines()  # the last line may be on its way
        return [Request(**json.loads(line)) for line in lines]

    def in_phase(self, phase: str) -> bool:
        """Whether it has asked something in a phase."""
        return any(request.phase == phase for request in self.requests())

    def stderr(self) -> str:
        """What it printed."""
        path = self.directory / template.STDERR
        return path.read_text() if path.exists() else ""


class Trial:
    """One key, its tries, and the complaints about them.

    Args:
        bench: Where it runs.
        kind: Kind of site.
        seed: Of all chances in it.
        name: Of its directory and its key.
    """

    def __init__(self, bench: Bench, kind: Kind, seed: int, name: str) -> None:
        self.bench, self.kind, self.control = bench, kind, bench.control
        self.random = random.Random(seed)
        self.directory = bench.directory / name
        self.directory.mkdir(parents=True)
        self.gate = self.directory / "gate"
        self.key = bench.new_key(name)
        self.tries: list[Try] = []
        self.complaints: list[str] = []
        self.attempts = 1
        self.logical_runs = 1
        self.settle = QUICK_SETTLE
        self.outcome: Outcome | None = None

    def start(self, **fields: Any) -> Try:
        """Start a try."""
        directory = self.directory / f"try-{len(self.tries) + 1}"
        directory.mkdir()
        order = Order(
            job=self.bench.job_name(self.kind),
            key=self.key.model_dump(mode="json"),
            directory=str(directory),
            gate=str(self.gate),
            **{"settle": self.settle, **fields},
        )
        self.tries.append(Try(self.bench, order))
        return self.tries[-1]

    def open_gate(self) -> None:
        """Let the training end."""
        leave(self.gate, "")

    def bring_home(self, *, tries: int = 4, also: Sequence[str] = (), **fields: Any) -> Outcome | None:
        """Try until there is a result; an error of the design that says so is followed by another try."""
        self.open_gate()
        for _ in range(tries):
            found = self.result_of(self.start(**fields))
            if found is None or not found.error:
                break
            if found.error not in (*TRY_AGAIN, *also):
                break
        self.outcome = found
        return found

    def result_of(self, one: Try) -> Outcome | None:
        """Wait for a try to end, and say how it did."""
        one.until_ended()
        return one.outcome()

    def expect(self, is_so: bool, what: str) -> None:
        """Complain unless something is so."""
        if not is_so:
            self.complaints.append(what)

    def expect_finished(self, found: Outcome | None, attempt: int = 1) -> None:
        """The run finished, its metrics came home, and all tries that got a handle got the same one."""
        self.expect(found is not None and found.state == "FINISHED", f"FINISHED expected, {found} came")
        self.expect(found is not None and METRIC in found.metrics, f"the metric {METRIC!r} expected, {found} came")
        handles = [handle for one in self.tries if (handle := one.handle())]
        latest = [handle for handle in handles if handle.attempt == attempt]
        self.expect(bool(latest), f"attempt {attempt} expected, attempts {[handle.attempt for handle in handles]} came")
        same = {(handle.identity, handle.attempt) for handle in latest}
        self.expect(len(same) <= 1, f"the same handle expected, {same} came")

    def expect_error(self, found: Outcome | None, *names: str) -> None:
        """A try ended with one of some errors of ours."""
        ok = found is not None and found.error in names and found.ours
        self.expect(ok, f"{' or '.join(names)} expected, {found} came")

    def one_job(self) -> dict[str, Any]:
        """The job of the run, when the site has it."""
        found: list[dict[str, Any]] = []

        def is_there() -> bool:
            found[:] = [job for job in self.control.jobs() if self.key.site_key in f"{job['runKey']} {job['jobName']}"]
            return bool(found)

        until(is_there, "the site has the job")
        return found[-1]

    def until_running(self) -> dict[str, Any]:
        """Wait until the job of the run runs."""
        until(lambda: self.one_job()["state"] == "RUNNING", "the job runs")
        return self.one_job()

    def until_logged(self) -> None:
        """Wait until the training has logged its metric."""
        until(self.gate.with_name("gate-logged").exists, "the training logged its metric")

    def stderr(self) -> str:
        """What all tries printed."""
        return "\n".join(f"--- {one.directory.name}: {one.outcome()}\n{one.stderr()}" for one in self.tries)

    def close(self) -> None:
        """End what still runs here."""
        self.open_gate()
        for one in self.tries:
            if not one.ended:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one.pid, signal.SIGKILL)
        until(lambda: all(one.ended for one in self.tries), "the tries are gone", 20)


def now() -> float:
    """The clock that all processes share."""
    return time.monotonic()
