"""The logs of jobs, followed while they run, over every kind of site."""

from __future__ import annotations

import asyncio
import logging
import shlex
from pathlib import Path

import pytest

from prefect_mantik.log import without_tokens
from prefect_mantik.loop import acall
from prefect_mantik.runs import RunHandle, RunState
from prefect_mantik.sites.base import Capability, Site
from prefect_mantik.waiting import following
from prefect_mantik.waiting.following import LogFollower
from prefect_mantik.waiting.observing import Observed
from tests.contract.conftest import PlatformRoad, Road
from tests.contract.counting import requests_sent
from tests.contract.running import project_in, run
from tests.sandbox_jobs import new_key

TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJtZSJ9.c2lnbmF0dXJl"

WRITES = rf"""
for i in $(seq 12); do printf 'épo'; sleep 0.05; printf 'que %d: 日本\n' $i; sleep 0.05; done
printf '\r 10%%\r 50%%'; sleep 0.1; printf '\r100%%\n'
printf '\033[31mexport T={TOKEN[:30]}'; sleep 0.3; printf '{TOKEN[30:]}\033[0m\n'
printf 'no end'
"""
WRITTEN = [*(f"époque {number}: 日本" for number in range(1, 13)), "100%", "export T=***", "no end"]


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(following, "SHORTEST", 0.0)
    monkeypatch.setattr(following, "READS_A_SECOND", 1000.0)
    caplog.set_level(logging.INFO)


async def look(follower: LogFollower, site: Site, handle: RunHandle) -> bool:
    """Ask and look once, as a wait does; whether the run has ended."""
    statuses = await acall(site.poll, [handle])
    await acall(site.tend, statuses)
    await acall(follower.look, {handle: Observed(site, statuses[handle])})
    return statuses[handle].state.is_end


async def follow(road: Road, handle: RunHandle, follower: LogFollower) -> None:
    site = road.open()
    ended = False
    while not ended:
        await asyncio.sleep(0.1)
        ended = await look(follower, site, handle)
    await acall(follower.close, {handle: Observed(site, await road.status(handle))})


def shown(caplog: pytest.LogCaptureFixture, handle: RunHandle) -> list[str]:
    begin = f"{handle.name} at {handle.site_name} | "
    messages = [record.getMessage() for record in caplog.records]
    return [message.removeprefix(begin) for message in messages if message.startswith(begin)]


class Published(list[tuple[str, bool]]):
    async def __call__(self, handle: RunHandle, text: str, is_whole: bool) -> None:
        self.append((text, is_whole))


async def test_each_line_is_shown_once_and_kept_once(
    road: Road, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    handle, published = await road.submit(new_key(), road.spec("chatter", lines=150)), Published()
    await follow(road, handle, LogFollower(directory=tmp_path, flow_run="flow-1", publish=published))
    lines, files = shown(caplog, handle), sorted((tmp_path / "flow-1").glob("*.log"))
    assert published == []
    if Capability.LOGS not in road.open().capabilities:
        assert (lines, files) == ([], [])
        return
    [file] = files
    text = file.read_text()
    assert [line for line in text.splitlines() if line.startswith("line")] == [
        f"line {number} {'.' * 100}" for number in range(150)
    ]
    assert lines[-100:] == text.splitlines()[-100:]
    log, _ = await acall(road.open().read_log, handle)
    assert text == without_tokens(log.decode())
    await follow(road, handle, LogFollower(directory=tmp_path, flow_run="flow-1"))
    assert shown(caplog, handle) == lines
    assert file.read_text() == text


async def test_without_a_directory_the_end_is_published(road: Road, caplog: pytest.LogCaptureFixture) -> None:
    handle, published = await road.submit(new_key(), road.spec("fail")), Published()
    await follow(road, handle, LogFollower(publish=published))
    if Capability.LOGS not in road.open().capabilities:
        assert published == []
        return
    [(text, is_whole)] = published
    assert is_whole
    assert text.splitlines() == shown(caplog, handle)
    assert f"fail: run {handle.mlflow_run_id}" in text


async def test_what_a_job_writes_bit_by_bit_is_shown_line_by_line_while_it_runs(
    road: Road, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    if isinstance(road, PlatformRoad):
        pytest.skip("the platform takes code from a repository only")
    handle = await run(road, project_in(tmp_path, main=f"bash -c {shlex.quote(WRITES)}; sleep 1"))
    follower, site, early = LogFollower(directory=tmp_path / "logs"), road.open(), 0
    ended = False
    while not ended:
        early = len(shown(caplog, handle))
        ended = await look(follower, site, handle)
    await acall(follower.close, {handle: Observed(site, await road.status(handle))})
    assert (await road.status(handle)).state is RunState.FINISHED
    assert shown(caplog, handle)[-len(WRITTEN) :] == WRITTEN
    assert early > 3
    [file] = (tmp_path / "logs" / "no-flow-run").glob("*.log")
    assert file.read_text().splitlines()[-len(WRITTEN) :] == WRITTEN


async def test_a_look_costs_a_request_when_nothing_is_new_and_none_after_the_end(road: Road) -> None:
    if Capability.LOGS not in road.open().capabilities:
        pytest.skip("the road shows no logs")
    handle, follower, site = await road.submit(new_key()), LogFollower(), road.open()
    status = await road.until(handle, RunState.RUNNING)
    await acall(site.poll, [handle])
    seen = {handle: Observed(site, status)}
    await acall(follower.look, seen)
    await asyncio.sleep(0.5)  # a tenth of its age
    with requests_sent() as sent:
        await acall(follower.look, seen)
    assert len(sent) == 1
    await acall(site.cancel, handle)
    ended = {handle: Observed(site, await road.until_ended(handle))}
    with requests_sent() as sent:
        await acall(follower.look, ended)
    assert len(sent) <= 2
    with requests_sent() as sent:
        await acall(follower.look, ended)
        await acall(follower.close, ended)
    assert sent == []
