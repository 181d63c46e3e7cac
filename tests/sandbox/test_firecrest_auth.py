import base64
from pathlib import Path
from typing import Any

import httpx
import pytest
from firecrest import ClientCredentialsAuth
from firecrest.FirecrestException import ClientsCredentialsException
from firecrest.v2 import Firecrest

from .box import Box, log_of
from .rest import Cedar

GRANT = {"grant_type": "client_credentials"}


def post(cedar: Cedar, data: dict[str, str], **options: Any) -> httpx.Response:
    return httpx.post(cedar.token_url, data=data, trust_env=False, **options)


@pytest.mark.parametrize("method", ["client_secret_post", "client_secret_basic"])
def test_both_ways_to_send_the_secret(cedar: Cedar, method: str) -> None:
    auth = ClientCredentialsAuth(cedar.login, cedar.secret, cedar.token_url, client_auth_method=method)
    assert [system["name"] for system in Firecrest(cedar.url, auth).systems()] == ["cedar", "cedar-rest"]
    wrong = ClientCredentialsAuth(cedar.login, "wrong", cedar.token_url, client_auth_method=method)
    with pytest.raises(ClientsCredentialsException):
        Firecrest(cedar.url, wrong).systems()


def bash(*lines: str) -> str:
    return "\n".join(["#!/bin/bash", *lines, ""])


def test_a_token(cedar: Cedar) -> None:
    cedar.control.switch(firecrest_token_lifetime=77)
    answer = post(cedar, GRANT | {"client_id": cedar.login, "client_secret": cedar.secret})
    assert answer.status_code == 200
    found = answer.json()
    assert (found["expires_in"], found["token_type"]) == (77, "Bearer")
    assert found["access_token"].count(".") == 2


def test_refusals_of_the_token_endpoint(cedar: Cedar) -> None:
    client = {"client_id": cedar.login, "client_secret": "wrong"}
    answer = post(cedar, GRANT | client)
    assert (answer.status_code, answer.json()["error"]) == (401, "unauthorized_client")
    assert post(cedar, GRANT | {"client_id": "nobody", "client_secret": "x"}).json()["error"] == "invalid_client"
    assert (post(cedar, client).status_code, post(cedar, client).json()["error"]) == (400, "invalid_request")
    answer = post(cedar, {"grant_type": "password"} | client)
    assert (answer.status_code, answer.json()["error"]) == (400, "unsupported_grant_type")
    cedar.control.change_site("cedar", refuse_logins=True)
    assert post(cedar, GRANT | {"client_id": cedar.login, "client_secret": cedar.secret}).status_code == 401


def test_requests_of_the_token_endpoint_are_counted_by_client(cedar: Cedar) -> None:
    cedar.control.reset_requests()
    post(cedar, GRANT | {"client_id": cedar.login, "client_secret": cedar.secret})
    post(cedar, GRANT, auth=(cedar.login, cedar.secret))
    assert cedar.control.count(route="/firecrest-auth/token", account=cedar.login) == 2
    cedar.control.add_fault("status", route="/firecrest-auth/token", status=503)
    assert post(cedar, GRANT).status_code == 503


def refused(cedar: Cedar, token: str) -> tuple[str, httpx.Headers]:
    answer = cedar.client(token).get("/status/systems", headers={"X-Request-ID": "r-1", "X-Correlation-ID": "c-1"})
    assert answer.status_code == 401
    assert answer.json() | {"message": ""} == {
        "errorType": "error",
        "message": "",
        "causedBy": None,
        "data": None,
        "user": None,
    }
    assert (answer.headers["x-request-id"], answer.headers["x-correlation-id"]) == ("r-1", "c-1")
    assert "f7t-authusername" not in answer.headers
    return answer.json()["message"], answer.headers


def test_tokens_that_are_refused(cedar: Cedar) -> None:
    message, headers = refused(cedar, "")
    assert (message, headers["www-authenticate"]) == ("Not authenticated", "Bearer")
    assert "auth-token" not in headers
    message, headers = refused(cedar, "garbage")
    assert (message, headers["auth-token"]) == ("Access token is invalid.", "garbage")
    good = cedar.control.firecrest_token(cedar.login)
    header, claims, signature = good.split(".")
    assert refused(cedar, f"{header}.{claims}.{signature[::-1]}")[0] == "Access token is invalid."
    other = base64.urlsafe_b64encode(b'{"alg":"RS256","kid":"another"}').rstrip(b"=").decode()
    assert refused(cedar, f"{other}.{claims}.{signature}")[0] == "Token's public key not found."
    assert refused(cedar, cedar.control.firecrest_token(cedar.login, -1))[0] == "Access token expired"
    soon = cedar.control.firecrest_token(cedar.login, 29)
    message, headers = refused(cedar, soon)
    assert message == "Access token expires too soon (less than 30s remaining)."
    assert headers["auth-token"] == soon
    assert cedar.client(cedar.control.firecrest_token(cedar.login, 31)).get("/status/systems").status_code == 200


def test_tokens_can_be_made_to_expire(cedar: Cedar) -> None:
    cedar.control.expire_firecrest_tokens()
    assert cedar.http.get("/status/systems").json()["message"] == "Access token expired"


