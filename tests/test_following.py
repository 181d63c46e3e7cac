"""What a wait shows of jobs' logs, how often it reads them and what it keeps, against logs that a test writes."""

from __future__ import annotations

import asyncio
import logging
import threading
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from prefect_mantik.errors import NotSupported, RequestFailed, ServiceUnavailable
from prefect_mantik.log_artifacts import LONGEST, artifact_key, log_markdown
from prefect_mantik.runs import RunHandle, RunState, RunStatus
from prefect_mantik.sites.base import Capability, Pace, Site
from prefect_mantik.waiting import following, run_log, showing
from prefect_mantik.waiting.following import LogFollower
from prefect_mantik.waiting.kept_log import KeptLog
from prefect_mantik.waiting.observing import Observed

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJtZSJ9.c2lnbmF0dXJl"


class WrittenSite(Site):
    """A site whose logs a test writes."""

    kind = "unicore"
    reference, name, settle = "unicore-site/birch", "birch", 1.0
    capabilities = frozenset({Capability.LOGS})
    account = "one"

    def __init__(self, **attributes: Any) -> None:
        self.logs: dict[str, bytes] = {}
        self.errors: dict[str, Exception] = {}
        self.read: list[str] = []
        self.in_flight = self.most_in_flight = 0
        for attribute, value in attributes.items():
            setattr(self, attribute, value)

    async def read_log(self, handle: RunHandle, offset: int = 0, limit: int | None = None) -> tuple[bytes, int]:
        self.read.append(handle.remote_id)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(0)
        self.in_flight -= 1
        if error := self.errors.get(handle.remote_id):
            raise error
        if handle.remote_id not in self.logs:
            return b"", max(offset, 0)
        log = self.logs[handle.remote_id]
        at = max(0, len(log) + offset) if offset < 0 else min(offset, len(log))
        part = log[at:] if limit is None else log[at : at + limit]
        return part, at + len(part)


WrittenSite.__abstractmethods__ = frozenset()


def written_site(**attributes: Any) -> WrittenSite:
    return WrittenSite(**attributes)  # type: ignore[abstract]


