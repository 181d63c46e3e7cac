"""Waits without a process: real deployments, served and under a worker; and what the watcher makes of odd flow runs."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import EntrypointType
from prefect.states import State

from prefect_mantik import RunHandle, reap_runs, submit_run, suspending, wait_for_run, watch_runs
from prefect_mantik.kept import LIMIT, Kept, kept_of
from prefect_mantik.lifecycle.watcher import Watched
from prefect_mantik.loop import call
from prefect_mantik.sandbox.process import SandboxProcess
from tests.conftest import PrefectServer
from tests.flows.conftest import kept_handles
from tests.flows.suspended import SITE, deployment_of
from tests.flows.test_verbs import sleeper

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(300)

POOL = "suspended"


def until(what: str, true: Callable[[], Any], timeout: float = 60) -> Any:
    deadline = time.monotonic() + timeout
    while not (found := true()):
        assert time.monotonic() < deadline, what
        time.sleep(0.3)
    return found


def background(server: PrefectServer, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    environment = server.environment(
        PYTHONPATH=str(ROOT),
        PREFECT_LOGGING_LEVEL="INFO",
        PREFECT_RUNNER_POLL_FREQUENCY="1",
        PREFECT_WORKER_QUERY_SECONDS="1",
    )
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, *arguments], env=environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
        )


@pytest.fixture(autouse=True)
def nothing_else_is_suspended(prefect_server: PrefectServer) -> None:
    """What other tests left suspended would be watched too."""
    wanted = {"flow_runs": {"state": {"name": {"any_": ["Suspended", "Resuming"]}}}}
    for run in prefect_server.request("POST", "/flow_runs/filter", wanted):
        prefect_server.request("DELETE", f"/flow_runs/{run['id']}")


@pytest.fixture(scope="module")
def watcher_deployed(prefect_server: PrefectServer) -> Iterator[None]:
    """With a schedule that never comes, and no other one: the tests do its rounds."""
    call(delete_watchers)
    deploy_watcher()
    yield
    call(delete_watchers)


def deploy_watcher() -> None:
    schedule = CronSchedule(cron="0 0 1 1 *")
    watch_runs.to_deployment("yearly", schedule=schedule, entrypoint_type=EntrypointType.MODULE_PATH).apply()


async def delete_watchers() -> None:
    async with get_client() as client:
        named = FlowFilter(name=FlowFilterName(any_=[suspending.WATCHER]))
        for deployment in await client.read_deployments(flow_filter=named):
            await client.delete_deployment(deployment.id)


@pytest.fixture(scope="module")
def served(
    prefect_server: PrefectServer, watcher_deployed: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Flows that are served; gives the log."""
    log = tmp_path_factory.mktemp("served") / "log"
    process = background(prefect_server, log, "-c", "from tests.flows import suspended; suspended.main()")
    yield log
    stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """A worker first waits for its flow runs, some of which are to be suspended for ever."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture
def under_a_worker(prefect_server: PrefectServer, watcher_deployed: None, tmp_path: Path) -> Iterator[Path]:
    prefect_server.request("POST", "/work_pools/", {"name": POOL, "type": "process"})
    log = tmp_path / "log"
    process = background(prefect_server, log, "-m", "prefect", "worker", "start", "--pool", POOL)
    deployment_of("gathered", work_pool_name=POOL).apply()
    yield log
    stop(process)


class Deployed:
    """A flow run of a deployment of `suspended`."""

    def __init__(self, server: PrefectServer, mark: Path, name: str) -> None:
        self.server, self.mark = server, mark
        path = f"/deployments/name/{name.replace('_', '-')}/{name}"
        deployment = until(f"{name} is deployed", lambda: self._deployment(path))
        body = {"parameters": {"mark": str(mark)}, "state": {"type": "SCHEDULED"}}
        self.id = server.request("POST", f"/deployments/{deployment}/create_flow_run", body)["id"]

    def _deployment(self, path: str) -> str:
        import httpx

        answer = httpx.get(f"{self.server.api_url}{path}", timeout=30, trust_env=False)
        return str(answer.json()["id"]) if answer.is_success else ""

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = self.server.request("GET", f"/flow_runs/{self.id}")["state"]
        return found

    def states(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.server.request("GET", f"/flow_run_states/?flow_run_id={self.id}")
        return found

    def key(self) -> str:
        return str(self.state()["state_details"]["pause_key"])

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.mark.read_text().splitlines()] if self.mark.exists() else []

    def until_state(self, name: str, log: Path, *, other_than: str = "") -> None:
        def there() -> bool:
            state = self.state()
            if state["type"] in ("FAILED", "CRASHED") and name not in (state["name"], "Crashed"):
                raise AssertionError(f"{state}\n{log.read_text()[-6000:]}")
            return state["name"] == name and (not other_than or self.key() != other_than)

        try:
            until(name, there)
        except AssertionError:
            print(self.state(), log.read_text()[-6000:])
            raise

    def kept(self) -> Kept:
        async def read() -> FlowRun:
            async with get_client() as client:
                return await client.read_flow_run(UUID(self.id))

        found = kept_of(call(read))
        assert found
        return found

    def until_no_process(self) -> None:
        until("its process ends", lambda: not any(_is_alive(line["pid"]) for line in self.lines()), 30)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def watched() -> Watched:
    found = watch_runs()
    assert isinstance(found, Watched)
    return found


def until_resumed(run: Deployed) -> Watched:
    found: list[Watched] = []

    def is_resumed() -> bool:
        found.append(watched())
        return run.id in [str(each.id) for each in found[-1].resumed]

    until("resumed", is_resumed)
    return found[-1]


# --- Deployed -------------------------------------------------------------------------------------------------------


def test_suspended_and_resumed_until_the_result_is_home(
    sandbox: SandboxProcess, prefect_server: PrefectServer, served: Path, tmp_path: Path
) -> None:
    run = Deployed(prefect_server, tmp_path / "mark", "two_waits")
    run.until_state("Suspended", served)
    run.until_no_process()
    first_key = run.key()
    assert first_key == run.kept().key
    assert [handle.name for handle in run.kept().awaited] == ["first"]
    [job] = sandbox.control.jobs(live=True)
    seen = watched()
    assert [str(each.id) for each in seen.waiting] == [run.id]
    assert (seen.resumed, seen.troubles) == ([], [])

    # By a person, too early: it is suspended again, for its runs have not ended.
    prefect_server.request("POST", f"/flow_runs/{run.id}/resume", {})
    run.until_state("Suspended", served, other_than=first_key)
    again_key = run.key()
    run.until_no_process()
    assert again_key.rpartition("-")[0] == first_key.rpartition("-")[0]

    sandbox.control.end_job(job["id"], "FAILED")
    until_resumed(run)
    run.until_state("Suspended", served, other_than=again_key)  # by another wait
    assert [handle.name for handle in run.kept().awaited] == ["second"]
    run.until_no_process()
    until_resumed(run)
    run.until_state("Completed", served)
    last = run.lines()[-1]
    assert (last["first"], last["second"]) == ("FAILED", "FINISHED")
    assert last["attempts"] == [1, 2]  # only a submit that came after the wait's answer makes another attempt
    assert len(run.lines()) == 5
    assert len({line["pid"] for line in run.lines()}) == 4


def test_two_waits_at_once_and_a_cancel_while_suspended(
    sandbox: SandboxProcess,
    prefect_server: PrefectServer,
    only_sandbox_sites: None,
    under_a_worker: Path,
    tmp_path: Path,
) -> None:
    run = Deployed(prefect_server, tmp_path / "mark", "gathered")
    run.until_state("Suspended", under_a_worker)
    run.until_no_process()
    assert sorted(handle.name for handle in run.kept().awaited) == ["first", "second"]
    assert run.kept().key == run.key()
    one, _ = sandbox.control.jobs(live=True)
    sandbox.control.end_job(one["id"], "FAILED")
    until("one has ended", lambda: [(seen.runs, seen.ended) for seen in watched().waiting] == [(2, 1)])
    # They are resumed together.

    prefect_server.request("POST", f"/flow_runs/{run.id}/set_state", {"state": {"type": "CANCELLING"}})
    run.until_state("Cancelled", under_a_worker)
    assert len(sandbox.control.jobs(live=True)) == 1
    assert watched().waiting == []
    assert len(reap_runs().cancelled) == 1
    assert sandbox.control.jobs(live=True) == []
    assert "never retrieved" not in under_a_worker.read_text()


def test_a_timeout_goes_on_while_suspended(
    sandbox: SandboxProcess, prefect_server: PrefectServer, served: Path, tmp_path: Path
) -> None:
    run = Deployed(prefect_server, tmp_path / "mark", "impatient")
    run.until_state("Suspended", served)
    assert len(sandbox.control.jobs(live=True)) == 1
    until_resumed(run)
    run.until_state("Completed", served)
    assert "had not ended" in run.lines()[-1]["error"]
    assert "They were cancelled." in run.lines()[-1]["error"]
    until("the job ends", lambda: not sandbox.control.jobs(live=True))


def test_killed_in_its_wait_and_retried(
    sandbox: SandboxProcess, prefect_server: PrefectServer, served: Path, tmp_path: Path
) -> None:
    before = len(sandbox.control.jobs())
    run = Deployed(prefect_server, tmp_path / "mark", "killed")
    run.until_state("Crashed", served)
    run.until_no_process()
    assert watched().resumed == []  # what was kept belongs to no suspension
    time.sleep(3)  # the runner says Crashed twice, and a Retry between the two is lost
    body = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}}
    prefect_server.request("POST", f"/flow_runs/{run.id}/set_state", body)
    run.until_state("Completed", served)
    assert run.lines()[-1]["done"]
    assert len(sandbox.control.jobs()) == before + 1


def _log(run: Deployed) -> str:
    wanted = {"logs": {"flow_run_id": {"any_": [run.id]}}, "limit": 200}
    return "\n".join(entry["message"] for entry in run.server.request("POST", "/logs/filter", wanted))


# --- Where it cannot be ---------------------------------------------------------------------------------------------


@flow
def by_hand(seconds: float) -> str:
    run = submit_run(sleeper(SITE, seconds), key="short")
    return str(wait_for_run(run, wait="suspend").status.state)


@flow
def parent(seconds: float) -> str:
    return by_hand(seconds)


@pytest.mark.parametrize(
    ("shape", "words"),
    [(by_hand, "it has no deployment, so that nobody would start it again"), (parent, "it is a child flow run")],
)
def test_what_cannot_be_suspended_says_so_once_and_holds(
    sandbox: SandboxProcess, caplog: pytest.LogCaptureFixture, shape: Callable[[float], str], words: str
) -> None:
    assert shape(3) == "FINISHED"
    assert caplog.text.count(f"This flow run cannot be suspended: {words}") == 1
    assert caplog.text.count("The wait holds this process instead.") == 1


@task
def waiting_task(handle: RunHandle) -> str:
    return str(wait_for_run(handle, wait="suspend").status.state)


async def test_a_task_cannot_suspend_its_flow(sandbox: SandboxProcess, caplog: pytest.LogCaptureFixture) -> None:
    @flow
    def pipeline() -> str:
        return waiting_task(submit_run(sleeper(SITE, 3), key="short"))

    assert await asyncio.to_thread(pipeline) == "FINISHED"
    assert "this wait is within a task" in caplog.text


def test_a_watcher_is_needed_that_comes(
    sandbox: SandboxProcess, prefect_server: PrefectServer, served: Path, tmp_path: Path
) -> None:
    async def why_not() -> str:
        async with get_client() as client:
            return await suspending._no_watcher(client)

    async def pause() -> None:
        async with get_client() as client:
            await client.pause_deployment((await client.read_deployment_by_name("watch-runs/yearly")).id)

    assert call(why_not) == ""
    call(pause)
    assert "watch-runs/yearly is paused or has none" in call(why_not)
    call(delete_watchers)
    try:
        run = Deployed(prefect_server, tmp_path / "mark", "impatient")
        run.until_state("Completed", served)
    finally:
        deploy_watcher()
    assert "They were cancelled." in run.lines()[-1]["error"]
    until("it is said", lambda: "`watch_runs`, which would resume it, is not deployed" in _log(run), 20)
    assert "Suspended" not in [state["name"] for state in run.states()]


# --- Odd flow runs --------------------------------------------------------------------------------------------------


def ended_run() -> RunHandle:
    @flow
    def pipeline() -> RunHandle:
        handle = submit_run(sleeper(SITE, 0.1), key="short")
        wait_for_run(handle)
        return handle

    return pipeline()


def test_each_flow_run_is_judged_by_itself(
    sandbox: SandboxProcess, suspended: Callable[..., UUID], caplog: pytest.LogCaptureFixture
) -> None:
    handle = ended_run()
    gone = handle.model_copy(update={"site": "unicore-site/deleted", "site_name": "deleted"})
    a_persons = suspended("some-other-key", kept_handles([handle]))
    nobodys = suspended("a-persons-key")
    damaged = suspended("mantik-a-1", "no label of ours")
    deleted = suspended("mantik-a-1", kept_handles([handle, gone]))
    lost = suspended("mantik-a-1")
    due = suspended("mantik-a-1", kept_handles([handle]))
    seen = watched()
    assert [each.id for each in seen.resumed] == [due]
    assert [each.id for each in seen.waiting] == [deleted]
    assert [str(a_persons) in link for link in seen.left_alone] == [True]
    assert len(seen.troubles) == 3
    assert any(str(lost) in sentence and "has lost the label" in sentence for sentence in seen.troubles)
    assert any(str(damaged) in sentence and "resume it by hand" in sentence for sentence in seen.troubles)
    assert any(str(deleted) in sentence and "deleted" in sentence for sentence in seen.troubles)
    assert all(sentence in caplog.text for sentence in seen.troubles)
    for id, name in ((a_persons, "Suspended"), (nobodys, "Suspended"), (due, "Resuming")):
        assert call(state_of, id).name == name


def test_an_account_that_is_away_holds_up_nobody_else(sandbox: SandboxProcess, suspended: Callable[..., UUID]) -> None:
    @flow
    def pipeline() -> RunHandle:
        return submit_run(sleeper("cedar", 0.1), key="away")

    here, away = ended_run(), pipeline()
    due, waits = (suspended("mantik-a-1", kept_handles([handle])) for handle in (here, away))
    sandbox.control.add_fault("status", route="/firecrest/*", status=503, times=None)
    seen = watched()
    sandbox.control.clear_faults()
    assert [each.id for each in seen.resumed] == [due]
    assert waits in [each.id for each in seen.waiting]
    assert any(str(waits) in sentence for sentence in seen.troubles)


def test_two_watchers_resume_once(sandbox: SandboxProcess, suspended: Callable[..., UUID]) -> None:
    from prefect_mantik.lifecycle.watcher import Watcher

    due = suspended("mantik-a-1", kept_handles([ended_run()]))

    async def both() -> list[Watched]:
        watchers = Watcher(), Watcher()
        try:
            return list(await asyncio.gather(*(watcher.watch() for watcher in watchers)))
        finally:
            for watcher in watchers:
                await watcher.leave()

    resumed = [each.id for seen in call(both) for each in seen.resumed]
    assert resumed.count(due) == 1


async def state_of(id: UUID) -> State[Any]:
    async with get_client() as client:
        state = (await client.read_flow_run(id)).state
    assert state
    return state


def test_a_thousand_runs_fit(prefect_server: PrefectServer, suspended: Callable[..., UUID]) -> None:
    text = thousand().written()
    assert len(text) < LIMIT
    id = suspended("mantik-a-1", thousand())

    async def read() -> Kept | None:
        async with get_client() as client:
            return kept_of(await client.read_flow_run(id))

    found = call(read)
    assert found
    assert found.awaited == thousand().awaited
    assert [handle.links for handle in found.awaited] == [handle.links for handle in thousand().awaited]


def thousand() -> Kept:
    """As the sites make them, with everything that differs between runs."""
    from tests.test_kept import handle_of

    handles = [handle_of(number) for number in range(1000)]
    kept = kept_handles(handles)
    return kept.model_copy(update={"submits": {handle.site_key: [place] for place, handle in enumerate(handles)}})
