"""The platform's official client, in an environment of its own, takes the sandbox for the platform.

What it sends is recorded on the way: the sandbox must serve all of it, and what we send must look the same.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from prefect_mantik import TrainingJob
from prefect_mantik.loop import call
from prefect_mantik.platform.endpoints import ENDPOINTS
from prefect_mantik.sandbox.process import SandboxProcess, start_sandbox
from tests.conformance.environments import OFFICIAL_CLIENT
from tests.conformance.recorder import Recorder
from tests.sandbox_jobs import credentials, mantik_site, new_key, project

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(1500)]

SITES = ("alder", "birch", "cedar")
COMMAND_TIMEOUT = 120
JOB_TIMEOUT = 120
PASSED_ON = ("LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")


class OfficialClient:
    """Runs the client with nothing of this process's environment but what reaches the sandbox."""

    def __init__(self, programs: Path, home: Path, env: Mapping[str, str]) -> None:
        self.home = home
        self._programs = programs
        self._env = {
            **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
            **{name: value for name, value in env.items() if "SANDBOX" not in name},
            "HOME": str(home),
            "PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin",
            "PYTHONWARNINGS": "ignore",
        }

    def mantik(self, *arguments: str) -> str:
        """Run a command and give what it printed."""
        return self._run([str(self._programs / "mantik"), *arguments])

    def python(self, script: str) -> Any:
        """Run a script and give what it printed, as JSON."""
        return json.loads(self._run([str(self._programs / "python"), "-c", script]).splitlines()[-1])

    def submit(self, name: str, config: Mapping[str, Any], connection_id: str, *options: str) -> UUID:
        """Submit a run and give the platform's id of it."""
        file = self.home / "backend-config.json"
        file.write_text(json.dumps(config))
        answer = self.mantik(
            "runs",
            "submit",
            "MLproject",
            f"--name={name}",
            f"--backend-config={file}",
            "--branch=main",
            f"--connection-id={connection_id}",
            *options,
        )
        return UUID(json.loads(answer.splitlines()[-1])["runId"])

    def _run(self, command: list[str]) -> str:
        done = subprocess.run(
            command,
            env=self._env,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT,
            check=False,
        )
        assert done.returncode == 0, f"{command[:3]}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def programs() -> Path:
    return OFFICIAL_CLIENT.programs()


@pytest.fixture(scope="module")
def sandbox(programs: Path) -> Iterator[SandboxProcess]:
    with start_sandbox(queue_delay=0.1) as process:
        yield process


@pytest.fixture(scope="module")
def recorder(sandbox: SandboxProcess) -> Iterator[Recorder]:
    with Recorder(sandbox.url) as recorder:
        yield recorder


@pytest.fixture(scope="module")
def client(
    programs: Path, sandbox: SandboxProcess, recorder: Recorder, tmp_path_factory: pytest.TempPathFactory
) -> OfficialClient:
    env = {**sandbox.env, "MANTIK_API_URL": recorder.url}
    return OfficialClient(programs, tmp_path_factory.mktemp("home"), env)


@pytest.fixture(scope="module")
def logins(client: OfficialClient, sandbox: SandboxProcess) -> tuple[str, str]:
    """What `mantik init` prints at first, and again after the token's end."""
    (client.home / ".mantik" / "tokens.json").unlink(missing_ok=True)
    sandbox.control.switch(token_lifetime=0.1)  # the next command takes longer than that to start
    try:
        first = client.mantik("init").strip()
    finally:
        sandbox.control.switch(token_lifetime=3600)
    return first, client.mantik("init", "--no-export").strip()


@pytest.fixture(scope="module")
def trained(client: OfficialClient, sandbox: SandboxProcess) -> dict[str, dict[str, Any]]:
    """A job at each site that the client submitted, after its end."""
    submitted = {
        site: client.submit(
            f"official at {site}",
            mantik_site(sandbox, site).backend_config,
            sandbox.env[f"MANTIK_CONNECTION_ID_{site.upper()}"],
            "-P",
            "epochs=2",
            "-P",
            "learning-rate=0.1",
        )
        for site in SITES
    }
    return {site: ended_job(sandbox, run_id) for site, run_id in submitted.items()}


@pytest.fixture(scope="module")
def local_run(client: OfficialClient) -> str:
    """The name of a run that the client executed here."""
    client.mantik(
        "runs", "local", "MLproject", "--name=local", "--branch=main", "--entry-point=sleep", "-P", "seconds=0"
    )
    return "local"