class Wait:
    """A wait of one site's runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **how: Any) -> None:
        self.now, self.site = 0.0, how.pop("site", None) or written_site()
        for module in (following, run_log, showing):
            monkeypatch.setattr(module, "monotonic", lambda: self.now)
        self.follower = LogFollower(**how)
        self.states: dict[RunHandle, RunState | None] = {handle(): RunState.RUNNING}

    def runs(self) -> dict[RunHandle, Observed]:
        return {
            run: Observed(self.site, RunStatus(state=state, observed_at=NOW) if state else None)
            for run, state in self.states.items()
        }

    async def look(self, later: float = 10.0, **logs: bytes) -> None:
        self.now += later
        self.site.logs |= {number.removeprefix("_"): log for number, log in logs.items()}
        await self.follower.look(self.runs())

    async def end(self, state: RunState = RunState.FINISHED, **logs: bytes) -> None:
        self.states = dict.fromkeys(self.states, state)
        await self.look(1, **logs)

    async def close(self) -> None:
        await self.follower.close(self.runs())


def handle(number: int = 0, **fields: Any) -> RunHandle:
    given = {"site": "unicore-site/birch", "site_name": "birch", "kind": "unicore", "site_key": "pm"}
    return RunHandle.model_validate({**given, "remote_id": str(number), "name": f"train-{number}", **fields})


@pytest.fixture(autouse=True)
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def shown(said: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in said.records]
    said.clear()
    return found


# --- What is shown --------------------------------------------------------------------------------------------------


async def test_new_lines_are_shown_with_run_and_site(
    monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    wait = Wait(monkeypatch)
    await wait.look(_0=b"epoch 1 loss 0.5\nepoch 2")
    assert shown(said) == ["train-0 at birch | epoch 1 loss 0.5"]
    await wait.look(_0=b"epoch 1 loss 0.5\nepoch 2 loss 0.4\n\n100% %s\n")
    assert shown(said) == ["train-0 at birch | epoch 2 loss 0.4", "train-0 at birch | 100% %s"]
    await wait.look()
    assert shown(said) == []


async def test_a_log_may_be_kept_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    wait = Wait(monkeypatch, directory=tmp_path, flow_run="flow-1", shows=False)
    await wait.look(_0=b"one\n")
    await wait.end(_0=b"one\ntwo")
    await wait.close()
    assert (tmp_path / "flow-1" / "train-0-birch-1.log").read_text() == "one\ntwo\n"
    assert shown(said) == []


@pytest.mark.parametrize(("longest", "least", "most"), [(0, 550, 600), (300, 110, 170)])
async def test_a_log_is_read_as_seldom_as_its_site_wishes(
    monkeypatch: pytest.MonkeyPatch, longest: float, least: int, most: int
) -> None:
    wait = Wait(monkeypatch, site=written_site(pace=Pace(longest=longest)))
    for _ in range(600):
        await wait.look(60)
    assert least < len(wait.site.read) <= most


async def test_what_a_run_writes_last_is_shown_when_it_ends(
    monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    wait = Wait(monkeypatch)
    await wait.look(_0=b"one\n")
    await wait.end(RunState.FAILED, _0=b"one\ntwo\nError: no")
    assert [line.rpartition("| ")[2] for line in shown(said)] == ["one", "two", "Error: no"]
    await wait.look(100, _0=b"one\ntwo\nError: no\nmore\n")
    await wait.close()
    assert shown(said) == []


async def test_a_token_is_hidden_however_it_comes(
    monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    wait, log = Wait(monkeypatch), f"export T=\x1b[31m{TOKEN}\x1b[0m; go\n".encode()
    for end in range(0, len(log) + 1, 7):
        await wait.look(100, _0=log[:end])
    await wait.look(100, _0=log)
    assert shown(said) == ["train-0 at birch | export T=***; go"]


async def test_a_close_shows_half_a_line_but_no_half_token(
    monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    wait = Wait(monkeypatch)
    await wait.look(_0=f"one\nhalf {TOKEN[:40]}".encode())
    await wait.close()
    assert shown(said) == ["train-0 at birch | one", "train-0 at birch | half ***"]


async def test_a_log_that_shrinks_begins_anew(monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture) -> None:
    wait = Wait(monkeypatch)
    await wait.look(_0=b"one\ntwo\nhal")
    await wait.look(_0=b"uno\n")
    lines = [line.rpartition("| ")[2] for line in shown(said)]
    assert lines == ["one", "two", "hal", "[the site began this log anew]", "uno"]


async def test_a_requeued_job_whose_log_is_already_longer_begins_anew(
    monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    wait = Wait(monkeypatch)
    await wait.look(_0=b"first start\n")
    wait.states = {handle(): RunState.SCHEDULED}
    await wait.look()
    wait.states = {handle(): RunState.RUNNING}
    await wait.look(_0=b"a second start, and longer\n")
    lines = [line.rpartition("| ")[2] for line in shown(said)]
    assert lines == ["first start", "[the site began this log anew]", "a second start, and longer"]


async def test_a_requeued_job_whose_log_goes_on_is_followed_on(
    monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    wait = Wait(monkeypatch)
    await wait.look(_0=b"first start\n")
    wait.states = {handle(): RunState.SCHEDULED}
    await wait.look()
    wait.states = {handle(): RunState.RUNNING}
    await wait.look(_0=b"first start\nsecond\n")
    assert [line.rpartition("| ")[2] for line in shown(said)] == ["first start", "second"]


async def test_a_log_that_is_gone_for_a_while_is_not_shown_again(
    monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    wait = Wait(monkeypatch)
    await wait.look(_0=b"one\n")
    del wait.site.logs["0"]
    await wait.look(100)
    await wait.look(100, _0=b"one\ntwo\n")
    await wait.end()
    assert [line.rpartition("| ")[2] for line in shown(said)] == ["one", "two"]


# --- Bounds ---------------------------------------------------------------------------------------------------------


async def test_a_flood_is_cut_to_its_latest_lines(
    monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    wait = Wait(monkeypatch)
    await wait.look(_0=b"".join(b"line %d\n" % number for number in range(5000)))
    lines = shown(said)
    assert lines[0] == "train-0 at birch | [4900 lines are left out here: fetch_log reads the whole log]"
    assert lines[1:] == [f"train-0 at birch | line {number}" for number in range(4900, 5000)]


async def test_a_long_line_is_shortened(monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture) -> None:
    wait = Wait(monkeypatch)
    await wait.look(_0=b"word " * 1000 + b"\n")
    [line] = shown(said)
    assert line.endswith(" [… 2999 characters more]")
    assert len(line) < 2100


async def test_many_bytes_are_not_all_read_where_they_are_not_kept(
    monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    wait, line = Wait(monkeypatch), b"x" * 99 + b"\n"
    await wait.look(_0=line)
    await wait.look(_0=line * 100_000)
    assert len(wait.site.read) == 3
    text = "\n".join(shown(said))
    assert "bytes of the log are left out here]" not in text.splitlines()[0]
    assert len(text) < 40_000
    await wait.look(_0=line * 100_000 + b"after\n")
    assert shown(said) == ["train-0 at birch | after"]


async def test_a_minute_has_room_for_so_many_lines_of_all_runs(
    monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    wait = Wait(monkeypatch)
    wait.states = dict.fromkeys(map(handle, range(1000)), RunState.RUNNING)
    await wait.look(**{f"_{number}": b"line\n" * 10 for number in range(1000)})
    lines = shown(said)
    assert len([line for line in lines if "left out" not in line]) <= showing.LINES_A_MINUTE
    assert len(lines) <= showing.LINES_A_MINUTE + 2
    assert "lines of the training runs' logs are left out here: at most 600 a minute are shown." in lines[-1]
    assert len(wait.site.read) == 1000
    assert wait.site.most_in_flight <= following.AT_ONCE


async def test_reads_are_seldom_and_more_seldom_the_longer_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    wait = Wait(monkeypatch)
    for _ in range(600):
        await wait.look(1, _0=b"")
    first = len(wait.site.read)
    assert 20 <= first <= 60  # ten minutes: each 10 s at first, each minute in the end
    for _ in range(600):
        await wait.look(1)
    assert 10 <= len(wait.site.read) - first <= 13


async def test_a_site_that_asks_to_be_left_alone_is_not_read_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Retry-After is for the account, whoever met it: polls, or another read."""
    wait = Wait(monkeypatch)
    monkeypatch.setattr(WrittenSite, "quiet", 1000.0)
    await wait.look()
    await wait.close()
    assert wait.site.read == []
    monkeypatch.setattr(WrittenSite, "quiet", 0.01)
    await wait.look()
    assert wait.site.read != []


