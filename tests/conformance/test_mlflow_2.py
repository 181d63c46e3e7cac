"""The oldest MLflow server that the platform may run, 2.2.2, does what we ask of a tracking server.

With the libraries of its day and with today's, which change what it accepts; and in the jobs too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from prefect_mantik import TrainingJob, gather_metrics, holding, register_model, select_best_run
from prefect_mantik.errors import NotFound
from prefect_mantik.loop import call
from prefect_mantik.runs import RunHandle, RunState
from prefect_mantik.sandbox.process import SandboxProcess, start_sandbox
from prefect_mantik.sites.opening import remember
from prefect_mantik.tracking import TrackingClient, client as tracking_module
from tests.conformance.environments import MLFLOW_2, MLFLOW_2_TODAY, Environment
from tests.sandbox_jobs import MemoryLedger, credentials, new_key, training_job

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(1500)]

VERSION = "2.2.2"
RATES = {"alder": 0.1, "birch": 0.01, "cedar": 0.001}
JOB_TIMEOUT = 60


@dataclass(frozen=True)
class Setup:
    """Where MLflow 2 is used."""

    server: Environment
    jobs_too: bool = False


SETUPS = {
    "server": Setup(MLFLOW_2),
    "server-with-libraries-of-today": Setup(MLFLOW_2_TODAY),
    "server-and-jobs": Setup(MLFLOW_2, jobs_too=True),
}


@pytest.fixture(scope="module", params=SETUPS.values(), ids=SETUPS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[SandboxProcess]:
    setup: Setup = request.param
    programs = setup.server.programs()
    python = {"job_python": programs / "python"} if setup.jobs_too else {}
    with start_sandbox(mlflow_command=str(programs / "mlflow"), queue_delay=0.1, **python) as process:
        yield process


@pytest.fixture
def tracking(sandbox: SandboxProcess) -> TrackingClient:
    return credentials(sandbox).tracking_client()


@pytest.fixture
def experiment(tracking: TrackingClient) -> str:
    """The id of an experiment of the test's own."""
    answer = call(tracking.call, "POST", "experiments/create", {"name": new_key().site_key})
    return str(answer["experiment_id"])


def new_run(tracking: TrackingClient, experiment: str, name: str) -> str:
    body = {"experiment_id": experiment, "run_name": name, "start_time": 1}
    return str(call(tracking.call, "POST", "runs/create", body)["run"]["info"]["run_id"])


def test_is_that_version(sandbox: SandboxProcess) -> None:
    account = credentials(sandbox)
    token = call(account.get_client().tokens.token)
    headers = {"Authorization": f"Bearer {token}"}
    answer = httpx.get(f"{account.tracking_uri}/version", headers=headers, trust_env=False)
    assert answer.text == VERSION


def test_is_reached_through_the_sandbox_only(sandbox: SandboxProcess) -> None:
    """Whoever may connect to a port of this machine must not get past the token check."""
    state = re.search(r"state: +(.+)", sandbox.output())
    assert state
    log = Path(state[1], "mlflow", "server.log").read_text()
    listening = [line for line in log.splitlines() if "Listening at" in line]
    assert listening
    assert not [line for line in listening if "http://" in line]


def test_lists_experiments(tracking: TrackingClient, experiment: str) -> None:
    assert experiment in call(tracking.experiment_ids)


def test_finds_runs_by_a_part_of_the_name(tracking: TrackingClient, experiment: str) -> None:
    key = new_key().site_key
    wanted = new_run(tracking, experiment, f"train-{key}-1-0123abcd-7")
    new_run(tracking, experiment, "another")
    found = call(tracking.runs_named_like, key, [experiment])
    assert [run.run_id for run in found] == [wanted]
    assert found[0].name == f"train-{key}-1-0123abcd-7"
    assert found[0].status == "RUNNING"


def test_finds_deleted_runs(tracking: TrackingClient, experiment: str) -> None:
    run_id = new_run(tracking, experiment, "deleted")
    call(tracking.call, "POST", "runs/delete", {"run_id": run_id})
    assert [run.deleted for run in call(tracking.runs_named_like, "delete", [experiment])] == [True]


