"""What every kind of site does with a run: find, list, poll, cancel, log, files, check."""

from __future__ import annotations

import hashlib

import pytest

from prefect_mantik.errors import ConfigurationError, NotFound, NotSupported
from prefect_mantik.loop import acall
from prefect_mantik.runs import Reason, RunState
from prefect_mantik.sites import mlflow_runs
from prefect_mantik.sites.base import Capability
from prefect_mantik.sites.store import Store
from tests.contract.conftest import FirecrestRoad, Road, UnicoreRoad
from tests.sandbox_jobs import new_key


async def test_a_run_trains_and_finishes(road: Road) -> None:
    key = new_key("Train über alles | 1")
    handle = await road.submit(key, road.spec("main", epochs=2))
    assert (handle.key, handle.attempt, handle.name) == (key, 1, key.name)
    status = await road.until_ended(handle)
    assert status.state is RunState.FINISHED
    assert status.queued_at is not None
    assert status.ended_at is not None
    assert status.queued_at <= status.ended_at
    assert len(road.jobs(key)) == 1


async def test_a_second_submit_gives_the_same_handle(road: Road) -> None:
    key = new_key()
    first = await road.submit(key)
    second = await road.submit(key)  # from blocks and clients of its own, as another process would
    assert second == first
    assert second.platform_run_id == first.platform_run_id
    assert len(road.jobs(key)) == 1


async def test_find_knows_only_its_own_key(road: Road) -> None:
    mine, other = new_key("mine"), new_key("other")
    handle = await road.submit(mine)
    await road.submit(other)
    assert await acall(road.open().find, mine) == [handle]
    assert await acall(road.open().find, new_key("mine")) == []


async def test_list_by_prefix(road: Road) -> None:
    key = new_key("a listed run")
    handle = await road.submit(key)
    assert await acall(road.open().list, key.prefix) == [handle]
    assert handle in await acall(road.open().list)
    found = (await acall(road.open().list, key.prefix))[0]
    assert (found.site_key, found.attempt) == (key.site_key, 1)
    assert found.name in (key.name, key.slug)  # what a site can keep of it
    assert road.spec().digest.startswith(found.spec_digest)


@pytest.mark.parametrize(("entry_point", "state"), [("fail", RunState.FAILED), ("die", RunState.FAILED)])
async def test_a_run_that_dies_has_failed(road: Road, entry_point: str, state: RunState) -> None:
    handle = await road.submit(new_key(), road.spec(entry_point))
    status = await road.until_ended(handle)
    if Capability.FRESH_STATE in road.claims:
        assert (status.state, status.reason) == (state, Reason.EXIT_CODE)
        assert status.exit_code
        assert f"exit code {status.exit_code}" in status.describe()
        return
    assert (status.state, status.reason) == (state, Reason.UNTOLD)
    assert "does not tell why" in status.describe()


async def test_the_mlflow_run_of_a_job_that_died_is_closed(road: Road) -> None:
    handle = await road.submit(new_key(), road.spec("die"))
    await road.until_ended(handle)
    tracking = road.job().project.credentials.tracking_client()
    run = await acall(tracking.run, handle.mlflow_run_id)
    assert run.status == "FAILED"
    assert run.end_time is not None


