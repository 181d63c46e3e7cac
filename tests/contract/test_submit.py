"""At most one live job under a key, never silently none: at every kind of site, whatever the network does."""

from __future__ import annotations

import asyncio
import errno
import uuid
from typing import Any

import pytest

from prefect_mantik import MantikConnection
from prefect_mantik.errors import (
    ConfigurationError,
    DuplicateJobs,
    KeyInUse,
    LoginRefused,
    NotFound,
    RunEnded,
    SubmitRefused,
    SubmitUnknown,
)
from prefect_mantik.loop import acall
from prefect_mantik.runs import RunHandle, RunKey, RunState
from prefect_mantik.sites import direct, submission
from prefect_mantik.sites.base import Capability
from prefect_mantik.sites.notes import Step
from tests.contract.conftest import FirecrestRoad, Road, UnicoreRoad
from tests.sandbox_jobs import MemoryLedger, credentials, mantik_site, new_key, project, training_job


async def jobs_of(road: Road, key: RunKey, at_least: int) -> list[dict[str, Any]]:
    """The platform makes the MLflow run first, by which we find it; its job is in the books a moment later."""
    for _ in range(100):
        if len(road.jobs(key)) >= at_least:
            break
        await asyncio.sleep(0.05)
    return road.jobs(key)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"action": "drop_after"}, id="accepted, answer lost"),
        pytest.param({"action": "status", "status": 502, "body": "<html><title>Bad Gateway</title>"}, id="502"),
        pytest.param({"action": "drop_before"}, id="lost on the way"),
        pytest.param({"action": "status", "status": 429, "retry_after": 1}, id="429"),
        pytest.param({"action": "late", "status": 504, "seconds": 0.6}, id="504, accepted late"),
        pytest.param({"action": "late", "status": None, "seconds": 0.6}, id="cut, accepted late"),
        pytest.param({"action": "delay_after", "seconds": 1}, id="slow"),
    ],
)
async def test_one_job_whatever_happens_to_the_post(faulty_road: Road, fault: dict[str, object]) -> None:
    road, key, ledger = faulty_road, new_key(), MemoryLedger()
    road.sandbox.control.add_fault(**{**road.post, **fault})
    # Only what comes late may need more than the moment that absence takes here, on a busy machine.
    site = road.site(settle=10) if fault["action"] == "late" else road.site()
    handle = await road.submit(key, site=road.open(site=site), ledger=ledger)
    assert [job["live"] for job in await jobs_of(road, key, 1)] == [True]
    assert handle.attempt == 1
    assert ledger.pending == {}


async def test_a_platform_that_never_answers_is_unknown_and_resolved_later(platform_road: Road) -> None:
    road, key, ledger = platform_road, new_key(), MemoryLedger()
    road.sandbox.control.add_fault(**road.post, action="drop_before", times=None)
    impatient = road.job(site=road.site(settle=0.3))
    with pytest.raises(SubmitUnknown, match=f"key '{key.name}'.*Submit again under the same key"):
        await road.submit(key, ledger=ledger, site=impatient.site.open(impatient.project))
    assert [(note.attempt, note.receipt) for note in ledger.pending.values()] == [(1, None)]
    road.sandbox.control.clear_faults()
    await road.submit(key, ledger=ledger)
    assert len(road.jobs(key)) == 1


async def test_what_the_platform_took_is_never_submitted_again(platform_road: Road) -> None:
    """Whether a run shows soon after the platform took it is not established."""
    road, key, ledger = platform_road, new_key(), MemoryLedger()
    road.sandbox.control.switch(run_appears="later", run_appears_after=5)
    with pytest.raises(SubmitUnknown, match="took the run .* but does not show it after 1 s. It is probably live"):
        await road.submit(key, ledger=ledger)
    with pytest.raises(SubmitUnknown, match="took the run .* earlier, as .*, so nothing was submitted"):
        await road.submit(key, ledger=ledger)
    await asyncio.sleep(3)
    handle = await road.submit(key, ledger=ledger)
    assert len(road.jobs(key)) == 1
    assert handle.attempt == 1
    assert ledger.pending == {}


