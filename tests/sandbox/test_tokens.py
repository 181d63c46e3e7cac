import base64
import json
import time
import uuid
from datetime import datetime

import httpx
import pytest


def test_access_token_is_a_jwt_of_the_user(box):
    answer = box.login()
    assert answer.keys() == {"AccessToken", "RefreshToken", "ExpiresAt"}
    payload = answer["AccessToken"].split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    assert claims["username"] == "sandbox"
    assert uuid.UUID(claims["sub"])
    assert claims["token_use"] == "access"
    assert claims["exp"] - claims["iat"] == 3600
    assert answer["ExpiresAt"].endswith("+00:00")
    assert datetime.fromisoformat(answer["ExpiresAt"]).timestamp() == claims["exp"]


@pytest.mark.parametrize(
    ("username", "text"), [("sandbox", "Incorrect username or password."), ("nobody", "User does not exist.")]
)
def test_wrong_login(box, username, text):
    answer = box.http.post("/mantik/tokens/create", json={"username": username, "password": "wrong"})
    assert (answer.status_code, answer.json()) == (401, {"detail": text})


def test_login_without_password_is_a_validation_error(box):
    answer = box.http.post("/mantik/tokens/create", json={"username": "sandbox"})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "password"]
    assert box.http.post("/mantik/tokens/create", content=b"{").status_code == 422
    assert box.http.post("/mantik/tokens/create").status_code == 422


def test_refresh(box):
    refresh = {"username": "sandbox", "refresh_token": box.login()["RefreshToken"]}
    answer = box.http.post("/mantik/tokens/refresh", json=refresh)
    assert answer.status_code == 201
    assert answer.json().keys() == {"AccessToken", "ExpiresAt"}
    for wrong in ({"refresh_token": "x"}, {"username": "sandbox-2"}):
        answer = box.http.post("/mantik/tokens/refresh", json=refresh | wrong)
        assert (answer.status_code, answer.json()["detail"]) == (401, "Refresh token is invalid")


def test_refresh_tokens_expire_and_can_be_revoked(box):
    box.control.switch(refresh_lifetime=0.01)
    refresh = {"username": "sandbox", "refresh_token": box.login()["RefreshToken"]}
    time.sleep(0.02)
    answer = box.http.post("/mantik/tokens/refresh", json=refresh)
    assert (answer.status_code, answer.json()["detail"]) == (401, "Refresh token has expired")
    box.control.revoke_refresh_tokens()
    answer = box.http.post("/mantik/tokens/refresh", json=refresh)
    assert answer.json()["detail"] == "Refresh token is invalid"


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (None, "'Authorization' header missing"),
        ("", "Empty token in 'Authorization' header"),
        ("Basic YTpi", "Request missing 'Authorization' header or incorrect scheme used ('Bearer' required)"),
        ("Bearer", "Token missing in 'Authorization' header"),
        ("Bearer a.b.c", "Invalid signature"),
        ("Bearer nonsense", "Invalid signature"),
    ],
)
@pytest.mark.parametrize("path", ["/projects/{}/data", "/tracking/api/2.0/mlflow/experiments/get?experiment_id=1"])
def test_bad_authorization(box, header, text, path):
    path = path.format(box.env["MANTIK_PROJECT_ID"])
    headers = {} if header is None else {"Authorization": header}
    answer = httpx.get(box.process.url + path, headers=headers, trust_env=False)
    assert (answer.status_code, answer.json()) == (401, {"detail": text})


def test_forged_token(box):
    head, _, signature = box.login()["AccessToken"].split(".")
    forged = base64.urlsafe_b64encode(b'{"username": "sandbox", "exp": 9999999999}').decode().rstrip("=")
    headers = {"Authorization": f"Bearer {head}.{forged}.{signature}"}
    answer = box.http.get(box.runs_path.replace("runs", "data"), headers=headers)
    assert (answer.status_code, answer.json()["detail"]) == (401, "Invalid signature")


def test_access_tokens_expire_by_time_and_by_command(box):
    path = box.runs_path.replace("runs", "data")
    box.control.switch(token_lifetime=0.5)
    box.login()
    assert box.http.get(path).status_code == 200
    time.sleep(1.1)
    assert box.http.get(path).json() == {"detail": "Token expired"}
    box.control.switch(token_lifetime=60)
    box.login()
    assert box.http.get(path).status_code == 200
    box.control.expire_tokens()
    for where in (path, "/tracking/api/2.0/mlflow/experiments/get?experiment_id=1"):
        answer = box.http.get(where)
        assert (answer.status_code, answer.json()) == (401, {"detail": "Token expired"})


def test_password_change(box):
    refresh = {"username": "sandbox", "refresh_token": box.login()["RefreshToken"]}
    old = box.env["MANTIK_PASSWORD"]
    try:
        box.env["MANTIK_PASSWORD"] = box.control.change_password("sandbox")
        answer = box.http.post("/mantik/tokens/create", json={"username": "sandbox", "password": old})
        assert answer.status_code == 401
        assert box.http.post("/mantik/tokens/refresh", json=refresh).status_code == 401
        box.login()
    finally:
        box.env["MANTIK_PASSWORD"] = box.control.change_password("sandbox", old)