@pytest.fixture(scope="module")
def connection(client: OfficialClient, sandbox: SandboxProcess) -> dict[str, Any]:
    """A Connection as the client's library reads it."""
    return client.python(f"""
import dataclasses, json, uuid
import mantik.authentication.auth, mantik.authentication.tokens, mantik.utils.mantik_api.connection as connection
token = mantik.authentication.auth.get_valid_access_token()
user = uuid.UUID(mantik.authentication.tokens.get_user_id_from_token(token))
found = connection.get(user, uuid.UUID("{sandbox.env["MANTIK_CONNECTION_ID_ALDER"]}"), token)
print(json.dumps(dataclasses.asdict(found), default=str))
""")


@pytest.fixture(scope="module")
def data(client: OfficialClient, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that the client fetched the data repository to."""
    target = tmp_path_factory.mktemp("data") / "target"
    client.mantik("data", "download", f"--target-dir={target}")
    return target


def test_logs_in_and_refreshes(client: OfficialClient, logins: tuple[str, str], recorder: Recorder) -> None:
    first, second = logins
    assert first.startswith("export MLFLOW_TRACKING_TOKEN=")
    assert second.startswith("MLFLOW_TRACKING_TOKEN=")
    assert second not in first
    assert recorder.named("POST", "/mantik/tokens/create")[-1].status == 201
    assert recorder.named("POST", "/mantik/tokens/refresh")[-1].status == 201
    assert json.loads((client.home / ".mantik" / "tokens.json").read_text())["access_token"] in second


@pytest.mark.parametrize("site", SITES)
def test_a_submitted_run_trains(trained: dict[str, dict[str, Any]], sandbox: SandboxProcess, site: str) -> None:
    job = trained[site]
    run = mlflow_runs(sandbox, site)[job["mlflowRunId"]]
    assert (job["site"], job["state"], job["exitCode"]) == (site, "COMPLETED", 0)
    assert run.status == "FINISHED"
    assert run.name.startswith(f"official at {site}")
    assert run.parameters["epochs"] == "2"
    assert run.metrics["val_loss"].step == 1


def test_downloads_artifacts(client: OfficialClient, trained: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    run_id = trained["cedar"]["platformRunId"]
    client.mantik("runs", "download-artifacts", f"--run-id={run_id}", f"--target-dir={tmp_path}")
    assert (tmp_path / "model" / "MLmodel").is_file()


def test_keeps_models(client: OfficialClient, trained: dict[str, dict[str, Any]], recorder: Recorder) -> None:
    run_id = trained["alder"]["platformRunId"]
    assert client.mantik("models", "list").strip() == "[]"
    client.mantik("models", "add", "--name=digits", f"--run-id={run_id}", '--mlflow-parameters={"epochs": 2}')
    model_id = json.loads(recorder.named("POST", "/models/trained")[-1].answer)["modelId"]
    listed = client.mantik("models", "list")
    assert "name='digits'" in listed
    assert model_id in listed
    update = ("--name=renamed", "--uri=s3://bucket/model", "--location=S3")
    client.mantik("models", "update", f"--model-id={model_id}", *update)
    found = client.mantik("models", "get-one", f"--model-id={model_id}")
    assert "name='renamed'" in found
    assert "uri='s3://bucket/model'" in found
    client.mantik("models", "delete", f"--model-id={model_id}")
    assert client.mantik("models", "list").strip() == "[]"


def test_downloads_data(data: Path) -> None:
    assert (data / "numbers.csv").read_text().startswith("x,y\n")


def test_tracks_a_script(client: OfficialClient, sandbox: SandboxProcess) -> None:
    run_id = client.python("""
import json
import mantik
mantik.init_tracking()
run = mantik.start_run("script")
mantik.log_param("depth", 3)
mantik.log_metric("score", 0.5)
mantik.end_run()
print(json.dumps(run.info.run_id))
""")
    run = mlflow_runs(sandbox)[run_id]
    assert (run.name, run.status) == ("script", "FINISHED")
    assert run.parameters == {"depth": "3"}
    assert run.metrics["score"].value == 0.5


def test_runs_locally_under_a_unique_name(
    client: OfficialClient, local_run: str, sandbox: SandboxProcess, recorder: Recorder
) -> None:
    saved = recorder.named("POST", "/runs")[-1]
    unique = json.loads(recorder.named("GET", "/unique-mlflow-run-name")[-1].answer)
    assert saved.query == "submit=False"
    assert saved.json["name"] == unique != local_run
    run = mlflow_runs(sandbox)[saved.json["mlflowRunId"]]
    assert (run.name, run.status) == (unique, "FINISHED")
    assert recorder.named("PUT", "/status")[-1].json == "FINISHED"


def test_reads_a_connection(connection: dict[str, Any], sandbox: SandboxProcess) -> None:
    assert connection["connection_id"] == sandbox.env["MANTIK_CONNECTION_ID_ALDER"]
    assert connection["connection_provider"] == "UNICORE"
    assert connection["user"]["name"] == sandbox.env["MANTIK_USERNAME"]
    assert connection["login_name"]
    assert connection["password"]


@pytest.mark.parametrize("site", SITES)
def test_submits_what_we_submit(client: OfficialClient, sandbox: SandboxProcess, recorder: Recorder, site: str) -> None:
    account = credentials(sandbox, api_url=recorder.url)
    reached = mantik_site(sandbox, site, credentials=account)
    job = TrainingJob(
        # The client takes the data repository from the environment.
        project=project(sandbox, credentials=account, data_repository_id=sandbox.env["MANTIK_DATA_REPOSITORY_ID"]),
        site=reached,
        entry_point="sleep",
        parameters={"seconds": 0.1},
        data_branch="main",
    )
    key, opened = new_key("same"), reached.open(job.project)

    async def post() -> None:
        await opened.post(job.spec(), key, attempt=1)

    call(post)
    ours = recorder.named("POST", "/runs")[-1]
    client.submit(
        ours.json["name"],
        ours.json["backendConfig"],
        ours.json["connectionId"],
        "--entry-point=sleep",
        "--data-branch=main",
        "-P",
        "seconds=0.1",
    )
    theirs = recorder.named("POST", "/runs")[-1]
    assert theirs is not ours
    assert ours.json == theirs.json
    assert shape(ours.json) == shape(theirs.json)
    assert (ours.path, ours.query) == (theirs.path, theirs.query)
    for header in ("content-type", "authorization"):
        assert ours.headers[header].split()[0] == theirs.headers[header].split()[0]
    # The sandbox made the same job of both, and both runs are found under our key.
    jobs = [ended_job(sandbox, UUID(json.loads(request.answer)["runId"])) for request in (ours, theirs)]
    same = ("site", "kind", "owner", "name", "queue", "nodes", "walltime", "runKey", "state")
    assert [jobs[0][name] for name in same] == [jobs[1][name] for name in same]
    found = call(opened.find, key)
    assert {handle.remote_id for handle in found} >= {job["mlflowRunId"] for job in jobs}


@pytest.mark.usefixtures("logins", "trained", "local_run", "connection", "data")
def test_calls_what_we_call(recorder: Recorder) -> None:
    """Each endpoint that our table says is proven is one that the client just called; none was refused."""
    theirs = [request for request in recorder.requests if request.headers["user-agent"].startswith("python-requests")]
    proven = {name: endpoint for name, endpoint in ENDPOINTS.items() if endpoint.proven}
    called = {
        name
        for name, endpoint in proven.items()
        for request in theirs
        if request.method == endpoint.method and matches(endpoint.path, request.path)
    }
    assert called == proven.keys()
    assert [request for request in theirs if request.status >= 400] == []


def matches(template: str, path: str) -> bool:
    """Whether a path is one of a template with placeholders."""
    return re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path) is not None


def ended_job(sandbox: SandboxProcess, run_id: UUID) -> dict[str, Any]:
    """The job of a run of the platform, when it has ended and MLflow was told."""

    def look() -> dict[str, Any] | None:
        jobs = (job for job in sandbox.control.jobs(live=False) if job["platformRunId"] == str(run_id))
        job = next(jobs, None)
        return job if job and mlflow_runs(sandbox)[job["mlflowRunId"]].status not in ("SCHEDULED", "RUNNING") else None

    return eventually(look)


def eventually(look: Callable[[], dict[str, Any] | None]) -> dict[str, Any]:
    """What `look` finds, within `JOB_TIMEOUT`."""
    deadline = time.monotonic() + JOB_TIMEOUT
    while (found := look()) is None:
        assert time.monotonic() < deadline, "the job did not end in time"
        time.sleep(0.2)
    return found


def mlflow_runs(sandbox: SandboxProcess, part: str = "") -> dict[str, Any]:
    """The runs in the sandbox's MLflow whose names hold a text, by id."""
    tracking = credentials(sandbox).tracking_client()

    async def search() -> dict[str, Any]:
        runs = await tracking.runs_named_like(part, await tracking.experiment_ids())
        return {run.run_id: run for run in runs}

    return call(search)


def shape(value: Any) -> Any:
    """Keys and types: 1, 1.0 and True are equal in Python, but not in JSON."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    return [shape(item) for item in value] if isinstance(value, list) else type(value).__name__
