"""The reaper ends jobs of cancelled flow runs, and of nobody else; the commands that list and cancel jobs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.deployments.runner import EntrypointType
from prefect.runtime import flow_run as this_run
from prefect.states import Cancelled, Cancelling, Crashed, State

from prefect_mantik import RunHandle, TrainingRun, cancelling, reap_runs, submit_run
from prefect_mantik.documents import aload_block
from prefect_mantik.errors import ConfigurationError
from prefect_mantik.jobs import TrainingJob
from prefect_mantik.ledger import origin
from prefect_mantik.lifecycle import reaper
from prefect_mantik.loop import call
from prefect_mantik.runs import RunKey
from prefect_mantik.sandbox.process import SandboxProcess
from tests.conftest import PrefectServer
from tests.flows.test_verbs import sleeper
from tests.sandbox_jobs import MemoryLedger, new_origin

pytestmark = pytest.mark.usefixtures("only_sandbox_sites")

ROOT = Path(__file__).parents[2]


@flow
def pipeline(site: str, scope: Any = "flow") -> tuple[str, RunHandle]:
    return str(this_run.id), submit_run(sleeper(site), key=f"at-{site}", scope=scope)


def put(flow_run_id: str, state: State[Any]) -> None:
    async def write() -> None:
        async with get_client() as client:
            await client.set_flow_run_state(UUID(flow_run_id), state, force=True)

    call(write)


def live(handle: RunHandle) -> bool:
    return not TrainingRun(handle).status().state.is_end


async def submitted_as(key: RunKey, site: str = "birch") -> RunHandle:
    job = await aload_block(TrainingJob, f"train-{site}")
    job = job.model_copy(update={"entry_point": "sleep", "parameters": {"seconds": 60}})
    return await job.site.open(job.project).submit(job.spec(), key, ledger=MemoryLedger())


@pytest.fixture
def run_of() -> Callable[..., RunHandle]:
    """A live job of a flow run that is in a given state."""

    def make(state: State[Any] | None, site: str = "birch", scope: str = "flow") -> RunHandle:
        flow_run_id, handle = pipeline(site, scope)
        if state:
            put(flow_run_id, state)
        return handle

    return make


@pytest.mark.parametrize("site", ["alder", "birch", "cedar"])
def test_jobs_of_cancelled_flow_runs_are_ended_and_no_others(
    sandbox: SandboxProcess, run_of: Callable[..., RunHandle], site: str
) -> None:
    cancelled, crashed, completed = run_of(Cancelled(), site), run_of(Crashed(), site), run_of(None, site)
    reaped = reap_runs()
    assert reaped.cancelled == [cancelled]
    assert (reaped.unknown, reaped.left) == ([], [])
    assert [live(handle) for handle in (cancelled, crashed, completed)] == [False, True, True]
    assert reap_runs().cancelled == []


def test_a_flow_run_that_stays_cancelling_has_nobody(
    sandbox: SandboxProcess, run_of: Callable[..., RunHandle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started by hand and killed: no worker ends it."""
    handle = run_of(Cancelling())
    reaped = reap_runs(sites=["unicore-site/birch"])
    assert (reaped.sites, reaped.live, reaped.cancelled) == (["unicore-site/birch"], 1, [])
    monkeypatch.setattr(reaper, "GIVEN_UP", timedelta(seconds=0.1))
    assert reap_runs(sites=["unicore-site/birch"]).cancelled == [handle]


def test_a_job_whose_key_outlives_flow_runs_ends_with_its_maker(
    sandbox: SandboxProcess, run_of: Callable[..., RunHandle]
) -> None:
    made = run_of(None, scope="origin")
    assert run_of(Cancelled(), scope="origin") == made
    assert reap_runs().cancelled == []
    other = run_of(Cancelled(), site="cedar", scope="origin")
    assert reap_runs().cancelled == [other]
    assert live(made)


def test_another_prefect_servers_jobs_are_none_of_ours(sandbox: SandboxProcess) -> None:
    theirs = call(submitted_as, RunKey(name="theirs", origin=new_origin(), root_flow_run_id=uuid4()))
    reaped = reap_runs(reap_unknown=True, older_than_hours=1e-9)
    assert (reaped.live, reaped.cancelled, reaped.unknown) == (0, [], [])
    assert live(theirs)