async def test_many_runs_of_an_account_are_read_less_often_each(monkeypatch: pytest.MonkeyPatch) -> None:
    wait = Wait(monkeypatch)
    wait.states = dict.fromkeys(map(handle, range(400)), RunState.RUNNING)
    await wait.look()
    wait.site.read.clear()
    for _ in range(150):
        await wait.look(1)
    assert wait.site.read == []
    for _ in range(50):
        await wait.look(1)
    assert len(wait.site.read) == 400


@pytest.mark.parametrize("state", [None, RunState.SCHEDULED, RunState.UNKNOWN])
async def test_runs_that_do_not_run_are_not_read(monkeypatch: pytest.MonkeyPatch, state: RunState | None) -> None:
    wait = Wait(monkeypatch)
    wait.states = {handle(): state}
    await wait.look()
    await wait.close()
    assert wait.site.read == []


async def test_a_site_that_shows_no_logs_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    wait = Wait(monkeypatch, site=written_site(capabilities=frozenset()))
    await wait.look()
    await wait.end()
    await wait.close()
    assert wait.site.read == []


# --- Trouble --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (NotSupported("no path for it"), logging.INFO),
        (ServiceUnavailable("away"), logging.INFO),
        (RequestFailed("403"), logging.WARNING),
        (KeyError("size"), logging.WARNING),
    ],
)
async def test_trouble_of_one_run_is_said_once_and_stops_no_other(
    monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture, error: Exception, level: int
) -> None:
    wait = Wait(monkeypatch)
    wait.states = {handle(0): RunState.RUNNING, handle(1): RunState.RUNNING}
    wait.site.errors["0"] = error
    for number in range(5):
        await wait.look(100, _1=b"line\n" * (number + 1))
    about = [record for record in said.records if "cannot be shown now" in record.getMessage()]
    assert [record.levelno for record in about] == [level]
    assert len([record for record in said.records if record.getMessage() == "train-1 at birch | line"]) == 5
    assert wait.site.read.count("0") < 5
    said.clear()
    wait.site.errors.clear()
    await wait.look(1000, _0=b"there again\n")
    assert shown(said) == ["train-0 at birch | there again"]