@pytest.mark.parametrize("made", ["sandbox_unicore_road", "ssh_road"])
async def test_the_mlflow_run_is_closed_though_prefect_went_away_meanwhile(
    made: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its account is a block, which is read while there is time: when the run ends Prefect may restart."""
    road: Road = request.getfixturevalue(made)
    handle = await road.submit(new_key(), road.spec("die"))
    ended = await road.until_ended(handle)
    tracking, run_id = road.job().project.credentials.tracking_client(), str(handle.mlflow_run_id)
    await acall(tracking.set_status, run_id, "RUNNING")
    waiting = road.open()
    await acall(waiting.tend, {handle: ended.model_copy(update={"state": RunState.RUNNING, "ended_at": None})})

    async def gone(*_: object) -> None:
        raise OSError("All connection attempts failed")

    monkeypatch.setattr(mlflow_runs, "tracking_of", gone)
    await acall(waiting.tend, {handle: ended})
    tracked = await acall(tracking.run, run_id)
    assert tracked is not None
    assert tracked.status == "FAILED"


async def test_a_failed_call_is_unknown_and_no_end(platform_road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = await platform_road.submit(new_key())
    monkeypatch.setattr("prefect_mantik.tracking.client.POLL_TIMEOUT", 0.5)
    platform_road.sandbox.control.add_fault("drop_before", route="*runs/search*", times=None)
    status = await platform_road.status(handle)
    assert status.state is RunState.UNKNOWN
    assert not status.state.is_end
    assert "no usable answer" in status.site_word


async def test_cancel_reaches_the_job_where_claimed(road: Road) -> None:
    key = new_key()
    handle = await road.submit(key)
    if Capability.CANCEL not in road.claims:
        with pytest.raises(NotSupported, match="was not cancelled.*What can cancel it"):
            await acall(road.open().cancel, handle)
        assert (await road.status(handle)).state in (RunState.SCHEDULED, RunState.RUNNING)
        return
    await acall(road.open().cancel, handle)
    status = await road.until_ended(handle)
    assert (status.state, status.reason) == (RunState.KILLED, Reason.CANCELLED_BY_US)
    assert [job["live"] for job in road.jobs(key)] == [False]
    await acall(road.open().cancel, handle)


async def test_cancelling_what_has_ended_is_success(road: Road) -> None:
    handle = await road.submit(new_key(), road.spec("fail"))
    await road.until_ended(handle)
    await acall(road.open().cancel, handle)


async def test_log_is_read_from_an_offset_where_claimed(road: Road) -> None:
    handle = await road.submit(new_key(), road.spec("fail"))
    await road.until_ended(handle)
    if Capability.LOGS not in road.claims:
        with pytest.raises(NotSupported, match="was not read.*What shows it"):
            await acall(road.open().read_log, handle)
        return
    text, offset = await acall(road.open().read_log, handle)
    assert text
    assert offset == len(text)
    assert await acall(road.open().read_log, handle, 5) == (text[5:], offset)
    assert await acall(road.open().read_log, handle, offset) == (b"", offset)


async def test_a_log_that_is_not_there_yet_is_empty(unicore_road: UnicoreRoad) -> None:
    handle = await unicore_road.submit(new_key())
    text, offset = await acall(unicore_road.open().read_log, handle, 7)
    assert (text, offset) == (b"", 7)


async def test_the_end_of_a_log(road: Road) -> None:
    if Capability.LOGS not in road.claims:
        pytest.skip("the road shows no logs")
    handle = await road.submit(new_key(), road.spec("chatter", lines=1000))
    await road.until_ended(handle)
    site = road.open()
    text, offset = await acall(site.read_log, handle)
    assert await acall(site.read_log, handle, -100) == (text[-100:], offset)


async def test_files_of_a_run_where_claimed(road: Road) -> None:
    handle = await road.submit(new_key(), road.spec("fail"))
    await road.until_ended(handle)
    if Capability.FILES not in road.claims:
        with pytest.raises(NotSupported, match="shows no files: only sites reached directly"):
            road.open().store(handle)
        return
    store = road.open().store(handle)
    names = {info.path for info in await acall(store.list, "/")}
    assert {"/MLproject", "/train.py", "/mantik.log"} <= names
    await acall(store.write, "/results/a file #1.txt", b"0123456789")
    assert (await acall(store.stat, "results/a file #1.txt")).size == 10
    assert await acall(store.read, "/results/a file #1.txt", 2, 3) == b"234"
    assert await acall(store.read, "/results/a file #1.txt", 10) == b""
    await _renamed(road, store)
    await acall(store.mkdir, "/more/of/it")
    assert (await acall(store.stat, "/more/of/it")).is_directory
    await acall(store.remove, "/results")
    with pytest.raises(NotFound):
        await acall(store.stat, "/results/a file #1.txt")
    with pytest.raises(NotFound):
        await acall(store.remove, "/results")
    with pytest.raises(ConfigurationError, match="leads out of the storage"):
        await acall(store.read, "/../secrets")
    await _checked(road, store)


async def _renamed(road: Road, store: Store) -> None:
    if isinstance(road, FirecrestRoad):
        with pytest.raises(NotSupported, match="only in a job of the batch system"):
            await acall(store.rename, "/results/a file #1.txt", "/results/b.txt")
        return
    await acall(store.rename, "/results/a file #1.txt", "/results/b.txt")
    assert [info.path for info in await acall(store.list, "/results")] == ["/results/b.txt"]


async def _checked(road: Road, store: Store) -> None:
    if isinstance(road, FirecrestRoad):
        content = await acall(store.read, "/MLproject")
        assert await acall(store.checksum, "/MLproject") == hashlib.sha256(content).hexdigest()
        return
    with pytest.raises(NotSupported, match="no checksums"):
        await acall(store.checksum, "/mantik.log")


async def test_check_of_a_site_that_works(road: Road) -> None:
    findings = await acall(road.open().check)
    assert [finding.what for finding in findings if not finding.ok] == []
    assert len(findings) >= 3
