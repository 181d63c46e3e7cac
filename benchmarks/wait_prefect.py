"""What waits ask of Prefect and of a site: one process, two and four, and prefect-databricks' loop beside them.

Real processes at a real Prefect server (SQLite) and the sandbox, for some minutes each; hours are extrapolated.

    python benchmarks/wait_prefect.py [seconds of each]
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.prefect_traffic import Proxy, our_events, prefect_server, rows
from benchmarks.report import Row, report
from prefect_mantik import TrainingJob, UnicoreSite
from prefect_mantik.block_files import asave_blocks, read_block_file
from prefect_mantik.loop import call
from prefect_mantik.noticing import NOTICE_BESIDE
from prefect_mantik.sandbox.process import SandboxProcess, start_sandbox
from prefect_mantik.waiting.sharing import AGAIN

ROOT = Path(__file__).parents[1]
PEERS = ROOT / "build" / "peers"
SECONDS, SETTLE, RUNS, INTERVAL = 108.0, 30.0, 10, 5.0
"""Seconds of a measurement: whole heartbeats, or an hour of them would be told from a third of one."""

SHARED = 1.5
"""How much longer it is where processes share."""

LAST_WORDS = 90.0
"""Seconds until processes are settled that hear the last words of those that were killed a moment before."""

POLLS = 20
POLLS_AN_HOUR = 360
"""Of prefect-databricks, which asks every ten seconds."""

QUIET = {"PREFECT_INTEGRATIONS_MANTIK_FOLLOW_LOGS": "false", "PREFECT_INTEGRATIONS_MANTIK_PROGRESS": "false"}


class Traffic(NamedTuple):
    """What came in some seconds, at the site, at Prefect's API, in its database; and the rows of its start."""

    seconds: float
    site: int
    calls: Counter[str]
    rows: Counter[str]
    words: int
    rows_once: int
    task_runs: int

    def hourly(self, number: float) -> float:
        """As if it went on like this for an hour."""
        return number * 3600 / self.seconds


class Bench:
    """The servers, and the processes that wait there."""

    def __init__(self, sandbox: SandboxProcess, proxy: Proxy, database: Path, directory: Path) -> None:
        self._sandbox, self.proxy, self.database = sandbox, proxy, database
        self._file = str(directory / "handles.json")
        self._output = (directory / "output").open("ab")

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a flow in a process of its own."""
        command = [sys.executable, str(ROOT / "benchmarks" / "waiting_flows.py"), *arguments]
        path = os.pathsep.join([str(ROOT), str(PEERS)])
        whole = {**os.environ, "PREFECT_API_URL": self.proxy.url, "PYTHONPATH": path, **environment}
        return subprocess.Popen(command, env=whole, stdout=self._output, stderr=subprocess.STDOUT)

    def submit(self, job: str) -> None:
        """Submit the runs that are waited for."""
        if self.start("submit", job, str(RUNS), self._file).wait(600):
            raise RuntimeError("the runs were not submitted")

    def waiting(self, processes: int, seconds: float, settings: Mapping[str, str]) -> Traffic:
        """Let processes wait for all runs, and count what comes once they are settled."""
        before = rows(self.database)
        with self._processes(processes, settings):
            time.sleep(SETTLE if processes == 1 else LAST_WORDS)
            self._sandbox.control.reset_requests()
            calls, settled, words = self.proxy.calls(), rows(self.database), our_events(self.database)
            began = time.monotonic()
            time.sleep(seconds)
            site = sum(item["count"] for item in self._sandbox.control.requests() if "/rest/core" in item["route"])
            after = rows(self.database)
            return Traffic(
                time.monotonic() - began,
                site,
                self.proxy.calls() - calls,
                after - settled,
                our_events(self.database) - words,
                sum((settled - before).values()),
                after["task_run"] - before["task_run"],
            )

    @contextlib.contextmanager
    def _processes(self, number: int, settings: Mapping[str, str]) -> Iterator[None]:
        started = [self.start("wait", self._file, **settings) for _ in range(number)]
        try:
            yield
            if any(process.poll() is not None for process in started):
                raise RuntimeError("a wait ended before its time")
        finally:
            for process in started:
                process.kill()  # no time for a cancel: the runs are waited for again
                process.wait()

    def peer(self, polls: int) -> Traffic:
        """The loop of prefect-databricks."""
        calls, before = self.proxy.calls(), rows(self.database)
        if self.start("peer", str(polls)).wait(300):
            raise RuntimeError("prefect-databricks did not run")
        time.sleep(5)  # events are written a little later
        after = rows(self.database)
        done = after - before
        return Traffic(1, polls, self.proxy.calls() - calls, done, 0, 0, after["task_run"] - before["task_run"])


def install_peer() -> str:
    """Get prefect-databricks into a directory of its own; why not, where that fails."""
    if (PEERS / "prefect_databricks").exists():
        return ""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(PEERS), "prefect-databricks"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    return done.stderr.strip()[-200:] if done.returncode else ""


@contextlib.contextmanager
def opened() -> Iterator[Bench]:
    """All servers, with the runs submitted; their site is asked every five seconds whatever their age."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wait-prefect-")))
        os.environ["PREFECT_HOME"] = str(directory / "home")
        url, database = stack.enter_context(prefect_server())
        sandbox = stack.enter_context(start_sandbox(slots=RUNS))
        call(asave_blocks, read_block_file(ROOT / "blocks" / "sandbox.yaml"), sandbox.env)
        site, job = UnicoreSite.load("birch"), TrainingJob.load("train-birch")
        site.poll_shortest = site.poll_longest = INTERVAL  # type: ignore[union-attr]
        site.backend_config["Resources"]["Runtime"] = "2h"  # type: ignore[union-attr]
        site.save("bench", overwrite=True)  # type: ignore[union-attr]
        job.model_copy(update={"site": UnicoreSite.load("bench")}).save("bench", overwrite=True)  # type: ignore[union-attr]
        bench = Bench(sandbox, Proxy(url), database, directory)
        bench.submit("bench")
        yield bench