async def test_a_job_that_surfaces_after_all_beside_a_repeated_one_is_reported(platform_road: Road) -> None:
    """Later than `settle`, so absence was thought proved: we see both, and stop."""
    road, key = platform_road, new_key()
    road.sandbox.control.add_fault(**road.post, action="late", status=504, seconds=9)
    with pytest.raises(DuplicateJobs, match="2 live jobs"):
        await road.submit(key, site=road.open(site=road.site(settle=5)))
    assert len(await jobs_of(road, key, 2)) == 2


async def test_a_run_that_somebody_renamed_is_found(platform_road: Road) -> None:
    road, key = platform_road, new_key()
    handle = await road.submit(key)
    tracking = credentials(road.sandbox).tracking_client()
    await acall(tracking.call, "POST", "runs/update", {"run_id": handle.remote_id, "run_name": "my favourite"})
    assert await road.submit(key) == handle
    assert len(road.jobs(key)) == 1


async def test_an_announced_submit_without_a_job_is_waited_for(platform_road: Road) -> None:
    """Killed between the platform's accept and our record, and the run is not visible yet."""
    road, key = platform_road, new_key()
    road.sandbox.control.switch(run_appears="later", run_appears_after=0.7)
    site = road.open()
    await acall(site.post, road.spec(), key, 1)
    handle = await road.submit(key, ledger=MemoryLedger(key))
    assert len(road.jobs(key)) == 1
    assert handle.attempt == 1


async def test_a_refusal_leaves_no_job_and_no_announcement(road: Road) -> None:
    key, ledger = new_key(), MemoryLedger()
    spec = road.spec("no-such-entry-point")
    with pytest.raises((SubmitRefused, ConfigurationError), match="no-such-entry-point"):
        await road.submit(key, spec, ledger=ledger)
    assert road.jobs(key) == []
    assert ledger.pending == {}


async def test_two_submitters_in_one_process_take_turns(platform_road: Road) -> None:
    road, key = platform_road, new_key()
    first, second = await asyncio.gather(*(road.submit(key) for _ in range(2)))
    assert first == second
    assert len(road.jobs(key)) == 1


