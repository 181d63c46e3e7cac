import io
import uuid
import zipfile

import httpx
import pytest

HEX = "0123456789abcdef" * 2


@pytest.fixture
def project(box):
    return f"/projects/{box.env['MANTIK_PROJECT_ID']}"


def test_repositories(box, project):
    experiment = box.http.get(f"{project}/experiments/{box.env['MANTIK_EXPERIMENT_REPOSITORY_ID']}").json()
    assert experiment.keys() == {"experimentRepositoryId", "mlflowExperimentId", "name", "artifactLocation"}
    # The official client sends a body with a GET.
    code = box.http.request("GET", f"{project}/code/{box.env['MANTIK_CODE_REPOSITORY_ID']}", json={}).json()
    assert code.keys() == {"codeRepositoryId", "codeRepositoryName", "uri", "connectionId", "platform"}
    data = box.http.get(f"{project}/data").json()
    assert data["totalRecords"] == 1
    assert data["dataRepositories"][0]["dataRepositoryId"] == box.env["MANTIK_DATA_REPOSITORY_ID"]
    data = box.http.get(f"{project}/data/{box.env['MANTIK_DATA_REPOSITORY_ID']}").json()
    assert {"uri", "isDvcEnabled", "versions", "platform"} <= data.keys()


def test_unique_run_name(box, project):
    path = f"{project}/experiments/{box.env['MANTIK_EXPERIMENT_REPOSITORY_ID']}/unique-mlflow-run-name"
    assert box.http.get(path, params={"runName": "nobody-has-this"}).json() == "nobody-has-this-1"
    assert box.http.get(path).status_code == 422


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/projects/{other}/data", "Project"),
        ("/projects/{project}/experiments/{other}", "Experiment repository"),
        ("/projects/{project}/code/{other}", "Code repository"),
        ("/projects/{project}/data/{other}", "Data repository"),
        ("/projects/{project}/models/trained/{other}", "Trained model"),
        ("/projects/{project}/runs/{other}/artifacts", "Run"),
        ("/users/{user}/settings/connections/{other}", "Connection"),
    ],
)
def test_unknown_ids(box, path, kind):
    user = box.control.accounts()[0]["userId"]
    other = uuid.uuid4()
    answer = box.http.get(path.format(other=other, project=box.env["MANTIK_PROJECT_ID"], user=user))
    assert (answer.status_code, answer.json()) == (404, {"detail": f"{kind} {other} not found"})


def test_connections_open_for_their_owner_only(box):
    mine, theirs = box.control.accounts()
    path = "/users/{}/settings/connections/{}"
    answer = box.http.get(path.format(mine["userId"], mine["connections"]["cedar"]))
    assert answer.status_code == 200
    assert answer.json()["connectionProvider"] == "FirecREST"
    assert answer.json()["loginName"]
    assert answer.json()["password"]
    for user in (mine, theirs):
        assert box.http.get(path.format(user["userId"], theirs["connections"]["cedar"])).status_code == 403
    assert box.http.get(path.format("no-uuid", "none")).status_code == 422


def test_local_run(box):
    body = box.body(backendConfig={}, mlflowRunId=HEX)
    answer = box.http.post(f"{box.runs_path}?submit=False", json=body)
    assert answer.status_code == 201
    run = f"{box.runs_path}/{answer.json()['runId']}"
    assert box.http.put(f"{run}/status", json="RUNNING").status_code == 200
    assert box.http.put(f"{run}/status", json="DANCING").status_code == 422
    assert box.http.put(f"{run}/logs", json="all of it").status_code == 200
    assert box.http.put(f"{run}/infrastructure", json={"os": "Linux"}).status_code == 200
    source = {"location": "x.ipynb", "version": None, "provider": "Jupyter"}
    assert box.http.put(f"{run}/notebook-source", json=source).status_code == 204
    box.control.switch(all_endpoints=True)
    assert box.http.get(f"{run}/status").json() == "RUNNING"
    assert box.http.get(f"{run}/logs").json() == "all of it"
    assert box.http.get(run).json()["mlflowRunId"] == HEX


def test_models(box, project):
    models = f"{project}/models/trained"
    body = {"uri": "s3://x", "location": "y", "connectionId": None, "mlflowParameters": {}, "runId": None, "name": "m"}
    assert box.http.post(models, json=body | {"uri": None}).status_code == 400
    answer = box.http.post(models, json=body)
    assert answer.status_code == 201
    model = f"{models}/{answer.json()['modelId']}"
    keys = {"modelId", "uri", "location", "connectionId", "mlflowParameters", "status", "runId", "name"}
    assert box.http.get(model).json().keys() == keys
    assert box.http.get(models).json()["totalRecords"] == 1
    assert box.http.put(model, json=body | {"name": "n"}).status_code == 200
    assert box.http.get(model).json()["name"] == "n"
    assert box.http.get(f"{model}/docker").status_code == 404
    assert box.http.post(f"{model}/docker/build", json={}).is_success
    assert box.http.get(model).json()["status"] == "PENDING"
    assert box.http.request("DELETE", model, json={}).status_code == 204
    assert box.http.get(model).status_code == 404


