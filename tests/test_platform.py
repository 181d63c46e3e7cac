"""Calls and tokens, against the sandbox's platform: renewed in time, tried again where that is safe, explained."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any
from uuid import UUID, uuid4

import cloudpickle
import httpx
import pytest
from pydantic import SecretStr

from prefect_mantik import api
from prefect_mantik.api import Call, JsonApi, urgent
from prefect_mantik.errors import LoginRefused, NotFound, RequestFailed, ServiceUnavailable
from prefect_mantik.loop import acall, http_client
from prefect_mantik.platform import PlatformClient, tokens
from prefect_mantik.platform.endpoints import ENDPOINTS, endpoints
from prefect_mantik.responses import explanation, retry_after, server_time
from prefect_mantik.sandbox.process import SandboxProcess

CREATE, REFRESH = "/mantik/tokens/create", "/mantik/tokens/refresh"
EXPERIMENT = "/projects/{projectId}/experiments/{experimentRepositoryId}"


@pytest.fixture
def sandbox(mantik_sandbox: SandboxProcess) -> Iterator[SandboxProcess]:
    mantik_sandbox.control.reset_requests()
    yield mantik_sandbox
    mantik_sandbox.control.clear_faults()
    mantik_sandbox.control.switch(token_lifetime=3600.0, refresh_lifetime=86400.0)


class Account:
    """A client of its own, with nothing remembered."""

    def __init__(self, sandbox: SandboxProcess, password: str | None = None) -> None:
        env = sandbox.env
        self.client = PlatformClient(sandbox.url, env["MANTIK_USERNAME"], SecretStr(password or env["MANTIK_PASSWORD"]))
        self._ids = UUID(env["MANTIK_PROJECT_ID"]), UUID(env["MANTIK_EXPERIMENT_REPOSITORY_ID"])

    async def ask(self, experiment: UUID | None = None) -> Any:
        """One call that needs a token and is not remembered."""
        project, known = self._ids
        values = {"projectId": project, "experimentRepositoryId": experiment or known}
        return await acall(self.client._call, "experiment", values)


@pytest.fixture
def account(sandbox: SandboxProcess) -> Account:
    return Account(sandbox)


async def test_one_login_serves_many_who_ask_at_once(sandbox: SandboxProcess, account: Account) -> None:
    await asyncio.gather(*(account.ask() for _ in range(20)))
    assert (sandbox.control.count(route=CREATE), sandbox.control.count(route=EXPERIMENT)) == (1, 20)


async def test_at_most_four_calls_are_in_flight(sandbox: SandboxProcess, account: Account) -> None:
    await account.ask()
    sandbox.control.add_fault("delay_after", route=EXPERIMENT, seconds=0.4, times=None)
    began = time.monotonic()
    await asyncio.gather(*(account.ask() for _ in range(8)))
    assert time.monotonic() - began >= 0.8


async def test_a_token_is_refreshed_before_it_ends(sandbox: SandboxProcess, account: Account) -> None:
    sandbox.control.switch(token_lifetime=3.0)
    deadline = time.monotonic() + 4
    while time.monotonic() < deadline:
        await account.ask()
        await asyncio.sleep(0.1)
    refused = [entry for entry in sandbox.control.requests() if entry["status"] == 401]
    assert refused == []
    assert sandbox.control.count(route=CREATE) == 1
    assert 2 <= sandbox.control.count(route=REFRESH) <= 8


@pytest.mark.parametrize("hours", [-1, 1])
async def test_expiry_goes_by_the_servers_clock(
    sandbox: SandboxProcess, account: Account, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """Ours is wrong by an hour: the token is neither thought dead nor kept too long."""
    monkeypatch.setattr(tokens, "wall_clock", lambda: time.time() + hours * 3600)
    sandbox.control.switch(token_lifetime=10.0)
    await account.ask()
    await account.ask()
    assert sandbox.control.count(route=REFRESH) == 0
    monkeypatch.setattr(tokens, "wall_clock", lambda: time.time() + hours * 3600 + 9)
    await account.ask()
    assert sandbox.control.count(route=REFRESH) == 1


async def test_a_token_that_ended_early_is_renewed_once(sandbox: SandboxProcess, account: Account) -> None:
    await account.ask()
    sandbox.control.expire_tokens()
    await asyncio.gather(*(account.ask() for _ in range(3)))
    assert (sandbox.control.count(route=CREATE), sandbox.control.count(route=REFRESH)) == (1, 1)


async def test_a_refresh_token_that_ended_falls_back_to_the_password(sandbox: SandboxProcess, account: Account) -> None:
    await account.ask()
    sandbox.control.revoke_refresh_tokens()
    sandbox.control.expire_tokens()
    await account.ask()
    assert (sandbox.control.count(route=CREATE), sandbox.control.count(route=REFRESH)) == (2, 1)


async def test_a_refused_password_is_tried_once_and_never_shown(sandbox: SandboxProcess) -> None:
    account = Account(sandbox, password="not-the-password")
    for _ in range(3):
        with pytest.raises(LoginRefused, match="refused the login of 'sandbox'.*not tried again") as caught:
            await account.ask()
        assert "not-the-password" not in f"{caught.value} {vars(caught.value)}"
    assert sandbox.control.count(route=CREATE) == 1


async def test_a_login_that_finds_the_platform_down_is_tried_again(sandbox: SandboxProcess, account: Account) -> None:
    sandbox.control.add_fault("status", route=CREATE, status=503, times=2)
    await account.ask()
    assert sandbox.control.count(route=CREATE) == 3


@pytest.mark.parametrize(
    "fault",
    [
        {"action": "status", "status": 500},
        {"action": "status", "status": 502, "body": "<html><title>Bad Gateway</title></html>"},
        {"action": "drop_before"},
        {"action": "drop_after"},
    ],
)
async def test_what_may_be_repeated_is_repeated(
    sandbox: SandboxProcess, account: Account, fault: dict[str, Any]
) -> None:
    await account.ask()
    sandbox.control.add_fault(route=EXPERIMENT, times=2, **fault)
    await account.ask()
    assert sandbox.control.count(route=EXPERIMENT) == 4


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_retry_after_is_obeyed(sandbox: SandboxProcess, account: Account, form: str) -> None:
    await account.ask()
    date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=3), usegmt=True)
    sandbox.control.add_fault("status", route=EXPERIMENT, status=429, retry_after="2" if form == "seconds" else date)
    began = time.monotonic()
    await account.ask()
    assert time.monotonic() - began >= (2 if form == "seconds" else 1)


async def test_more_patience_than_there_is_time_is_an_error_at_once(sandbox: SandboxProcess, account: Account) -> None:
    await account.ask()
    sandbox.control.add_fault("status", route=EXPERIMENT, status=429, retry_after=3600)
    began = time.monotonic()
    with pytest.raises(ServiceUnavailable, match="asks to slow down .HTTP 429"):
        await account.ask()
    assert time.monotonic() - began < 5


async def test_who_asks_to_slow_down_is_left_alone_by_every_call(sandbox: SandboxProcess, account: Account) -> None:
    await account.ask()
    asked = sandbox.control.count(route=EXPERIMENT)
    sandbox.control.add_fault("status", route=EXPERIMENT, status=429, retry_after="2")
    began = time.monotonic()
    one = asyncio.create_task(account.ask())
    await asyncio.sleep(0.5)
    await asyncio.gather(*(account.ask() for _ in range(3)))
    assert time.monotonic() - began >= 2
    await one
    assert sandbox.control.count(route=EXPERIMENT) - asked == 1 + 4


async def test_a_refusal_for_an_hour_is_said_without_a_request(sandbox: SandboxProcess, account: Account) -> None:
    await account.ask()
    sandbox.control.add_fault("status", route=EXPERIMENT, status=429, retry_after=3600)
    with pytest.raises(ServiceUnavailable):
        await account.ask()
    asked = sandbox.control.count(route=EXPERIMENT)
    with pytest.raises(ServiceUnavailable, match="is not asked before the time that it named. Nothing"):
        await account.ask()
    assert sandbox.control.count(route=EXPERIMENT) == asked


async def test_a_cancel_is_tried_all_the_same(sandbox: SandboxProcess, account: Account) -> None:
    await account.ask()
    sandbox.control.add_fault("status", route=EXPERIMENT, status=429, retry_after=3600)
    with pytest.raises(ServiceUnavailable):
        await account.ask()
    same_account = Account(sandbox)
    with pytest.raises(ServiceUnavailable, match="Nothing was sent"):
        await same_account.ask()
    sandbox.control.add_fault("status", route=EXPERIMENT, status=429)  # names no time: the other still holds
    await urgent(account.ask)()
    with pytest.raises(ServiceUnavailable, match="Nothing was sent"):
        await account.ask()


@pytest.mark.parametrize(
    ("body", "content_type", "shown"),
    [
        ('{"detail": "Budget is spent"}', "application/json", "HTTP 409: Budget is spent"),
        (
            '{"detail": [{"loc": ["body", "name"], "msg": "too long", "input": "S3CRET"}]}',
            "application/json",
            "name: too long",
        ),
        ("<html><head><title>Forbidden</title></head><body>S3CRET</body>", "text/html", "an HTML page, 'Forbidden'"),
        ('{"message": "no such thing"}', "application/json", "no such thing"),
        ("plain words", "text/plain", "HTTP 409: plain words"),
        ("", "text/plain", "HTTP 409: Conflict"),
        ('{"detail": "' + "long " * 1000 + '"}', "application/json", "…"),
    ],
)
async def test_an_error_shows_what_the_server_said_and_no_more(
    sandbox: SandboxProcess, account: Account, body: str, content_type: str, shown: str
) -> None:
    await account.ask()
    sandbox.control.add_fault("status", route=EXPERIMENT, status=409, body=body, content_type=content_type)
    with pytest.raises(RequestFailed) as caught:
        await account.ask()
    assert shown in str(caught.value)
    assert "S3CRET" not in str(caught.value)
    assert len(str(caught.value)) < 700
    assert (caught.value.method, caught.value.path, caught.value.status) == ("GET", EXPERIMENT, 409)


async def test_a_server_that_repeats_the_token_does_not_make_us_show_it(
    sandbox: SandboxProcess, account: Account
) -> None:
    token = await acall(account.client.tokens.token)
    sandbox.control.add_fault("status", route=EXPERIMENT, status=400, body=f'{{"detail": "bad token {token}"}}')
    with pytest.raises(RequestFailed, match="bad token [*]{3}"):
        await account.ask()


async def test_not_found_is_an_error_of_its_own(account: Account) -> None:
    with pytest.raises(NotFound, match="HTTP 404"):
        await account.ask(uuid4())


async def test_a_page_instead_of_the_api_says_so(sandbox: SandboxProcess, account: Account) -> None:
    sandbox.control.add_fault("status", route=CREATE, status=200, body="<html>", content_type="text/html")
    with pytest.raises(ServiceUnavailable, match="answered no token. Is this the platform's API URL?"):
        await account.ask()


async def test_a_redirect_is_not_followed(sandbox: SandboxProcess, account: Account) -> None:
    await account.ask()
    sandbox.control.add_fault("status", route=EXPERIMENT, status=302)
    with pytest.raises(ServiceUnavailable, match="sends us elsewhere"):
        await account.ask()


async def test_a_garbled_answer_holds_no_secret(sandbox: SandboxProcess, account: Account) -> None:
    """httpx's own errors keep the request: Prefect would write what a task raises to disk."""
    with garbled_answers(), pytest.raises(ServiceUnavailable, match="no usable answer") as caught:
        await acall(account.client.tokens._api.fetch, Call("POST", CREATE, json={"password": "S3CRET"}, timeout=1))
    error: BaseException | None = caught.value
    while error is not None:
        assert b"S3CRET" not in cloudpickle.dumps(error)
        error = error.__cause__ or error.__context__


