"""At most one live job under a key, never silently none: at every kind of site, whatever the network does."""

from __future__ import annotations

import asyncio
import uuid

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
from prefect_mantik.runs import RunState
from prefect_mantik.sites import submission
from prefect_mantik.sites.base import Announcement
from tests.contract.conftest import Road
from tests.sandbox_jobs import MemoryLedger, credentials, mantik_site, new_key, project, training_job


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
    handle = await road.submit(key, ledger=ledger)
    assert [job["live"] for job in road.jobs(key)] == [True]
    assert handle.attempt == 1
    assert ledger.notes == {}


async def test_a_platform_that_never_answers_is_unknown_and_resolved_later(platform_road: Road) -> None:
    road, key, ledger = platform_road, new_key(), MemoryLedger()
    road.sandbox.control.add_fault(**road.post, action="drop_before", times=None)
    impatient = road.job(site=road.site(settle=0.3))
    with pytest.raises(SubmitUnknown, match=f"key '{key.name}'.*Submit again under the same key"):
        await road.submit(key, ledger=ledger, site=impatient.site.open(impatient.project))
    assert ledger.notes == {key.site_key: Announcement(attempt=1)}
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
    assert ledger.notes == {}


async def test_a_job_that_surfaces_after_all_beside_a_repeated_one_is_reported(platform_road: Road) -> None:
    """Later than `settle`, so absence was thought proved: we see both, and stop."""
    road, key = platform_road, new_key()
    road.sandbox.control.add_fault(**road.post, action="late", status=504, seconds=2)
    with pytest.raises(DuplicateJobs, match="2 live jobs"):
        await road.submit(key)
    assert len(road.jobs(key)) == 2


async def test_a_run_that_somebody_renamed_is_found(platform_road: Road) -> None:
    road, key = platform_road, new_key()
    handle = await road.submit(key)
    site = road.open()
    await acall(site._tracking.call, "POST", "runs/update", {"run_id": handle.remote_id, "run_name": "my favourite"})
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
    assert ledger.notes == {}


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
    key = new_key()
    handle = await road.submit(key)
    other = road.spec(seconds=61)
    with pytest.raises(KeyInUse, match=f"{handle.spec_digest}.*yours {other.digest[:8]}.*shared=True"):
        await road.submit(key, other)
    assert await road.submit(key, other, shared=True) == handle
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
    assert ledger.notes == {key.site_key: Announcement(attempt=1)}
    assert road.jobs(key) == []
