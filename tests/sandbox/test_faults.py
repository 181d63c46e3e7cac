import time

import httpx
import pytest

RUNS = "/projects/{projectId}/runs"


@pytest.fixture
def body(box):
    key = f"key-{time.monotonic_ns()}"
    config = box.config(Environment={"Variables": {"MANTIK_RUN_KEY": key}})
    return box.body("sleep", name=key, backendConfig=config, mlflowParameters={"seconds": 0})


def key_of(body):
    return body["name"]


def test_answer_lost_but_accepted(box, body):
    box.control.add_fault("drop_after", method="POST", route=RUNS)
    with pytest.raises(httpx.TransportError):
        box.post(body)
    assert len(box.control.jobs(run_key=key_of(body))) == 1
    assert box.post(body).status_code == 201, "once is enough"
    assert len(box.control.jobs(run_key=key_of(body))) == 2
    outcomes = [entry["status"] for entry in box.control.requests() if entry["route"] == RUNS]
    assert sorted(outcomes) == [0, 201]


def test_dropped_before_the_work(box, body):
    box.control.add_fault("drop_before", method="POST", route=RUNS)
    with pytest.raises(httpx.TransportError):
        box.post(body)
    time.sleep(0.2)
    assert box.control.jobs(run_key=key_of(body)) == []


def test_slow_but_accepted(box, body):
    box.control.add_fault("delay_after", route=RUNS, seconds=5)
    with pytest.raises(httpx.ReadTimeout):
        box.http.post(box.runs_path, json=body, timeout=1)
    assert len(box.control.jobs(run_key=key_of(body))) == 1


def test_slow_before_the_work(box):
    box.control.add_fault("delay_before", route="/projects/*/data", seconds=0.5)
    begun = time.monotonic()
    assert box.http.get(box.runs_path.replace("runs", "data")).status_code == 200
    assert time.monotonic() - begun >= 0.5


def test_status_without_the_work(box, body):
    box.control.add_fault("status", route=RUNS, status=429, retry_after=7, times=2)
    box.control.add_fault("status", route=RUNS, status=502, body="<html>bad</html>", content_type="text/html")
    answers = [box.post(body) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [429, 429, 502, 201]
    assert answers[0].headers["retry-after"] == "7"
    assert answers[2].text == "<html>bad</html>"
    assert len(box.control.jobs(run_key=key_of(body))) == 1


@pytest.mark.parametrize("status", [None, 504])
def test_work_that_surfaces_late(box, body, status):
    box.control.add_fault("late", route=RUNS, seconds=1, status=status)
    if status is None:
        with pytest.raises(httpx.TransportError):
            box.post(body)
    else:
        assert box.post(body).status_code == status
    assert box.control.jobs(run_key=key_of(body)) == []
    time.sleep(1.5)
    assert len(box.control.jobs(run_key=key_of(body))) == 1


def test_faults_in_tracking(box):
    search = "/tracking/api/2.0/mlflow/runs/search"
    box.control.add_fault("status", route=search, status=503, skip=1)
    codes = [box.http.post(search, json={"experiment_ids": ["1"]}).status_code for _ in range(3)]
    assert codes == [200, 503, 200]


def test_faults_by_account(box):
    box.control.add_fault("status", route="*", account="sandbox-2", status=500, times=None)
    second = box.control.accounts()[1]
    login = {"username": second["username"], "password": second["password"]}
    token = box.http.post("/mantik/tokens/create", json=login).json()["AccessToken"]
    path = box.runs_path.replace("runs", "data")
    assert box.http.get(path).status_code == 200
    assert box.http.get(path, headers={"Authorization": f"Bearer {token}"}).status_code == 500


def test_counts(box):
    box.control.reset_requests()
    for _ in range(3):
        box.http.get(box.runs_path.replace("runs", "data"))
    box.http.get(box.runs_path.replace("runs", "data"), headers={"Authorization": "Bearer x"})
    box.http.get("/no/such/route")
    data = "/projects/{projectId}/data"
    assert box.control.count(route=data, method="GET", account="sandbox") == 3
    assert box.control.count(route=data, account="anonymous") == 1
    assert box.control.count(route="unknown") == 1
    assert box.control.count() == 5
