"""Keys at UNICORE sites: whose they are, when they are free, and what a submit leaves behind that was cut short."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from prefect_mantik.errors import KeyInUse, SubmitIncomplete, SubmitRefused, SubmitUnknown
from prefect_mantik.loop import acall
from prefect_mantik.runs import RunHandle, RunKey, RunSpec, RunState
from prefect_mantik.sandbox.process import SandboxControl
from prefect_mantik.sites import submission
from prefect_mantik.sites.base import Site
from prefect_mantik.sites.tracked import KEY_TAG, REFUSED_TAG
from prefect_mantik.tracking import TrackedRun
from tests.contract.conftest import PlatformRoad, UnicoreRoad
from tests.sandbox_jobs import MemoryLedger, new_key

BASE = "/{site}/rest/core"
JOBS = f"{BASE}/jobs"
FILES = f"{BASE}/storages/{{storageId}}/files/{{path}}"
CODE = "/projects/{projectId}/code/{codeRepositoryId}"
PAGE = "<html><head><title>Not Found</title></head></html>"


@pytest.fixture
def alder(sandbox_unicore_road: UnicoreRoad) -> UnicoreRoad:
    return sandbox_unicore_road


def control_of(road: UnicoreRoad) -> SandboxControl:
    return road.sandbox.control


def platform(road: UnicoreRoad) -> PlatformRoad:
    return PlatformRoad(road.sandbox, frozenset())


def birch(road: UnicoreRoad) -> UnicoreRoad:
    url = road.sandbox.env["MANTIK_SANDBOX_BIRCH_URL"]
    return UnicoreRoad(road.sandbox, road.claims, url=url, username=road.username, password=road.password)


async def runs_under(road: UnicoreRoad, key: RunKey) -> list[TrackedRun]:
    """The MLflow runs that bear a key in the tag, newest first."""
    tracking = road.job().project.credentials.tracking_client()
    return await acall(tracking.runs_tagged, KEY_TAG, key.site_key, await acall(tracking.experiment_ids))


# --- Keys of other roads --------------------------------------------------------------------------------------------


async def ended_on_the_platform(road: UnicoreRoad, key: RunKey) -> None:
    """The platform closes the MLflow run of a job that died."""
    tracking = road.job().project.credentials.tracking_client()
    other = platform(road)
    other.end_jobs()
    for _ in range(100):
        runs = await acall(tracking.runs_named_like, key.site_key, await acall(tracking.experiment_ids))
        if all(run.status in ("FAILED", "KILLED") for run in runs):
            return
        await asyncio.sleep(0.1)
    raise AssertionError("the MLflow run is not closed")


async def test_a_key_of_an_untagged_run_on_the_platform_is_in_use_until_that_failed(alder: UnicoreRoad) -> None:
    """Whoever submitted it died before the run was tagged."""
    key, other = new_key(), platform(alder)
    await acall(other.open().post, other.spec(), key, 1)
    assert await runs_under(alder, key) == []
    with pytest.raises(KeyInUse, match=f"Key '{key.name}' belongs to a run at .*, not at .*Use another key"):
        await alder.submit(key)
    assert alder.jobs(key) == []
    await ended_on_the_platform(alder, key)
    handle = await alder.submit(key)
    assert handle.attempt == 1
    assert [job["live"] for job in alder.jobs(key)] == [True]


async def test_an_untagged_run_on_the_platform_is_seen_beside_a_tagged_one_that_was_refused(
    alder: UnicoreRoad,
) -> None:
    key, other = new_key(), platform(alder)
    await refused(alder, key)
    await acall(other.open().post, other.spec(), key, 1)
    with pytest.raises(KeyInUse, match="Use another key"):
        await alder.submit(key)
    assert alder.jobs(key) == []
    other.end_jobs()


# --- Refusals free the key ------------------------------------------------------------------------------------------


async def refused(road: UnicoreRoad, key: RunKey) -> str:
    words = "Could not submit job: budget exhausted"
    body = f'{{"errorMessage": "{words}", "status": 500}}'
    control_of(road).add_fault("status", route=JOBS, method="POST", status=500, body=body)
    ledger = MemoryLedger()
    with pytest.raises(SubmitRefused, match=words) as caught:
        await road.submit(key, ledger=ledger)
    assert ledger.pending == {}
    return str(caught.value)


async def test_a_refused_submit_closes_its_mlflow_run_as_refused(alder: UnicoreRoad) -> None:
    key = new_key()
    await refused(alder, key)
    [run] = await runs_under(alder, key)
    assert (run.status, run.tags.get(REFUSED_TAG)) == ("FAILED", "true")
    assert run.end_time is not None


async def test_a_refused_key_is_free_at_the_same_site(alder: UnicoreRoad) -> None:
    key = new_key()
    await refused(alder, key)
    handle = await alder.submit(key)
    assert handle.attempt == 1
    [new, old] = await runs_under(alder, key)
    assert (new.run_id, REFUSED_TAG in new.tags) == (handle.mlflow_run_id, False)
    assert old.tags[REFUSED_TAG] == "true"
    assert (await alder.status(handle)).state in (RunState.SCHEDULED, RunState.RUNNING)


async def test_a_refused_key_is_free_at_another_site(alder: UnicoreRoad) -> None:
    key, other = new_key(), birch(alder)
    await refused(alder, key)
    handle = await other.submit(key)
    assert (handle.attempt, [job["id"] for job in other.jobs(key)]) == (1, [handle.remote_id])
    with pytest.raises(KeyInUse, match="belongs to a run at BIRCH"):
        await alder.submit(key)
    other.end_jobs()


async def test_a_refused_key_is_free_on_the_platform(alder: UnicoreRoad) -> None:
    key, other = new_key(), platform(alder)
    await refused(alder, key)
    handle = await other.submit(key)
    assert (handle.kind, handle.attempt) == ("mantik", 1)
    assert len(other.jobs(key)) == 1


# --- Doubt and certainty --------------------------------------------------------------------------------------------


async def test_a_refusal_that_cannot_be_made_sure_of_is_no_refusal(alder: UnicoreRoad) -> None:
    """A job may be there all the same: only a look can tell."""
    key, ledger, control = new_key(), MemoryLedger(), control_of(alder)
    site = alder.open(site=alder.site(settle=0.2))
    control.add_fault("status", route=JOBS, method="POST", status=500)
    control.add_fault(
        "status", route=JOBS, method="GET", status=404, body=PAGE, content_type="text/html", skip=1, times=None
    )
    with pytest.raises(SubmitUnknown, match="it cannot be asked"):
        await alder.submit(key, site=site, ledger=ledger)
    assert [(note.attempt, note.receipt) for note in ledger.pending.values()] == [(1, None)]
    control.clear_faults()
    [run] = await runs_under(alder, key)
    assert (run.status, REFUSED_TAG in run.tags) == ("SCHEDULED", False)
    handle = await alder.submit(key, ledger=ledger)
    assert handle.mlflow_run_id == run.run_id
    assert ledger.pending == {}
    assert len(alder.jobs(key)) == 1


async def test_what_the_platform_cannot_give_before_the_post_is_a_refusal_at_once(alder: UnicoreRoad) -> None:
    key, ledger, control = new_key(), MemoryLedger(), control_of(alder)
    control.add_fault("status", route=CODE, status=503, retry_after=600, times=None)
    control.reset_requests()
    began = time.monotonic()
    with pytest.raises(SubmitRefused) as caught:
        await alder.submit(key, site=alder.open(site=alder.site(settle=30)), ledger=ledger)
    assert time.monotonic() - began < 5
    text = str(caught.value)
    assert text.startswith(f"Nothing was submitted to ALDER (not saved) for key '{key.name}': what the run needs")
    assert "GET /projects/{projectId}/code/{codeRepositoryId}" in text
    assert "HTTP 503" in text
    assert ledger.pending == {}
    assert control.count(route=JOBS, method="POST") == 0
    assert await runs_under(alder, key) == []
    control.clear_faults()
    assert (await alder.submit(key, ledger=ledger)).attempt == 1


# --- What is left on this machine -----------------------------------------------------------------------------------


@pytest.fixture
def left_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What lies in the directory for temporary files, of which the test has one of its own."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return lambda: sorted(path.name for path in place.iterdir())


async def test_no_code_is_left_after_a_submit(alder: UnicoreRoad, left_over: Callable[[], list[str]]) -> None:
    seen: list[list[str]] = []
    post = alder.open()

    class Watched(type(post)):  # type: ignore[misc]
        async def complete(self, *args: object) -> RunHandle:
            seen.append(left_over())
            return await super().complete(*args)  # type: ignore[no-any-return]

    post.__class__ = Watched
    await alder.submit(new_key(), site=post)
    assert [len(names) for names in seen] == [1]  # it was there, and is ours to look at
    assert left_over() == []


async def test_no_code_is_left_after_a_submit_whose_outcome_is_unknown(
    alder: UnicoreRoad, left_over: Callable[[], list[str]]
) -> None:
    control_of(alder).switch(unicore_list_lag=5)
    with pytest.raises(SubmitUnknown):
        await alder.submit(new_key(), site=alder.open(site=alder.site(settle=0.2)))
    assert left_over() == []


async def test_no_code_is_left_after_a_refusal(alder: UnicoreRoad, left_over: Callable[[], list[str]]) -> None:
    await refused(alder, new_key())
    assert left_over() == []


async def test_no_code_is_left_where_the_files_did_not_arrive(
    alder: UnicoreRoad, left_over: Callable[[], list[str]]
) -> None:
    control_of(alder).add_fault("status", route=FILES, method="PUT", status=500, times=None)
    with pytest.raises(SubmitIncomplete):
        await alder.submit(new_key())
    assert left_over() == []


async def test_no_code_is_left_of_two_submitters_of_one_key(
    alder: UnicoreRoad, left_over: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the two jobs never gets its code."""
    key = new_key()
    monkeypatch.setattr(submission, "_turn", lambda _: asyncio.Lock())
    control_of(alder).add_fault("delay_before", route=JOBS, method="POST", seconds=1, times=2)
    first, second = await asyncio.gather(*(alder.submit(key) for _ in range(2)))
    assert first == second
    assert len(alder.jobs(key)) == 2
    assert left_over() == []