@contextlib.contextmanager
def garbled_answers() -> Iterator[None]:
    """Answers as a broken gateway gives them: said to be compressed, and not."""

    def garble(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=httpx.ByteStream(b"not gzip"))

    broken = httpx.AsyncClient(transport=httpx.MockTransport(garble))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "http_client", lambda *_: broken)
        yield


async def test_no_log_line_of_ours_or_httpx_holds_a_connection_id(
    sandbox: SandboxProcess, account: Account, caplog: pytest.LogCaptureFixture
) -> None:
    connection = UUID(sandbox.env["MANTIK_CONNECTION_ID_ALDER"])
    with caplog.at_level(logging.DEBUG):
        assert (await acall(account.client.connection, connection)).connection_id == connection
    assert "/settings/connections/***" in caplog.text
    assert str(connection) not in caplog.text
    assert sandbox.env["MANTIK_PASSWORD"] not in caplog.text
    assert "eyJ" not in caplog.text


async def test_a_run_is_told_by_its_key_not_by_a_name_that_begins_alike(account: Account) -> None:
    listed = {"runs": [{"runId": str(uuid4()), "name": "train"}, {"runId": str(OURS), "name": "train-0-pm-x-1-abc"}]}

    async def answer(*_: Any, **__: Any) -> Any:
        return listed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(account.client, "_call", answer)
        assert await acall(account.client.find_run, OURS, "some-mlflow-id", "pm-x-1-") == OURS
        listed["runs"].pop()
        with pytest.raises(NotFound):
            await acall(account.client.find_run, OURS, "some-mlflow-id", "pm-x-1-")


