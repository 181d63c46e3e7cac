"""The look-alike answers what a real FirecREST server answered: recorded requests are sent again.

Names of systems, users, directories, partitions and jobs are put in place of the recorded ones. The status has to be
the same, texts of refusals word by word, and all else in its shape: the same keys, the same types. What commands
answered about files, and the states of jobs, have to be the same too. The recordings are no part of this repository;
see `test_firecrest_openapi.reference`.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from .replay import ME, OTHER, Replay, Tables
from .test_firecrest_files import SITE, Fire
from .test_firecrest_openapi import reference

RECORDINGS = "firecrest-recordings"
NAMES = (
    "01-status",
    "02-job-completed",
    "03-job-failed",
    "04-job-cancelled-running",
    "05-job-pending-then-cancelled",
    "06-job-pending-resources",
    "07-job-array-and-het",
    "08-list-jobs",
    "09-job-timeout-signal-pending",
    "10-errors-auth",
    "11-errors-jobs",
    "12-submit-408-but-job-exists",
    "13-status-slurmdbd-down-and-slow",
    "14-sshd-maxsessions-10-concurrency",
    "15-job-cancelled-dependency-and-list",
    "16-node-fail-requeue-suspend",
    "17-slurm-rest-mode-hybrid",
    "18-rest-mode-requeued-and-default-env",
    "19-job-name-with-pipe",
    "19b-list-poisoned-by-pipe-name",
    "20-fs-ops",
    "21-fs-transfer-jobs",
    "30-rate-limit-and-gateway-faults",
    "31-wait-for-job",
    "32-token-lifetime",
    "40-transfer-s3",
    "41-transfer-streamer",
    "42-transfer-s3-ok",
    "43-transfer-streamer-by-hand",
)

_STREAMER = "the sandbox moves large files over its object store only"
LEFT_OUT: dict[tuple[str, int], str] = {
    ("11", 6): "a login node of the sandbox is never down; only the server may take it for broken",
    ("12", 0): "the server's second error while it handled its own time-out; the sandbox answers 408 as it is meant to",
    ("13", 4): "the sandbox has no slurmctld that does not answer",
    **{("40", index): "the recorded server's parts were too small for its store" for index in (11, 12, 13)},
    **{("41", index): _STREAMER for index in (*range(5), *range(6, 13))},
    **{("43", index): _STREAMER for index in range(6)},
}
# Exchanges of which only the shape is compared.
_ENVIRONMENT = "the variables of another site"
SHAPE_ONLY: dict[tuple[str, int], str] = {
    ("11", 30): "the sandbox's shells have a variable more, BASH_ENV, which the script prints too",
    ("11", 34): _ENVIRONMENT,
    ("18", 11): _ENVIRONMENT,
}
OF_OTHER = {("11", 35), ("11", 40), ("19b", 2), ("19b", 3)}


def _end(state: str) -> Callable[[Replay, str], None]:
    def end(replay: Replay, recorded: str) -> None:
        replay.control.end_job(replay.until(recorded, "RUNNING"), state)

    return end


def _hold(reason: str) -> Callable[[Replay, str], None]:
    def hold(replay: Replay, recorded: str) -> None:
        replay.control.hold_job(replay.until(recorded, "CREATED", "READY", "QUEUED"), "QUEUED", reason)

    return hold


def _fail_node(replay: Replay, recorded: str) -> None:
    replay.control.requeue_job(replay.until(recorded, "RUNNING"), 1)


def _cancel_by_owner(replay: Replay, recorded: str) -> None:
    replay.until(recorded, "RUNNING")
    headers = {"Authorization": f"Bearer {replay.tokens[OTHER]}"}
    answer = replay.fire.http.delete(f"/compute/{SITE}/jobs/{replay.jobs[recorded]}", headers=headers)
    assert answer.status_code == 204


def _run_out(replay: Replay, recorded: str) -> None:
    replay.until(recorded, "FAILED")


# Jobs whose submission, or what then happened to them, was not recorded.
SCRIPT_OF = {"9": "trap '' TERM\nsleep 60", "10": "kill -9 $$"}
MADE: dict[str, Callable[[Replay, str], None]] = {
    "9": _end("TIMEOUT"),
    "10": _run_out,
    "11": _hold("PartitionDown"),
    "20": _cancel_by_owner,
    "128": _fail_node,
}


@contextlib.contextmanager
def _do(act: Callable[[], Any]) -> Iterator[None]:
    act()
    yield


def _to_job(recorded: str, act: str, *arguments: Any) -> Callable[[Replay], AbstractContextManager[None]]:
    return lambda replay: _do(lambda: getattr(replay.control, act)(replay.until(recorded, "RUNNING"), *arguments))


def _ended(recorded: str) -> Callable[[Replay], AbstractContextManager[None]]:
    return lambda replay: _do(lambda: replay.until(recorded, "COMPLETED"))


def _ghost(replay: Replay) -> None:
    replay.jobs["27"] = replay.submit("#SBATCH -J ghost\nsleep 2")
    replay.until("27", "RUNNING")


def _slow(replay: Replay) -> AbstractContextManager[None]:
    return replay.switched(firecrest_command_time=0.2, firecrest_command_timeout=0.1)


def _no_keys(replay: Replay) -> AbstractContextManager[None]:
    return replay.changed(entitled=False)


def _no_accounting(replay: Replay) -> AbstractContextManager[None]:
    return replay.changed(accounting_down=True)


STATES: dict[tuple[str, int], Callable[[Replay], AbstractContextManager[None]]] = {
    ("10", 8): _no_keys,
    ("10", 9): _no_keys,
    ("11", 30): _ended("18"),
    ("11", 34): _ended("19"),
    ("18", 11): _ended("135"),
    ("21", 22): _ended("26"),
    ("12", 1): lambda replay: _do(lambda: _ghost(replay)),
    ("13", 0): _slow,
    ("13", 1): _slow,
    ("13", 2): _no_accounting,
    ("13", 3): _no_accounting,
    ("16", 4): _to_job("128", "hold_job", "QUEUED", ""),
    ("16", 5): _to_job("128", "release_job"),
    ("16", 6): _to_job("127", "requeue_job", 1),
    ("16", 7): _to_job("128", "requeue_job", 2),
}


def _short(replay: Replay) -> str:
    return replay.control.firecrest_token(ME, 20)


def _expired(replay: Replay) -> str:
    return replay.control.firecrest_token(ME, -1)


def _foreign(replay: Replay) -> str:
    header, _, rest = replay.tokens[ME].partition(".")
    fields = json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))
    other = base64.urlsafe_b64encode(json.dumps({**fields, "kid": "unknown"}).encode()).decode().rstrip("=")
    return f"{other}.{rest}"


TOKENS: dict[tuple[str, int], Callable[[Replay], str]] = {
    ("10", 0): lambda replay: "garbage",
    ("10", 1): _expired,
    ("10", 2): _short,
    ("10", 4): lambda replay: f"{replay.tokens[ME]}x",
    ("10", 5): _foreign,
    **dict.fromkeys([("32", index) for index in range(8, 18)], _short),
}


TABLES = Tables(
    left_out=LEFT_OUT,
    shape_only=SHAPE_ONLY,
    of_other=OF_OTHER,
    scripts=SCRIPT_OF,
    made=MADE,
    states=STATES,
    tokens=TOKENS,
)


@pytest.fixture(scope="module")
def replay(one_sandbox):
    directory = reference(RECORDINGS)
    replay = Replay(Fire(one_sandbox), directory, NAMES, TABLES)
    with_own = Fire(one_sandbox, OTHER)
    with_own.stored(with_own.home, ".bashrc", b"x")
    with_own.http.close()
    yield replay
    replay.fire.http.close()
    for job in replay.control.jobs():
        if job["site"] == SITE:
            # Jobs with odd names would be in the way of whoever lists jobs next.
            replay.control.age_job(job["id"], 30 * 86400)
    print(f"\nrecorded exchanges: {replay.counts}")


@pytest.fixture
def calm(box, replay):
    box.control.switch(queue_delay=0.4)
    yield
    box.control.change_site(SITE, unhealthy=False, accounting_down=False, entitled=True)
    box.control.switch(firecrest_command_timeout=5, firecrest_command_time=0, firecrest_max_sessions=0)
    for job in box.control.jobs(live=True):
        box.control.end_job(job["id"], "CANCELLED")


@pytest.mark.parametrize("name", NAMES)
def test_recording(replay, calm, name):
    for directory in ("xfer", "w-1795341977"):
        replay.fire.rm(f"{replay.fire.home}/{directory}")
    if name[:2] in ("40", "41", "42"):
        replay.fire.post("mkdir", sourcePath=f"{replay.fire.home}/xfer")
    if name > NAMES[1]:
        # Lists are not empty then.
        replay.job("1")
        replay.until("1", "COMPLETED")
    if name[:3] == "19b":
        replay.job("20")
        replay.job("136")
    replay.play(name)


def test_no_recording_is_forgotten(replay):
    directory = reference(RECORDINGS)
    assert sorted(NAMES) == sorted(path.stem for path in directory.glob("*.json"))
