import subprocess
import uuid

import pytest


def resources(**values):
    return {"Resources": {"Queue": "batch", **values}}


def environment(**values):
    return {"Environment": values}


CONFIGURATION = "While submitting the job, this configuration error occurred: "
WAY = "Either UnicoreApiUrl or Firecrest or SSH details must be provided, but not more than 1."


@pytest.mark.parametrize(
    ("site", "changes", "text"),
    [
        ("alder", {"Firecrest": {"ApiUrl": "x"}}, CONFIGURATION + WAY),
        ("alder", {"Resources": None}, "'Resources' has to be of type dict"),
        ("alder", {"Resources": {}}, "'Queue'"),
        ("alder", resources(Queue="gpu"), "Unicore backend error. Cause: no queue 'gpu'"),
        ("alder", resources(Nodes="x"), "Config value for 'Nodes' has to be of type int"),
        ("alder", resources(Nodes=None), "Config value for 'Nodes' has to be of type int"),
        ("alder", resources(Nodes=99), "99 nodes asked for"),
        ("alder", resources(Runtime="1h30m"), "1h30m"),
        ("cedar", resources(MemoryPerNode="12GiB"), "12GiB"),
        ("cedar", resources(Queue="gpu"), "Firecrest backend error. Cause: no queue 'gpu'"),
        ("cedar", environment(PreRunCommandOnLoginNode="x"), "PreRunCommandOnLoginNode not supported by firecREST"),
        ("alder", environment(Python="/a", Apptainer={"Path": "b"}), "Only one execution environment is allowed"),
        ("alder", environment(Python="venv"), "absolute path"),
        ("alder", environment(Apptainer={"Path": "b", "Type": "remote"}), "absolute Path"),
        ("alder", environment(Apptainer={"Path": "b"}), "No Apptainer image at 'b'"),
        ("alder", environment(PreRunCommandOnComputeNode=3), "has to be of type str or list"),
        ("alder", {"UnicoreApiUrl": "https://elsewhere.example/X/rest/core"}, "No UNICORE site at https://elsewhere"),
        ("cedar", {"Firecrest": {"ApiUrl": "x", "TokenUrl": "y"}}, "'Machine'"),
        ("cedar", {"Firecrest": {"ApiUrl": "x", "TokenUrl": "y", "Machine": "z"}}, "No FirecREST site at x"),
    ],
)
def test_bad_backend_config(box, site, changes, text):
    answer = box.post(box.body(site=site, backendConfig=box.config(site, **changes)))
    assert answer.status_code == 400
    assert text in answer.json()["detail"]


@pytest.mark.parametrize("config", [{}, {"Resources": {"Queue": "batch"}}])
def test_no_way_to_a_site(box, config):
    assert box.post(box.body(backendConfig=config)).json()["detail"] == CONFIGURATION + WAY


def test_ssh_is_refused(box):
    config = {"SSH": {"Hostname": "x"}, "Resources": {"Queue": "batch"}}
    assert "SSH backend error" in box.post(box.body(backendConfig=config)).json()["detail"]


MISMATCH = "Mismatch between entry point parameters and entered parameters: "


@pytest.mark.parametrize(
    ("changes", "status", "text"),
    [
        ({"branch": "no-such-branch"}, 400, "'no-such-branch' not found in the code repository"),
        ({"commit": "0" * 40}, 400, "not found in the code repository"),
        ({"branch": "--output=/tmp/x"}, 400, "not found in the code repository"),
        ({"branch": None}, 400, "branch or a commit"),
        ({"mlflowMlprojectFilePath": "sub/MLproject"}, 400, "No MLproject at 'sub/MLproject'"),
        ({"mlflowMlprojectFilePath": "../MLproject"}, 400, "relative to the code repository"),
        ({"mlflowMlprojectFilePath": "train.py"}, 400, "MLproject"),
        ({"entryPoint": "other"}, 400, "No entry point 'other'"),
        ({"mlflowParameters": {"x": 1}}, 400, MISMATCH + "['x']"),
        ({"computeBudgetAccount": None}, 400, "MANTIK_COMPUTE_BUDGET_ACCOUNT"),
        ({"experimentRepositoryId": str(uuid.UUID(int=1))}, 404, "Experiment repository"),
        ({"codeRepositoryId": str(uuid.UUID(int=1))}, 404, "Code repository"),
        ({"dataRepositoryId": str(uuid.UUID(int=1))}, 404, "Data repository"),
        ({"connectionId": str(uuid.UUID(int=1))}, 404, "Connection"),
        ({"connectionId": "None"}, 422, "connectionId"),
        ({"mlflowParameters": None}, 422, "mlflowParameters"),
    ],
)
def test_bad_request(box, changes, status, text):
    answer = box.post(box.body() | changes)
    assert answer.status_code == status
    assert text in str(answer.json()["detail"])


def test_refusals_leave_nothing_behind(box):
    jobs = len(box.control.jobs())
    box.post(box.body("other", name="refused-run"))
    box.post(box.body(name="refused-run", backendConfig=box.config(**resources(Queue="gpu"))))
    assert len(box.control.jobs()) == jobs
    assert box.mlflow_runs_named("refused-run") == []


def test_connections_must_fit(box):
    wrong_kind = box.post(box.body(connectionId=box.env["MANTIK_CONNECTION_ID_CEDAR"]))
    assert wrong_kind.status_code == 400
    assert "connection is one for FirecREST" in wrong_kind.json()["detail"]
    wrong_site = box.post(box.body(connectionId=box.env["MANTIK_CONNECTION_ID_BIRCH"]))
    assert "check if user and password are correct" in wrong_site.json()["detail"]
    foreign = box.control.accounts()[1]["connections"]["alder"]
    assert box.post(box.body(connectionId=foreign)).status_code == 403


@pytest.mark.parametrize(
    ("change", "text"), [("maintenance", "maintenance"), ("refuse_logins", "check if user and password are correct")]
)
def test_closed_site(box, change, text):
    box.control.change_site("birch", **{change: True})
    try:
        answer = box.post(box.body(site="birch"))
        assert answer.status_code == 400
        assert text in answer.json()["detail"]
        assert box.post(box.body(site="alder")).status_code == 201
    finally:
        box.control.change_site("birch", **{change: False})


def test_folder_commit_and_unicore_spelling_are_accepted(box):
    uri = box.http.get(f"/projects/{box.env['MANTIK_PROJECT_ID']}/code/{box.env['MANTIK_CODE_REPOSITORY_ID']}").json()[
        "uri"
    ]
    commit = subprocess.check_output(["git", "-C", uri.removeprefix("file://"), "rev-parse", "HEAD"], text=True).strip()
    config = box.config(UnicoreApiUrl=box.env["MANTIK_SANDBOX_ALDER_URL"].replace("127.0.0.1", "localhost") + "/")
    run_id = box.submit(mlflowMlprojectFilePath=".", commit=commit, branch="wins-not", backendConfig=config)
    job = box.ended(run_id)
    assert job["state"] == "COMPLETED"
    run = box.mlflow_run(job["mlflowRunId"])
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    assert tags["mlflow.user"] == "sandbox"
    assert tags["mlflow.source.git.commit"] == commit