@pytest.mark.parametrize("rule", [("POST", JOBS), ("PUT", FILES)], ids=["the POST", "the files"])
async def test_no_code_is_left_when_a_waiter_is_cancelled(
    alder: UnicoreRoad, left_over: Callable[[], list[str]], rule: tuple[str, str]
) -> None:
    key, control = new_key(), control_of(alder)
    method, route = rule
    control.add_fault("delay_before", route=route, method=method, seconds=2)
    submit = asyncio.ensure_future(alder.submit(key))
    for _ in range(100):
        if control.call("GET", "/faults")[0]["used"]:
            break
        await asyncio.sleep(0.05)
    assert len(left_over()) == 1
    submit.cancel()
    with pytest.raises(asyncio.CancelledError):
        await submit
    for _ in range(100):
        if not left_over():
            break
        await asyncio.sleep(0.05)
    assert left_over() == []
    await asyncio.sleep(1.5)  # the site serves the request after all
    handle = await alder.submit(key, ledger=MemoryLedger(key))
    assert [job["id"] for job in alder.jobs(key)] == [handle.remote_id]


# --- A submit that is taken up with other code ----------------------------------------------------------------------


async def test_an_unstarted_job_of_another_description_is_not_filled_with_this_ones_code(alder: UnicoreRoad) -> None:
    key, other = new_key(), alder.spec("sleep", seconds=61)
    job = await acall(alder.open().post, alder.spec(), key, 1)
    with pytest.raises(KeyInUse, match=f"{other.digest[:8]}.*submit that one again, or cancel the job"):
        await alder.submit(key, other, shared=True)
    assert [(found["id"], found["status"]) for found in alder.jobs(key)] == [(job, "READY")]
    [handle] = await acall(alder.open().find, key)
    names = {info.path for info in await acall(alder.open().store(handle).list, "/")}
    assert "/mantik-code.tar.gz" not in names
    assert await alder.submit(key) == handle
    assert await alder.submit(key, other, shared=True) == handle  # it has its code now