UNPROVEN = [
    ("GET", ""),
    ("GET", "/{run}"),
    ("GET", "/{run}/status"),
    ("GET", "/{run}/logs"),
    ("DELETE", "/{run}"),
    ("PUT", "/{run}/cancel"),
]


def test_unproven_endpoints(box, project):
    answer = box.http.post(f"{box.runs_path}?submit=False", json=box.body(backendConfig={}, mlflowRunId=HEX))
    run = answer.json()["runId"]
    for switched_on in (False, True):
        box.control.switch(all_endpoints=switched_on)
        for method, path in sorted(UNPROVEN, key=lambda row: row[0] == "DELETE"):
            if method == "PUT" and switched_on:
                continue  # a local run has no MLflow run here that could be ended
            answer = box.http.request(method, box.runs_path + path.format(run=run))
            if switched_on:
                assert answer.is_success, (method, path, answer.text)
            else:
                assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})
        for path in ("/projects", f"{project}/experiments"):
            assert box.http.get(path).status_code == (200 if switched_on else 404)
    assert box.http.get("/no/such/route").json() == {"detail": "Not Found"}


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example"])
@pytest.mark.parametrize("path", ["/projects", "/_sandbox/jobs", "/tracking/", "/login"])
def test_foreign_host_is_refused(box, host, path):
    answer = box.http.get(path, headers={"Host": host})
    assert answer.status_code == 421


def test_own_host_names(box):
    port = box.process.url.rpartition(":")[2]
    for host in (f"localhost:{port}", f"[::1]:{port}"):
        assert box.http.get(box.runs_path.replace("runs", "data"), headers={"Host": host}).status_code == 200


def test_control_needs_its_token(box):
    assert box.http.get("/_sandbox/jobs").status_code == 403
    assert box.http.post("/_sandbox/faults", json={}, headers={"X-Sandbox-Token": "x"}).status_code == 403


def test_control_refuses_nonsense(box):
    for method, path, body in [
        ("POST", "/faults", {"action": "sing"}),
        ("POST", "/faults", {"action": "status", "unknown": 1}),
        ("PATCH", "/switches", {"run_name": "other"}),
        ("PATCH", "/switches", {"port": 1}),
        ("PATCH", "/sites/alder", {"x": True}),
    ]:
        with pytest.raises(httpx.HTTPStatusError, match="422"):
            box.control.call(method, path, body)


def test_browser_login(box):
    browser = httpx.Client(base_url=box.process.url, trust_env=False)
    assert browser.get("/tracking/").status_code == 401
    link = box.control.login_url()
    answer = browser.get(link)
    assert answer.status_code == 200
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert "samesite=strict" in answer.headers["set-cookie"].lower()
    page = browser.get("/tracking/")
    assert page.status_code == 200
    assert "<html" in page.text
    search = "/tracking/ajax-api/2.0/mlflow/runs/search"
    assert browser.post(search, json={"experiment_ids": ["1"]}).status_code == 200
    foreign = {"Origin": "http://127.0.0.1:1"}
    assert browser.post(search, json={"experiment_ids": ["1"]}, headers=foreign).status_code == 401
    assert browser.get("/tracking/api/2.0/mlflow/experiments/get?experiment_id=1").status_code == 401
    assert browser.get("/projects/x/data").status_code == 401
    assert browser.get(link).status_code == 403


def test_big_artifact_streams_both_ways(box):
    content = bytes(range(256)) * (20 * 4096)
    path = "/tracking/api/2.0/mlflow-artifacts/artifacts/1/big/artifacts/blob.bin"

    def pieces():
        yield from (content[start : start + 65536] for start in range(0, len(content), 65536))

    assert box.http.put(path, content=pieces()).status_code == 200
    assert box.http.get(path).content == content
    counted = "/tracking/api/2.0/mlflow-artifacts/artifacts/{path}"
    assert box.control.count(route=counted) == 2


def test_artifact_download(box):
    run_id = box.submit()
    job = box.ended(run_id)
    path = f"/tracking/api/2.0/mlflow-artifacts/artifacts/1/{job['mlflowRunId']}/artifacts/a/b.txt"
    assert box.http.put(path, content=b"hello").status_code == 200
    url = box.http.get(f"{box.runs_path}/{run_id}/artifacts").json()["url"]
    archive = httpx.get(url, trust_env=False)
    assert zipfile.ZipFile(io.BytesIO(archive.content)).read("a/b.txt") == b"hello"