def test_gives_all_pages(tracking: TrackingClient, experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking_module, "_PAGE", 2)
    made = {new_run(tracking, experiment, f"page-{number}") for number in range(5)}
    assert {run.run_id for run in call(tracking.runs_named_like, "page", [experiment])} == made


def test_finds_runs_by_their_ids(tracking: TrackingClient, experiment: str) -> None:
    made = [new_run(tracking, experiment, name) for name in ("one", "two", "three")]
    assert set(call(tracking.runs_by_id, made[:2], [experiment])) == set(made[:2])


def test_finds_two_hundred_runs_by_their_ids(tracking: TrackingClient, experiment: str) -> None:
    made = new_run(tracking, experiment, "one")
    unknown = [f"{number:032x}" for number in range(199)]
    assert set(call(tracking.runs_by_id, [made, *unknown], [experiment])) == {made}


def test_knows_no_such_run(tracking: TrackingClient) -> None:
    with pytest.raises(NotFound):
        call(tracking.call, "GET", "runs/get", params={"run_id": "0" * 32})


def test_keeps_tags_and_metrics(tracking: TrackingClient, experiment: str) -> None:
    run_id = new_run(tracking, experiment, "tagged")
    call(tracking.set_tags, run_id, {"prefect_mantik.run": '{"name": "a \'text\'"}'})
    for step, value in enumerate((0.5, "Infinity", "NaN")):
        metric = {"run_id": run_id, "key": "loss", "value": value, "timestamp": 1_000 + step, "step": step}
        call(tracking.call, "POST", "runs/log-metric", metric)
    run = call(tracking.runs_named_like, "tagged", [experiment])[0]
    assert run.tags["prefect_mantik.run"] == '{"name": "a \'text\'"}'
    assert run.metrics["loss"].step == 2
    assert math.isnan(run.metrics["loss"].value)


def test_trains_gathers_and_registers(sandbox: SandboxProcess) -> None:
    """Submit to each site, wait, gather the metrics, register the best model: by the code that the tasks run."""
    handles = [submit(training_job(sandbox, site, parameters={"learning-rate": rate})) for site, rate in RATES.items()]
    results = holding.hold(handles, timeout=JOB_TIMEOUT, on_timeout="cancel")
    assert [result.status.state for result in results] == [RunState.FINISHED] * len(handles)

    metrics = gather_metrics.fn(handles)
    assert [run.parameters["learning_rate"] for run in metrics] == [str(rate) for rate in RATES.values()]
    assert all(run.final["val_loss"].step == 4 for run in metrics)
    best = select_best_run(metrics, "val_loss", mode="min")
    assert best.final["val_loss"].value == min(run.final["val_loss"].value for run in metrics)

    tracking = credentials(sandbox).tracking_client()
    artifacts = call(tracking.artifacts, best.handle.mlflow_run_id, "model")
    assert "model/MLmodel" in {item["path"] for item in artifacts}
    check_registered(tracking, best.handle, next(handle for handle in handles if handle != best.handle))


def check_registered(tracking: TrackingClient, best: RunHandle, second: RunHandle) -> None:
    """The same run is registered once; another one is the next version; the server knows where the files are."""
    first, again = (register_model.fn(best, name="digits") for _ in range(2))
    other = register_model.fn(second, name="digits")
    assert first == again
    assert (first.version, other.version) == ("1", "2")
    params = {"name": "digits", "version": "1"}
    known = call(tracking.call, "GET", "model-versions/get", params=params)["model_version"]
    assert (known["run_id"], known["status"]) == (best.mlflow_run_id, "READY")
    where = call(tracking.call, "GET", "model-versions/get-download-uri", params=params)["artifact_uri"]
    assert where == first.source


def submit(job: TrainingJob) -> RunHandle:
    """Submit as a task does, but under a key that needs no Prefect server."""
    site = job.site.open(job.project)

    async def on_the_loop() -> RunHandle:
        return await site.submit(job.spec(), new_key("train"), ledger=MemoryLedger())

    handle = call(on_the_loop)
    remember(handle, site, job.project)
    return handle