def test_jobs_of_unknown_flow_runs_are_reported(sandbox: SandboxProcess, caplog: pytest.LogCaptureFixture) -> None:
    """Such as after a restored database, or a flow run that was deleted."""
    unknown = call(submitted_as, RunKey(name="unknown", origin=call(origin), root_flow_run_id=uuid4()))
    for arguments in ({}, {"reap_unknown": True, "older_than_hours": 2.0}):
        reaped = reap_runs(**arguments)
        assert (reaped.cancelled, reaped.unknown) == ([], [unknown])
    assert "belongs to a flow run that this Prefect does not know: left alone" in caplog.text
    assert live(unknown)
    assert reap_runs(reap_unknown=True, older_than_hours=1e-9).cancelled == [unknown]
    assert not live(unknown)


def test_an_age_is_needed_for_unknown_ones(sandbox: SandboxProcess) -> None:
    with pytest.raises(ConfigurationError, match="say older_than_hours"):
        reap_runs(reap_unknown=True)


def test_a_site_that_is_down_is_said_and_the_others_are_asked(
    sandbox: SandboxProcess, run_of: Callable[..., RunHandle], prefect_server: PrefectServer
) -> None:
    at_birch, at_cedar = run_of(Cancelled(), "birch"), run_of(Cancelled(), "cedar")
    sandbox.control.add_fault("status", route="/BIRCH/*", status=503, times=None)
    reaped = reap_runs()
    sandbox.control.clear_faults()
    assert reaped.cancelled == [at_cedar]
    assert any("unicore-site/birch" in sentence for sentence in reaped.left)
    artifacts = prefect_server.request("POST", "/artifacts/latest/filter", {"limit": 50})
    (data,) = [artifact["data"] for artifact in artifacts if artifact["key"] == "mantik-reaper"]
    assert "unicore-site/birch" in data
    assert reap_runs().cancelled == [at_birch]


# --- Commands -------------------------------------------------------------------------------------------------------


def command(server: PrefectServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).parent / "prefect-mantik", *arguments],
        env=server.environment(COLUMNS="80"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_jobs_are_listed_by_flow_run_and_cancelled(sandbox: SandboxProcess, prefect_server: PrefectServer) -> None:
    assert command(prefect_server, "runs").stdout == "no live job (--all lists those that have ended too)\n"
    (mine, first), (_, second) = pipeline("birch"), pipeline("cedar")
    shown = command(prefect_server, "runs")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert all(len(line) <= 80 for line in shown.stdout.splitlines())
    assert f"  {mine}\n  at-birch  birch" in shown.stdout
    assert second.remote_id in shown.stdout
    records = json.loads(command(prefect_server, "runs", "--flow-run", mine, "--json").stdout)
    assert [(record["flow_run"], record["handle"]["remote_id"], record["live"]) for record in records] == [
        (mine, first.remote_id, True)
    ]

    ended = command(prefect_server, "cancel", second.remote_id)
    assert (ended.returncode, ended.stdout) == (0, f"cancelled {second.describe()} ({second.remote_id})\n")
    assert [live(first), live(second)] == [True, False]
    ended = command(prefect_server, "cancel", "--flow-run", mine)
    assert (ended.returncode, ended.stdout) == (0, f"cancelled {first.describe()} ({first.remote_id})\n")
    assert not live(first)
    assert command(prefect_server, "cancel", "--flow-run", mine).stdout == "nothing to cancel: no live job\n"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["cancel"], 2, "name jobs, or a flow run with --flow-run"),
        (["cancel", "no-such-job"], 1, "No live job has the id no-such-job: `prefect-mantik runs` lists them."),
        (["cancel", "--flow-run", str(uuid4())], 1, "This Prefect server has no flow run"),
        (["runs", "--flow-run", "nightly"], 2, "Invalid value for '--flow-run'"),
    ],
)
def test_what_cannot_be_meant_is_said(
    sandbox: SandboxProcess, prefect_server: PrefectServer, arguments: list[str], code: int, words: str
) -> None:
    done = command(prefect_server, *arguments)
    assert done.returncode == code
    assert words in done.stderr


def test_a_missing_reaper_is_said_once(
    sandbox: SandboxProcess, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    advised: list[str] = []
    monkeypatch.setattr(cancelling, "_advised", lambda: advised)
    for _ in range(2):
        pipeline("birch")
    assert caplog.text.count("No reaper is deployed at this Prefect server") == 1
    reap_runs.to_deployment("every-ten-minutes", entrypoint_type=EntrypointType.MODULE_PATH).apply()
    try:
        advised.clear()
        caplog.clear()
        pipeline("cedar")
        assert "No reaper" not in caplog.text
    finally:
        call(delete_deployment, "reap-runs/every-ten-minutes")


async def delete_deployment(name: str) -> None:
    async with get_client() as client:
        await client.delete_deployment((await client.read_deployment_by_name(name)).id)