OURS = uuid4()


def test_no_repr_shows_what_a_call_holds() -> None:
    call = Call("POST", "/x", values={"a": "S3CRET"}, params={"b": "S3CRET"}, json={"c": "S3CRET"}, hide=["S3CRET"])
    assert "S3CRET" not in repr(call)


async def test_nothing_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = JsonApi("the Mantik platform", "http://127.0.0.1:9", "alice")
    with pytest.raises(
        ServiceUnavailable, match="GET /x: no connection to http://127.0.0.1:9 .*Nothing was sent"
    ) as caught:
        await acall(nowhere.call, Call("GET", "/x", timeout=1))
    assert not caught.value.sent


NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "99999"}, 3600.0),
        ({"RateLimit-Reset": "1767225630", "Date": "Thu, 01 Jan 2026 00:00:00 GMT"}, 30.0),
        ({"RateLimit-Reset": "1967225630", "Date": "Thu, 01 Jan 2026 00:00:00 GMT"}, 3600.0),
        ({"Retry-After": "Thu, 01 Jan 2026 00:00:30 GMT", "Date": "Thu, 01 Jan 2026 00:00:00 GMT"}, 30.0),
        ({"Retry-After": "Thu, 01 Jan 2026 00:00:30 -0000", "Date": "Thu, 01 Jan 2026 00:00:00 GMT"}, 30.0),
        ({"Retry-After": "Wed, 31 Dec 2025 23:00:00 GMT", "Date": "Thu, 01 Jan 2026 00:00:00 GMT"}, 0.0),
    ],
)
def test_both_forms_of_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(httpx.Response(429, headers=headers)) == seconds