def shared_rows(found: Mapping[int, Traffic]) -> list[Row]:
    """Two and four processes beside one."""
    table, one = [], found[1].site / found[1].seconds
    for number in (2, 4):
        rare = number * 3600 / NOTICE_BESIDE + (number - 1) * 3600 / AGAIN
        rate = found[number].site / found[number].seconds
        events = found[number].hourly(found[number].words)
        calls = found[number].hourly(sum(found[number].calls.values()))
        seconds = f"{found[number].seconds:.0f} real s, once; peer: one process of ours"
        name = f"site requests an hour, {number} processes wait for the same {RUNS} runs"
        ratio = rate / one
        table += [
            Row(name, rate * 3600, one * 3600, ratio, "<= 1.1 of one process", ratio <= 1.1, "", seconds),
            Row(
                f"Prefect API calls and shared words an hour, {number} processes on an account",
                calls + events + rare,
                None,
                None,
                "<= 100",
                calls + events + rare <= 100,
                "",
                f"{events:.0f} words over the event stream; added are looks every {NOTICE_BESIDE:.0f} s and what each "
                f"that does not ask says every {AGAIN:.0f} s; "
                f"extrapolated from {seconds.partition(',')[0]}",
            ),
        ]
    return table


def prefect_rows(quiet: Traffic, loud: Traffic, peer: Traffic | None) -> list[Row]:
    """What one process asks of Prefect, and leaves in its database."""
    share = POLLS_AN_HOUR / POLLS
    how = f"extrapolated from {quiet.seconds:.0f} real s, log and card off; {RUNS} runs in one wait"
    beside = f"peer: prefect-databricks, {POLLS} polls against a stub, times {share:.0f}" if peer else "peer missing"
    looks = 3600 / NOTICE_BESIDE
    calls = quiet.hourly(sum(quiet.calls.values())) + looks
    theirs = sum(peer.calls.values()) * share if peer else None
    table = [
        Row(
            "task runs of a wait of an hour",
            quiet.task_runs,
            peer.task_runs * share if peer else None,
            None if peer is None else quiet.task_runs / (peer.task_runs * share),
            "1",
            quiet.task_runs == 1,
            "",
            f"{how}; {beside}",
        ),
        Row(
            "Prefect API calls an hour of waiting, one process",
            calls,
            theirs,
            calls / theirs if theirs else None,
            "<= 10",
            calls <= 10,
            "",
            f"{how}, with the looks every {NOTICE_BESIDE:.0f} s; {beside}",
        ),
    ]
    for name, one in (("log and card off", quiet), ("log and card on", loud)):
        hourly = one.hourly(sum(one.rows.values()))
        tables = ", ".join(f"{count} {table}" for table, count in one.rows.most_common(4)) or "none"
        table.append(
            Row(
                f"rows in Prefect's database for a run-hour, {name}",
                (hourly + one.rows_once) / RUNS,
                sum(peer.rows.values()) * share if peer else None,
                None,
                "",
                None,
                "",
                f"{RUNS} runs in one wait: {one.rows_once} rows once, {hourly:.0f} an hour, extrapolated from "
                f"{one.seconds:.0f} real s ({tables}); {beside}",
            )
        )
    hourly = loud.hourly(sum(loud.calls.values())) + looks
    note = f"extrapolated from {loud.seconds:.0f} real s; {', '.join(what for what, _ in loud.calls.most_common(3))}"
    table.append(Row("Prefect API calls an hour of waiting, log and card on", hourly, None, None, "", None, "", note))
    return table


def main() -> int:
    """Measure and report."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    trouble = install_peer()
    with opened() as bench:
        found = {number: bench.waiting(number, seconds * (SHARED if number > 1 else 1), QUIET) for number in (1, 2, 4)}
        loud = bench.waiting(1, seconds, {})
        peer = None if trouble else bench.peer(POLLS)
    report(*shared_rows(found), *prefect_rows(found[1], loud, peer))
    if trouble:
        print(f"prefect-databricks could not be installed: {trouble}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
