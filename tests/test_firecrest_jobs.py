"""Jobs at a FirecREST site: one list for all that are asked for, and logs that come as text."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import httpx
import pytest
import respx

from prefect_mantik.errors import LoginRefused, NotFound, NotSupported, ServiceUnavailable
from prefect_mantik.firecrest import Job
from prefect_mantik.firecrest.client import Window
from prefect_mantik.loop import acall
from prefect_mantik.runs import Reason, RunState
from prefect_mantik.sites.firecrest import jobs as jobs_module, reading
from prefect_mantik.sites.firecrest.jobs import FirecrestJobs, window_for
from prefect_mantik.sites.firecrest.reading import piece_of
from tests.scripted_firecrest import (
    JOBS,
    OPS,
    PAGE,
    Pauses,
    Reply,
    Site,
    a_job,
    refusal,
    repeats_at_once,
    reply,
    scripted,
)

UNREADABLE = refusal(500, "Error executing Slurm command.")
NO_JOB = refusal(404, "Job not found.")


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    return repeats_at_once(monkeypatch)


@pytest.fixture
def site() -> Iterator[Site]:
    with scripted() as made:
        yield made


def ago(**given: float) -> datetime:
    return datetime.now(timezone.utc) - timedelta(**given)


# --- Windows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ages", "window"),
    [
        ([None], "24h"),
        ([0], "24h"),
        ([-2], "24h"),
        ([23.5], "24h"),
        ([23.9], "3d"),  # our clock may be behind the site's
        ([71], "3d"),
        ([71.9], "7d"),
        ([167], "7d"),
        ([167.9], "24h"),
        ([1000], "24h"),
        ([1, 50], "3d"),
        ([None, 100], "7d"),
        ([1, 1000], "24h"),
        ([None, 1000], "24h"),
    ],
)
def test_the_smallest_window_that_shows_all_that_can_be_listed(ages: list[float | None], window: Window) -> None:
    assert window_for([None if age is None else ago(hours=age) for age in ages]) == window


# --- Looking up -----------------------------------------------------------------------------------------------------


def serve(site: Site, listed: list[str], **by_id: Reply) -> tuple[respx.Route, dict[str, respx.Route]]:
    """A list of jobs, and jobs that are known by their ids."""
    one = {job: site.on("GET", f"{JOBS}/{job}", answer) for job, answer in by_id.items()}
    return site.on("GET", JOBS, reply(json={"jobs": [a_job(job) for job in listed]})), one


def known(job: str) -> Reply:
    return reply(json={"jobs": [a_job(job)]})


async def look_up(site: Site, wanted: dict[str, datetime | None]) -> dict[str, object]:
    jobs = FirecrestJobs(site.client())
    return dict(await acall(jobs.look_up, wanted))


async def test_one_list_serves_any_number_of_jobs(site: Site) -> None:
    wanted = [str(number) for number in range(200)]
    listed, _ = serve(site, [*wanted, "777"])
    found = await look_up(site, dict.fromkeys(wanted, ago(hours=1)))
    assert found == {job: Job.model_validate(a_job(job)) for job in wanted}
    assert listed.call_count == 1
    assert listed.calls.last.request.url.params["time_window"] == "24h"


async def test_a_job_that_the_list_leaves_out_is_asked_for_by_its_id(site: Site) -> None:
    """Such as one that was cancelled before it could start."""
    listed, one = serve(site, ["1"], **{"2": known("2"), "3": NO_JOB})
    found = await look_up(site, dict.fromkeys("123", None))
    assert [type(found[job]) for job in "123"] == [Job, Job, NotFound]
    assert (listed.call_count, one["2"].call_count, one["3"].call_count) == (1, 1, 1)


async def test_old_jobs_that_live_are_in_the_list_and_those_that_ended_are_asked_for_by_their_ids(site: Site) -> None:
    listed, one = serve(site, ["1"], **{"1": known("1"), "2": known("2")})
    found = await look_up(site, dict.fromkeys("12", ago(days=8)))
    assert [type(found[job]) for job in "12"] == [Job, Job]
    assert listed.calls.last.request.url.params["time_window"] == "24h"
    assert (listed.call_count, one["1"].call_count, one["2"].call_count) == (1, 0, 1)


async def test_old_and_young_jobs_together(site: Site) -> None:
    listed, one = serve(site, ["2"], **{"1": known("1"), "2": known("2")})
    found = await look_up(site, {"1": ago(days=30), "2": ago(days=2)})
    assert [type(found[job]) for job in "12"] == [Job, Job]
    assert listed.calls.last.request.url.params["time_window"] == "3d"
    assert (one["1"].call_count, one["2"].call_count) == (1, 0)


async def test_nothing_is_asked_for_nobody(site: Site) -> None:
    assert await look_up(site, {}) == {}
    assert len(site.router.calls) == 0


async def test_one_job_that_cannot_be_asked_leaves_the_others_alone(site: Site) -> None:
    array = reply(json={"jobs": [a_job("4_1"), a_job("4_2")]})
    serve(site, ["1"], **{"2": refusal(500, "Error", "slurmdbd is down"), "4": array})
    found = await look_up(site, dict.fromkeys(["1", "2", "3_1", "", "4"], None))
    assert [type(answer) for answer in found.values()] == [Job, ServiceUnavailable, NotFound, NotFound, NotSupported]
    assert list(found) == ["1", "2", "3_1", "", "4"]


async def test_a_list_that_the_server_cannot_read_is_said_once(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A | in the name of one job breaks the list of them all."""
    serve(site, [], **{"1": known("1"), "2": NO_JOB})
    site.on("GET", JOBS, UNREADABLE)
    jobs = FirecrestJobs(site.client())
    with caplog.at_level(logging.WARNING, "prefect.mantik"), _propagating("prefect"):
        for _ in range(3):
            found = await acall(jobs.look_up, dict.fromkeys("12", None))
            assert [type(found[job]) for job in "12"] == [Job, NotFound]
    assert len([line for line in caplog.messages if "cannot list the jobs" in line]) == 1