async def test_trouble_of_many_runs_is_few_lines(
    monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    wait = Wait(monkeypatch)
    wait.states = dict.fromkeys(map(handle, range(1000)), RunState.RUNNING)
    wait.site.errors = {str(number): ServiceUnavailable("away") for number in range(1000)}
    await wait.look()
    lines = shown(said)
    assert len(lines) == 4
    assert lines[-1] == "Nor can the logs of 997 more training runs at birch."


async def test_a_log_that_cannot_be_read_at_its_end_is_given_up(
    monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    wait = Wait(monkeypatch)
    await wait.look(_0=b"one\n")
    wait.site.errors["0"] = RequestFailed("500")
    await wait.end()
    for _ in range(10):
        await wait.look(1000)
    await wait.close()
    assert wait.site.read.count("0") == 1 + following.TRIES_AT_END
    assert "was not read]" in shown(said)[-1]


async def test_a_site_that_hangs_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    wait = Wait(monkeypatch)
    monkeypatch.setattr(run_log, "READ_TIMEOUT", 0.05)

    async def hangs(*_: object) -> tuple[bytes, int]:
        await asyncio.sleep(60)
        return b"", 0

    wait.site.read_log = hangs  # type: ignore[method-assign]
    await asyncio.wait_for(wait.look(), 5)
    assert shown(said) == ["training run 'train-0' at birch: its log cannot be shown now. no answer in time"]


# --- What is kept ---------------------------------------------------------------------------------------------------


def kept(tmp_path: Path) -> str:
    return (tmp_path / "flow-1" / "train-0-birch-1.log").read_text()


async def test_the_whole_log_is_kept_also_what_is_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wait, line = Wait(monkeypatch, directory=tmp_path, flow_run="flow-1"), "épôque {}\n"
    whole = "".join(map(line.format, range(300_000)))
    assert len(whole.encode()) > following.PARTS_WHILE_RUNNING * run_log.PART
    await wait.look(_0=whole.encode())
    await wait.look(_0=whole.encode())
    await wait.end(_0=whole.encode() + f"the end {TOKEN}".encode())
    assert kept(tmp_path) == whole + "the end ***\n"


async def test_a_second_wait_keeps_and_shows_what_is_new(
    monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    log = f"one {TOKEN}\n".encode()
    first = Wait(monkeypatch, directory=tmp_path, flow_run="flow-1")
    await first.look(_0=log + b"hal")
    await first.close()
    assert kept(tmp_path) == "one ***\n"  # half a line is shown, and kept when it is whole
    shown(said)
    second = Wait(monkeypatch, directory=tmp_path, flow_run="flow-1")
    await second.end(_0=log + b"half\nend")
    third = Wait(monkeypatch, directory=tmp_path, flow_run="flow-1")
    await third.end(_0=log + b"half\nend")
    assert kept(tmp_path) == "one ***\nhalf\nend\n"
    assert [line.rpartition("| ")[2] for line in shown(said)] == ["half", "end"]


async def test_a_log_that_begins_anew_is_kept_after_the_old_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wait = Wait(monkeypatch, directory=tmp_path, flow_run="flow-1")
    await wait.look(_0=b"one\ntwo\n")
    await wait.look(_0=b"uno\n")
    await wait.end(_0=b"uno\ndue\n")
    assert kept(tmp_path) == "one\ntwo\n[the site began this log anew]\nuno\ndue\n"


async def test_a_disk_that_hangs_keeps_nobody_else_from_working(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    """Threads that hang there are not those that resolve names, or read a token's file."""
    mended = threading.Event()
    monkeypatch.setattr(KeptLog, "append", lambda *_: mended.wait(60))
    for module in (run_log, following):
        monkeypatch.setattr(module, "WRITE_TIMEOUT", 0.3)
    wait = Wait(monkeypatch, directory=tmp_path, flow_run="flow-1")
    wait.states = {handle(number): RunState.RUNNING for number in range(60)}
    try:
        await wait.look(**{f"_{number}": b"one\n" for number in range(60)})
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "works"), 2) == "works"
        lines = shown(said)
    finally:
        mended.set()
    assert sum(f"are not kept in {tmp_path} now: it takes too long" in line for line in lines) == 1
    assert sum(line.endswith("| one") for line in lines) == 60


async def test_a_disk_that_hangs_is_waited_for_once_and_not_for_each_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    opened: list[RunHandle] = []

    def hangs(_: Path, __: str, run: RunHandle) -> None:
        opened.append(run)
        raise TimeoutError("it takes too long")

    monkeypatch.setattr(following, "open_kept_log", hangs)
    wait = Wait(monkeypatch, directory=tmp_path, flow_run="flow-1")
    wait.states = {handle(number): RunState.RUNNING for number in range(60)}
    await wait.look(**{f"_{number}": b"one\n" for number in range(60)})
    lines = shown(said)
    assert 1 <= len(opened) < 30
    assert sum(f"are not kept in {tmp_path} now: it takes too long" in line for line in lines) == 1
    assert sum(line.endswith("| one") for line in lines) == 60


async def test_a_directory_that_cannot_be_written_is_said_once_and_the_end_is_published(
    monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    published = []

    async def publish(run: RunHandle, text: str, is_whole: bool) -> None:
        published.append((run.name, text, is_whole))

    (tmp_path / "flow-1").write_text("in the way")
    wait = Wait(monkeypatch, directory=tmp_path, flow_run="flow-1", publish=publish)
    wait.states = dict.fromkeys(map(handle, range(3)), RunState.RUNNING)
    await wait.look(_0=b"one\n")
    await wait.end(_0=b"one\ntwo\n")
    lines = shown(said)
    assert len([line for line in lines if "are not kept in" in line]) == 1
    assert "train-0 at birch | two" in lines
    assert published == [("train-0", "one\ntwo", True)]


async def test_a_disk_that_becomes_full_is_said_once_and_the_wait_goes_on(
    monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    published = []

    async def publish(run: RunHandle, text: str, is_whole: bool) -> None:
        published.append(text)

    wait = Wait(monkeypatch, directory=tmp_path, flow_run="flow-1", publish=publish)
    await wait.look(_0=b"one\n")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("prefect_mantik.waiting.kept_log.os.ftruncate", full)
    await wait.look(100, _0=b"one\ntwo\n")
    await wait.look(100, _0=b"one\ntwo\nthree\n")
    monkeypatch.undo()
    await wait.end(_0=b"one\ntwo\nthree\nfour\n")
    lines = shown(said)
    assert [line for line in lines if "device" in line] == [
        f"Logs of training runs are not kept in {tmp_path} now: No space left on device. The wait goes on."
    ]
    assert [line.rpartition("| ")[2] for line in lines if "|" in line] == ["one", "two", "three", "four"]
    assert kept(tmp_path) == "one\n"
    assert published == ["one\ntwo\nthree\nfour"]


async def test_a_look_that_is_cancelled_loses_and_doubles_nothing(
    monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    wait = Wait(monkeypatch, directory=tmp_path, flow_run="flow-1")
    for number in range(1, 40):
        task = asyncio.ensure_future(wait.look(100, _0=b"".join(b"line %d\n" % n for n in range(number))))
        await asyncio.sleep(0.0004 * (number % 5))
        task.cancel()
        await asyncio.wait([task])
    await wait.end()
    await wait.close()
    assert kept(tmp_path) == "".join(f"line {n}\n" for n in range(39))
    assert [line.rpartition("| ")[2] for line in shown(said)] == [f"line {n}" for n in range(39)]


async def test_the_end_is_published_once_by_one_read(monkeypatch: pytest.MonkeyPatch) -> None:
    published = []

    async def publish(run: RunHandle, text: str, is_whole: bool) -> None:
        published.append((text, is_whole))

    wait = Wait(monkeypatch, publish=publish)
    await wait.end(RunState.FAILED, _0=f"one\n{TOKEN}\n\x1b[31mred".encode())
    await wait.look(100)
    await wait.close()
    assert published == [("one\n***\nred", True)]
    assert len(wait.site.read) == 1


async def test_a_close_reads_what_has_ended_and_no_look_has_read(
    monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    wait = Wait(monkeypatch)
    wait.states = {handle(): RunState.FINISHED}
    wait.site.logs["0"] = b"all of it\n"
    await wait.close()
    assert shown(said) == ["train-0 at birch | all of it"]


# --- The artifact ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["plain", "a ``` b", "```\n# title\n```", "`````", "~~~", "<script>alert(1)</script>", "", "| a | b |"]
)
def test_a_log_stays_within_its_block_of_code(text: str) -> None:
    tokens = MarkdownIt("commonmark").parse(log_markdown(handle(name="a `b`\n# c"), text, True))
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close", "fence"]
    assert tokens[-1].content.strip() == text or "(nothing was written)" in tokens[-1].content


def test_an_artifact_holds_the_end_of_a_log() -> None:
    markdown = log_markdown(handle(), "x\n" * LONGEST + "the end", True)
    assert markdown.startswith("The end of the log of")
    assert "the end" in markdown
    assert len(markdown) < LONGEST + 200


def test_each_run_has_a_key_of_its_own() -> None:
    runs = [handle(name=name) for name in ("train-0", "train_0", "train 0", "Train-0", "ü", "x" * 100, "x" * 101)]
    keys = [artifact_key(run) for run in [*runs, handle(attempt=2)]]
    assert len(set(keys)) == len(keys)
    assert all(set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for key in keys)
    assert keys[0] == "mantik-log-train-0-birch"