def test_a_client_without_an_ssh_key(cedar: Cedar) -> None:
    cedar.control.change_site("cedar", entitled=False)
    text = f"No SSH credentials found for user:{cedar.login}"
    answer = cedar.http.get("/compute/cedar/jobs")
    assert (answer.status_code, answer.json()["message"]) == (500, "Error executing Slurm command.")
    assert answer.json()["causedBy"] == [text]
    answer = cedar.http.get("/filesystem/cedar/ops/ls", params={"path": cedar.home})
    assert (answer.status_code, answer.json()["message"]) == (500, f"('{text}',)")
    assert answer.json()["causedBy"] is None
    assert answer.headers["f7t-authusername"] == answer.json()["user"] == cedar.login
    assert cedar.http.get("/status/systems").status_code == 200


def test_headers(cedar: Cedar) -> None:
    answer = cedar.http.get("/status/systems", headers={"X-Request-ID": "r-2", "X-Correlation-ID": "c-2"})
    assert answer.headers["f7t-appversion"] == "2.x.x"
    assert float(answer.headers["f7t-timestamp"]) > 0
    assert (answer.headers["x-request-id"], answer.headers["x-correlation-id"]) == ("r-2", "c-2")
    assert "f7t-authusername" not in answer.headers


def test_systems(cedar: Cedar) -> None:
    first, second = cedar.firecrest.systems()
    assert [each["scheduler"]["connectionMode"] for each in (first, second)] == ["ssh", "hybrid"]
    assert cedar.home.startswith(first["fileSystems"][0]["path"])
    assert [(each["dataType"], each["defaultWorkDir"]) for each in first["fileSystems"]] == [
        ("users", True),
        ("scratch", False),
    ]
    assert first["dataOperation"]["max_ops_file_size"] == 5242880
    assert first["dataOperation"]["data_transfer"]["serviceType"] == "s3"
    assert all(each["healthy"] for each in first["servicesHealth"])
    cedar.control.switch(firecrest_rest_mode="rest")
    assert cedar.firecrest.systems()[1]["scheduler"]["connectionMode"] == "rest"


def test_what_a_system_is_made_of(cedar: Cedar) -> None:
    assert [node["name"] for node in cedar.firecrest.nodes("cedar")] == ["cedar001", "cedar002"]
    assert cedar.firecrest.partitions("cedar")[1] == {"name": "devel", "cpus": 8, "totalNodes": 2, "partition": "UP"}
    assert cedar.firecrest.partitions("cedar-rest")[0]["partition"] == ["UP"]
    assert cedar.firecrest.nodes("cedar-rest")[0]["features"] == ["sandbox"]
    assert cedar.firecrest.reservations("cedar") == []
    found = cedar.firecrest.userinfo("cedar")
    assert found["user"] == found["group"] == {"id": "2001", "name": cedar.login}
    assert found["accounts"] == [{"name": "sandbox-budget", "default": True}, {"name": "users", "default": False}]


def test_liveness_needs_no_token_but_a_slash(cedar: Cedar) -> None:
    assert cedar.client("").get("/status/liveness/").status_code == 200
    assert cedar.http.get("/status/liveness").status_code == 404


def test_the_case_of_a_path_does_not_matter(cedar: Cedar) -> None:
    assert cedar.http.get("/STATUS/Cedar/Nodes").status_code == 200
    assert cedar.http.get("/compute/CEDAR-REST/jobs").status_code == 200


def test_what_is_not_there(cedar: Cedar) -> None:
    answer = cedar.http.get("/compute/nosuch/jobs")
    assert (answer.status_code, answer.json()["message"]) == (404, "System not found")
    assert (cedar.http.get("/nothing").status_code, cedar.http.put("/compute/cedar/jobs").status_code) == (404, 405)
    assert cedar.http.get("/nothing").json()["errorType"] == "error"


def test_other_peoples_jobs(cedar: Cedar) -> None:
    job = cedar.submit(bash("sleep 60"))
    other = cedar.other()
    assert other.get(f"{cedar.jobs()}/{job}").json()["jobs"][0]["user"] == cedar.login
    assert other.get(f"{cedar.jobs()}/{job}/metadata").json()["jobs"][0]["script"] == ""
    answer = other.delete(f"{cedar.jobs()}/{job}")
    assert answer.json()["message"].endswith(f"job id {job}: Access/permission denied\n")
    assert "exit_status:210" in answer.json()["message"]
    assert other.get(cedar.jobs()).json()["jobs"] == []
    everybody = other.get(cedar.jobs(), params={"allusers": "true"}).json()["jobs"]
    assert job in [each["jobId"] for each in everybody]


def test_jobs_of_the_platform(box: Box, cedar: Cedar) -> None:
    run = box.submit("show", site="cedar")
    made = box.ended(run)
    name = f"mantik-{made['mlflowRunId']}"
    (found,) = cedar.http.get(cedar.jobs(), params={"name": name}).json()["jobs"]
    assert (found["name"], found["user"], found["status"]["state"]) == (name, cedar.login, "COMPLETED")
    metadata = cedar.firecrest.job_metadata("cedar", found["jobId"])[0]
    assert Path(metadata["standardOutput"]).read_text() == log_of(made)


def test_a_job_of_the_platform_is_cancelled_by_its_owner(box: Box, cedar: Cedar) -> None:
    box.control.change_site("cedar", queue_reason="Resources")
    run = box.submit("show", site="cedar")
    (job,) = cedar.listed(name=f"mantik-{box.job(run)['mlflowRunId']}")
    assert cedar.other().delete(f"{cedar.jobs()}/{job}").status_code == 500
    cedar.firecrest.cancel_job("cedar", job)
    assert cedar.get(job)["status"]["state"] == "CANCELLED by 2001"
    assert box.ended(run)["state"] == "CANCELLED"