class Repository:
    """A git repository whose branch moves."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.url = directory, f"file://{directory}"
        directory.mkdir()
        self._git("init", "--quiet", "--initial-branch=main")

    def commit(self, content: str, command: str = "cat content.txt > result.txt") -> str:
        """The command travels with the job, the content with its files."""
        (self.directory / "MLproject").write_text(f"name: moves\nentry_points:\n  main:\n    command: '{command}'\n")
        (self.directory / "content.txt").write_text(content)
        self._git("add", "--all")
        self._git("-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "--quiet", "--message=x")
        return self._git("rev-parse", "HEAD")

    def _git(self, *arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=self.directory, capture_output=True, text=True, check=True, timeout=30
        )
        return done.stdout.strip()


def job_of(road: UnicoreRoad, repository: Repository) -> tuple[RunSpec, Callable[[], Site]]:
    job = road.job(git_url=repository.url)
    return job.spec(), lambda: job.site.open(job.project)


async def test_a_branch_that_moved_since_a_job_was_submitted_does_not_change_its_code(
    alder: UnicoreRoad, tmp_path: Path
) -> None:
    repository, key = Repository(tmp_path / "code"), new_key()
    before = repository.commit("before")
    spec, opened = job_of(alder, repository)
    job = await acall(opened().post, spec, key, 1)
    repository.commit("after")
    handle = await alder.submit(key, spec, site=opened())
    assert handle.remote_id == job
    [found] = alder.jobs(key)
    assert f"commit-{before}" in found["tags"]
    assert (await alder.until_ended(handle)).state is RunState.FINISHED
    assert await acall(alder.open().store(handle).read, "/result.txt") == b"before"


async def test_a_branch_that_moved_is_new_code_for_a_new_attempt(alder: UnicoreRoad, tmp_path: Path) -> None:
    repository, key = Repository(tmp_path / "code"), new_key()
    repository.commit("before", "exit 3")
    spec, opened = job_of(alder, repository)
    first = await alder.submit(key, spec, site=opened())
    await alder.until_ended(first)
    after = repository.commit("after")
    second = await alder.submit(key, spec, site=opened(), if_ended="resubmit")
    assert second.attempt == 2
    assert (await alder.until_ended(second)).state is RunState.FINISHED
    assert any(f"commit-{after}" in job["tags"] for job in alder.jobs(key))
    assert await acall(alder.open().store(second).read, "/result.txt") == b"after"