@pytest.mark.parametrize("date", ["Thu, 01 Jan 2026 00:00:00 GMT", "Thu, 01 Jan 2026 00:00:00 -0000"])
def test_the_servers_time_is_utc_whatever_it_says(date: str) -> None:
    assert server_time(httpx.Response(200, headers={"Date": date})) == NOW


def test_no_explanation_is_said_in_words() -> None:
    assert explanation(httpx.Response(599, content=b"")) == "no explanation"
    assert explanation(httpx.Response(500, json={})) == "Internal Server Error"


def test_endpoints_can_be_overridden_by_name_only() -> None:
    moved = endpoints({"cancel_run": "POST /projects/{projectId}/runs/{runId}/stop"})
    assert (moved["cancel_run"].method, moved["cancel_run"].path) == ("POST", "/projects/{projectId}/runs/{runId}/stop")
    assert moved["submit_run"] == ENDPOINTS["submit_run"]
    for name, value in {"nonsense": "GET /x", "cancel_run": "/x", "runs": "get /x"}.items():
        with pytest.raises(ValueError, match=f"{name}.*write one of .*submit_run.* as 'METHOD /path'"):
            endpoints({name: value})


def test_only_submitting_is_not_repeatable() -> None:
    assert [name for name, endpoint in ENDPOINTS.items() if not endpoint.repeatable] == ["submit_run"]
    assert api.TOTAL_TIMEOUT > 60


async def test_a_server_on_this_machine_is_not_asked_through_a_proxy(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain http is allowed on loopback only because nobody is in between."""
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    http_client.cache_clear()  # type: ignore[attr-defined]
    try:
        await account.ask()
    finally:
        http_client.cache_clear()  # type: ignore[attr-defined]