class _propagating:  # reads like a function
    """Let what a logger and those below it say reach caplog: Prefect keeps it to itself."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def __enter__(self) -> None:
        self._was, self._logger.propagate = self._logger.propagate, True

    def __exit__(self, *_: object) -> None:
        self._logger.propagate = self._was


async def test_a_list_that_cannot_be_had_is_an_error_and_never_no_jobs(site: Site) -> None:
    _, one = serve(site, [], **{"1": known("1")})
    site.on("GET", JOBS, reply(503, text=PAGE))
    with pytest.raises(ServiceUnavailable):
        await look_up(site, {"1": None})
    assert one["1"].call_count == 0


@pytest.mark.parametrize("lists", [True, False])
async def test_a_refused_login_is_raised(site: Site, lists: bool) -> None:
    serve(site, [], **{"1": refusal(401, "Access token is invalid.")})
    if not lists:
        site.on("GET", JOBS, refusal(401, "Access token is invalid."))
    with pytest.raises(LoginRefused):
        await look_up(site, {"1": None})


# --- Who cancelled it -----------------------------------------------------------------------------------------------


STAT = {"output": {"mode": 33188, "size": 18, "mtime": 0}}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (reply(json=STAT), Reason.CANCELLED_BY_US),
        (refusal(404, "stat: cannot statx '/x': No such file or directory"), Reason.CANCELLED_BY_OTHER),
        (refusal(403, "stat: cannot statx '/x': Permission denied"), Reason.UNTOLD),
        (refusal(400, "The provided path (/x) does not match any of the defined filesystem paths"), Reason.UNTOLD),
    ],
)
async def test_our_mark_tells_who_cancelled_a_job(site: Site, answer: Reply, reason: Reason) -> None:
    site.on("GET", f"{OPS}/stat", answer)
    status = await acall(FirecrestJobs(site.client()).status, _cancelled())
    assert (status.state, status.reason) == (RunState.KILLED, reason)


async def test_a_mark_that_cannot_be_asked_for_now_is_no_answer(site: Site) -> None:
    site.on("GET", f"{OPS}/stat", refusal(503, "The ssh service for the requested system (daint) is unhealthy."))
    with pytest.raises(ServiceUnavailable, match="is unhealthy"):
        await acall(FirecrestJobs(site.client()).status, _cancelled())


async def test_a_job_that_was_not_cancelled_is_not_asked_for_a_mark(site: Site) -> None:
    stat = site.on("GET", f"{OPS}/stat", reply(json=STAT))
    job = Job.model_validate({"jobId": "7", "status": {"state": "COMPLETED"}, "workingDirectory": "/scratch/run"})
    assert (await acall(FirecrestJobs(site.client()).status, job)).state is RunState.FINISHED
    assert stat.call_count == 0


def _cancelled() -> Job:
    status = {"state": "CANCELLED by 2001", "stateReason": "None", "exitCode": 0, "interruptSignal": 15}
    return Job.model_validate({"jobId": "7", "status": status, "workingDirectory": "/scratch/run"})


# --- Logs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("read", "skip", "expected"),
    [
        (b"plain", 0, (b"plain", True)),
        (b"plain", 2, (b"ain", True)),
        (b"", 0, (b"", True)),
        ("grün".encode(), 0, ("grün".encode(), True)),
        ("ab€".encode()[:4], 0, (b"ab", True)),
        ("ab€".encode()[:3], 0, (b"ab", True)),
        ("ab😀".encode()[:5], 1, (b"b", True)),
        ("€ab".encode()[1:], 2, (b"ab", True)),
        ("€ab".encode()[1:], 3, (b"b", True)),
        ("€ab".encode()[1:], 0, (b"??ab", False)),
        ("€ab".encode()[1:], 1, (b"?ab", False)),
        (b"a\xffb", 0, (b"a?b", False)),
        (b"\xe2\x82", 0, (b"", True)),
        (b"ab\xff\xff", 0, (b"ab?", False)),
    ],
)
def test_bytes_from_a_server_that_gives_text(read: bytes, skip: int, expected: tuple[bytes, bool]) -> None:
    """It replaces what is no UTF-8; a character that the end cuts is left for the next piece."""
    assert piece_of(read.decode("utf-8", "replace"), skip) == expected


LOG = "a grün line, 😀 and € 1\n" * 4
PATH = "/w/mantik.log"


def serve_file(site: Site, content: bytes) -> None:
    """Answer as FirecREST does: `view` reads two blocks and cuts characters out of their text."""

    def view(request: httpx.Request) -> httpx.Response:
        offset, size = (int(request.url.params[name]) for name in ("offset", "size"))
        assert 0 <= offset < len(content)
        begin = offset // size * size
        text = content[begin : begin + 2 * size].decode("utf-8", "replace")
        return httpx.Response(200, json={"output": text[offset - begin :][:size]})

    def tail(request: httpx.Request) -> httpx.Response:
        assert request.url.params["skipHeading"] == "true"
        text = content[int(request.url.params["bytes"]) - 1 :].decode("utf-8", "replace")
        return httpx.Response(200, json={"output": {"content": text}})

    site.on("GET", f"{OPS}/stat", reply(json={"output": {"size": len(content)}}))
    site.on("GET", f"{OPS}/view", view)
    site.on("GET", f"{OPS}/tail", tail)


@pytest.fixture(params=[5, 8, 30, 1000], ids=lambda size: f"blocks of {size}")
def log(site: Site, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> bytes:
    monkeypatch.setattr(reading, "BLOCK", request.param)
    serve_file(site, LOG.encode())
    return LOG.encode()


async def test_a_log_is_read_in_pieces_that_cut_no_character(site: Site, log: bytes) -> None:
    jobs = FirecrestJobs(site.client())
    assert await acall(jobs.read_log, PATH, 0) == (log, len(log))
    assert await acall(jobs.read_log, PATH, 7) == (log[7:], len(log))
    assert await acall(jobs.read_log, PATH, -2) == (log[-2:], len(log))
    assert await acall(jobs.read_log, PATH, -10_000) == (log, len(log))


@pytest.mark.parametrize("beyond", [0, 7])
async def test_behind_the_end_of_a_log_nothing_is_read_and_its_end_is_told(site: Site, log: bytes, beyond: int) -> None:
    jobs, offset = FirecrestJobs(site.client()), len(log) + beyond
    assert await acall(jobs.read_log, PATH, offset) == (b"", len(log))


async def test_a_caller_may_want_less_at_once(site: Site, log: bytes) -> None:
    jobs, parts, offset = FirecrestJobs(site.client()), list[bytes](), 0
    while offset < len(log):
        part, offset = await acall(jobs.read_log, PATH, offset, 9)
        parts.append(part)
    assert b"".join(parts) == log


async def test_one_call_reads_so_much_and_the_next_one_goes_on(
    site: Site, log: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "LOG_LIMIT", 12)
    jobs, parts, offset = FirecrestJobs(site.client()), list[bytes](), 0
    while offset < len(log):
        part, following = await acall(jobs.read_log, PATH, offset)
        assert following == offset + len(part) > offset
        parts, offset = [*parts, part], following
    assert b"".join(parts) == log


async def test_a_character_that_the_end_of_a_log_cuts_comes_whole_later(site: Site) -> None:
    """A job is writing it."""
    jobs = FirecrestJobs(site.client())
    serve_file(site, "one €".encode()[:-1])
    assert await acall(jobs.read_log, PATH, 0) == (b"one ", 4)
    assert await acall(jobs.read_log, PATH, 4) == (b"", 4)
    serve_file(site, "one € two".encode())
    assert await acall(jobs.read_log, PATH, 4) == ("€ two".encode(), 11)


BINARY = b"some text \xff\xfe\x00 and more\n" * 5


@pytest.mark.parametrize("block", [8, 11, 12, 1000])
async def test_a_log_that_is_no_text_is_read_to_its_end(
    site: Site, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(reading, "BLOCK", block)
    serve_file(site, BINARY)
    found, offset = await acall(FirecrestJobs(site.client()).read_log, PATH, 0)
    assert found.endswith(b"and more\n")
    assert offset == len(found)


@pytest.mark.parametrize(("offset", "following"), [(0, 0), (5, 5), (-100, 0)])
async def test_a_log_that_is_not_there_has_nothing_new(site: Site, offset: int, following: int) -> None:
    site.on("GET", f"{OPS}/stat", refusal(404, "Remote process failed: stat: cannot statx: No such file or directory"))
    assert await acall(FirecrestJobs(site.client()).read_log, PATH, offset) == (b"", following)


async def test_a_log_that_became_shorter_ends_the_call(site: Site) -> None:
    site.on("GET", f"{OPS}/stat", reply(json={"output": {"size": 100}}))
    site.on("GET", f"{OPS}/tail", reply(json={"output": {"content": "abc"}}), reply(json={"output": {"content": ""}}))
    assert await acall(FirecrestJobs(site.client()).read_log, PATH, 0) == (b"abc", 3)