async def test_two_submitters_of_one_key_at_the_same_instant(
    platform_road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two processes. The platform cannot tell which is older, nor cancel: it is reported, and we stop."""
    road, key = platform_road, new_key()
    monkeypatch.setattr(submission, "_turn", lambda _: asyncio.Lock())
    road.sandbox.control.add_fault(**road.post, action="delay_before", seconds=1, times=2)
    outcomes = await asyncio.gather(*(road.submit(key) for _ in range(2)), return_exceptions=True)
    assert len(road.jobs(key)) == 2
    assert any(isinstance(outcome, DuplicateJobs) for outcome in outcomes)
    assert all(isinstance(outcome, DuplicateJobs) or outcome.attempt == 1 for outcome in outcomes)
    with pytest.raises(DuplicateJobs, match="2 live jobs .* cancel all but one"):
        await road.submit(key)


async def test_ended_without_success_follows_if_ended(road: Road) -> None:
    key, spec = new_key(), road.spec("fail")
    first = await road.submit(key, spec)
    await road.until_ended(first)
    with pytest.raises(RunEnded, match='is FAILED.*if_ended="resubmit"'):
        await road.submit(key, spec)
    second = await road.submit(key, spec, if_ended="resubmit")
    assert (second.attempt, second.site_key) == (2, first.site_key)
    assert second != first
    assert len(road.jobs(key)) == 2
    assert set(await acall(road.open().find, key)) == {first, second}


async def test_a_finished_run_is_taken_as_it_is(road: Road) -> None:
    key, spec = new_key(), road.spec("silent")
    first = await road.submit(key, spec)
    assert (await road.until_ended(first)).state is RunState.FINISHED
    assert await road.submit(key, spec, if_ended="resubmit") == first
    assert len(road.jobs(key)) == 1


async def test_a_key_with_another_description_is_in_use(road: Road) -> None:
    key, ledger = new_key(), MemoryLedger()
    handle = await road.submit(key, ledger=ledger)
    other = road.spec(seconds=61)
    yours = rf"Yours: sleep\(seconds=61\) of .*description {other.digest[:8]}.*shared=True"
    with pytest.raises(KeyInUse, match=rf"Theirs: sleep\(seconds=60\).*description {handle.spec_digest}.*{yours}"):
        await road.submit(key, other, ledger=ledger)
    with pytest.raises(KeyInUse, match=f"{handle.remote_id}.*Theirs: description {handle.spec_digest}.*{yours}"):
        await road.submit(key, other, ledger=MemoryLedger())
    assert await road.submit(key, other, shared=True) == handle
    assert len(road.jobs(key)) == 1


async def test_a_key_has_one_site(road: Road) -> None:
    key, ledger = new_key(), MemoryLedger()
    await road.submit(key, ledger=ledger)
    other = road.open()
    other.name, other.reference = "elsewhere", None
    with pytest.raises(KeyInUse, match=r"was used .* for a run at .*, not at elsewhere. Theirs: .* Yours: "):
        await road.submit(key, site=other, ledger=ledger)
    assert len(road.jobs(key)) == 1


async def test_a_key_belongs_to_the_flow_run_that_submitted_it(platform_road: Road) -> None:
    road, key, ledger = platform_road, new_key(), MemoryLedger()
    root, first, second = (Step(uuid.uuid4(), uuid.uuid4()) for _ in range(3))
    ledger.way = [root, first]
    handle = await road.submit(key, ledger=ledger)
    assert await road.submit(key, ledger=ledger) == handle
    for way in ([root, second], [root]):
        ledger.way = way
        with pytest.raises(KeyInUse, match=f"another flow run of the same tree.*{first.flow_run_id}.*shared=True"):
            await road.submit(key, ledger=ledger)
        assert await road.submit(key, ledger=ledger, shared=True) == handle
    begun_anew = Step(root.flow_run_id, uuid.uuid4())
    ledger.way = [begun_anew, second]
    assert await road.submit(key, ledger=ledger) == handle
    assert len(road.jobs(key)) == 1


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("project_id", "no project .* with an experiment repository"),
        ("experiment_repository_id", "no project .* with an experiment repository"),
        ("code_repository_id", "has no code repository"),
        ("data_repository_id", "has no data repository"),
    ],
)
async def test_an_unknown_id_is_named(platform_road: Road, what: str, words: str) -> None:
    sandbox, wrong = platform_road.sandbox, uuid.uuid4()
    job = training_job(sandbox, project=project(sandbox, **{what: wrong}))
    with pytest.raises((NotFound, SubmitRefused), match=words) as caught:
        await platform_road.submit(new_key(), job.spec(), site=job.site.open(job.project))
    assert str(wrong) in str(caught.value)


async def test_an_unknown_connection_is_named_but_not_shown(platform_road: Road) -> None:
    sandbox, wrong = platform_road.sandbox, str(uuid.uuid4())
    connection = MantikConnection(connection_id=wrong, credentials=credentials(sandbox))
    job = training_job(sandbox, site=mantik_site(sandbox, connection=connection))
    with pytest.raises(SubmitRefused, match="the Connection ID in .* is none of 'sandbox''s") as caught:
        await platform_road.submit(new_key(), job.spec(), site=job.site.open(job.project))
    assert wrong not in str(caught.value)


async def test_a_wrong_password_is_tried_once(platform_road: Road) -> None:
    sandbox = platform_road.sandbox
    account = credentials(sandbox, password=f"wrong {uuid.uuid4()}")
    job = training_job(
        sandbox, project=project(sandbox, credentials=account), site=mantik_site(sandbox, credentials=account)
    )
    sandbox.control.reset_requests()
    for _ in range(3):
        with pytest.raises(LoginRefused, match="refused the login of 'sandbox'") as caught:
            await platform_road.submit(new_key(), job.spec(), site=job.site.open(job.project))
        assert "wrong " not in str(caught.value)
    assert sandbox.control.count(route="/mantik/tokens/create") == 1


async def test_a_refusal_after_an_unclear_answer_keeps_the_announcement(platform_road: Road) -> None:
    """The first POST may yet be served: the next try has to look first."""
    road, key, ledger = platform_road, new_key(), MemoryLedger()
    road.sandbox.control.add_fault(**road.post, action="status", status=504)
    road.sandbox.control.add_fault(**road.post, action="status", status=400)
    with pytest.raises(SubmitUnknown, match="refused the run.*An earlier submit under this key got no usable answer"):
        await road.submit(key, ledger=ledger)
    assert [(note.attempt, note.receipt) for note in ledger.pending.values()] == [(1, None)]
    assert road.jobs(key) == []


async def end_without_telling(road: Road, handle: RunHandle) -> None:
    """As somebody does at the site: MLflow does not hear of it."""
    if isinstance(road, UnicoreRoad) and road.ca_file:
        pytest.skip("a real server has no switch for that")
    for job in road.sandbox.control.jobs(live=True):
        road.sandbox.control.end_job(job["id"])
    site = road.open()
    for _ in range(200):  # a site may tell a little later; polls alone close no books
        if (await acall(site.poll, [handle]))[handle].state.is_end:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{handle.describe()} does not end")


async def test_a_cancel_that_was_cut_short_is_finished_by_the_next(road: Road) -> None:
    """Killed between the site's end of the job and our own books: the mark that it was us, the MLflow run."""
    if Capability.CANCEL not in road.claims:
        return
    key, spec = new_key(), road.spec()
    handle = await road.submit(key, spec)
    await road.until(handle, RunState.RUNNING)
    await end_without_telling(road, handle)
    await acall(road.open().cancel, handle)
    with pytest.raises(RunEnded):
        await road.submit(key, spec)
    tracking = credentials(road.sandbox).tracking_client()
    run = await acall(tracking.run, str(handle.mlflow_run_id))
    assert run is not None
    assert run.status in ("FAILED", "KILLED")


async def test_an_end_that_nobody_saw_is_entered_by_the_next_submit(road: Road) -> None:
    if not isinstance(road, UnicoreRoad | FirecrestRoad):
        return
    key, spec = new_key(), road.spec()
    handle = await road.submit(key, spec)
    await road.until(handle, RunState.RUNNING)
    await end_without_telling(road, handle)
    with pytest.raises(RunEnded):
        await road.submit(key, spec)
    run = await acall(credentials(road.sandbox).tracking_client().run, str(handle.mlflow_run_id))
    assert run is not None
    assert run.status in ("FAILED", "KILLED")


@pytest.mark.parametrize("made", ["sandbox_unicore_road", "ssh_road"])
async def test_an_mlflow_run_that_was_cut_off_while_it_was_made_is_used(
    made: str, request: pytest.FixtureRequest
) -> None:
    """MLflow begins every run as RUNNING, which elsewhere means that its job is at work."""
    road: Road = request.getfixturevalue(made)
    key = new_key()
    route = "/tracking/api/2.0/mlflow/runs/update"
    road.sandbox.control.add_fault("status", method="POST", route=route, status=400, times=None)
    site = road.open()
    with pytest.raises(SubmitRefused, match="could not be prepared"):
        await road.submit(key, site=site)
    road.sandbox.control.clear_faults()
    handle = await road.submit(key)
    tracking = credentials(road.sandbox).tracking_client()
    runs = await acall(tracking.runs_named_like, key.site_key, [str(handle.mlflow_experiment_id)])
    assert [run.run_id for run in runs] == [handle.mlflow_run_id]
    assert not runs[0].name.endswith("-preparing")
    assert len(road.jobs(key)) == 1


@pytest.mark.parametrize("made", ["sandbox_unicore_road", "ssh_road"])
async def test_a_full_disk_is_a_refusal(
    made: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    road: Road = request.getfixturevalue(made)
    key, ledger = new_key(), MemoryLedger()
    with monkeypatch.context() as patched:
        patched.setattr(direct, "staged_code", full)
        with pytest.raises(SubmitRefused, match=r"Nothing was submitted .* No space left on device"):
            await road.submit(key, ledger=ledger)
    assert ledger.notes == {}
    await road.submit(key, ledger=ledger)
    assert len(road.jobs(key)) == 1
