"""Tokens for a FirecREST server: fetched once, replaced in time, and never shown."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from urllib.parse import parse_qs

import httpx
import pytest
from pydantic import SecretStr

from prefect_mantik import FirecrestCredentials
from prefect_mantik.errors import (
    LoginRefused,
    NotFound,
    RequestFailed,
    ServiceUnavailable,
)
from prefect_mantik.firecrest import ClientCredentials, KeptClient, login
from prefect_mantik.loop import acall
from tests.scripted_firecrest import (
    JOBS,
    PAGE,
    SECRET,
    TOKEN,
    Pauses,
    Reply,
    Site,
    assert_no_secret,
    bearers,
    broken,
    refusal,
    repeats_at_once,
    reply,
    scripted,
    told_by,
)


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    return repeats_at_once(monkeypatch)


@pytest.fixture
def site() -> Iterator[Site]:
    with scripted() as made:
        yield made


INVALID = {"error": "invalid_client", "error_description": f"Invalid client or credentials ({SECRET})"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The wall clock of the login."""
    made = [1000.0]
    monkeypatch.setattr(login, "wall_clock", lambda: made[0])
    return made


async def test_one_token_serves_many_who_ask_at_once(site: Site) -> None:
    jobs = site.on("GET", JOBS, reply(json={"jobs": []}))
    client = site.client()
    await asyncio.gather(*(acall(client.jobs) for _ in range(20)))
    assert (site.tokens.call_count, jobs.call_count) == (1, 20)
    sent = site.tokens.calls.last.request
    assert parse_qs(sent.content.decode()) == {
        "grant_type": ["client_credentials"],
        "client_id": [client.username],
        "client_secret": [SECRET],
    }
    assert "Authorization" not in sent.headers


async def test_a_token_is_replaced_before_the_server_refuses_it(site: Site, clock: list[float]) -> None:
    """A server refuses what has less than 30 s left."""
    jobs = site.on("GET", JOBS, reply(json={"jobs": []}))
    client, margin = site.client(), login.MARGIN
    assert margin > 30
    for now in (1000.0, 1300.0 - margin - 0.1, 1300.0 - margin, 1300.0):
        clock[0] = now
        await acall(client.jobs)
    assert bearers(jobs) == ["1", "1", "2", "2"]


async def test_a_token_that_is_too_short_lived_to_be_kept_serves_one_call(site: Site, clock: list[float]) -> None:
    site.lifetime = login.MARGIN
    jobs = site.on("GET", JOBS, reply(json={"jobs": []}))
    client = site.client()
    for _ in range(3):
        await acall(client.jobs)
    assert bearers(jobs) == ["1", "2", "3"]


async def test_a_token_lives_from_when_it_was_asked_for(site: Site, clock: list[float]) -> None:
    """Not from when a slow provider answered."""
    given = site.tokens.side_effect

    def slow(request: httpx.Request) -> httpx.Response:
        clock[0] += 50
        return given(request)  # type: ignore[operator, misc, return-value]

    site.tokens.mock(side_effect=slow)
    site.on("GET", JOBS, reply(json={"jobs": []}))
    client = site.client()
    await acall(client.jobs)
    clock[0] = 1300.0 - login.MARGIN
    await acall(client.jobs)
    assert site.tokens.call_count == 2


async def test_a_token_that_ends_too_soon_for_the_server_is_replaced_once(site: Site) -> None:
    soon = refusal(401, "Access token expires too soon (less than 30s remaining).")
    jobs = site.on("GET", JOBS, soon, reply(json={"jobs": []}))
    client = site.client()
    assert await acall(client.jobs) == []
    assert bearers(jobs) == ["1", "2"]
    await acall(client.jobs)
    assert site.tokens.call_count == 2


async def test_many_whose_token_ended_get_one_new_one(site: Site) -> None:
    def jobs(request: httpx.Request) -> httpx.Response:
        old = request.headers["Authorization"].endswith("-1")
        return httpx.Response(401) if old else httpx.Response(200, json={"jobs": []})

    site.on("GET", JOBS, jobs)
    client = site.client()
    await asyncio.gather(*(acall(client.jobs) for _ in range(12)))
    assert site.tokens.call_count == 2


async def test_a_fresh_token_that_is_refused_too_is_a_refused_login(site: Site) -> None:
    jobs = site.on("GET", JOBS, refusal(401, "Token's public key not found."))
    with pytest.raises(LoginRefused, match=r"refused the login of 'ada-\d+' \(HTTP 401: Token's public key not found"):
        await acall(site.client().jobs)
    assert bearers(jobs) == ["1", "2"]


async def test_a_submit_that_meets_an_old_token_gives_one_job(site: Site) -> None:
    jobs = site.on("POST", JOBS, refusal(401, "Access token expired"), reply(201, json={"jobId": "7"}))
    assert await acall(site.client().submit, "#!/bin/bash\n", "/scratch") == "7"
    assert bearers(jobs) == ["1", "2"]


@pytest.mark.parametrize("status", [400, 401, 403])
async def test_a_refused_client_is_tried_once_until_its_credentials_change(site: Site, status: int) -> None:
    held = [ClientCredentials("ada", SecretStr(SECRET), "Connection mantik-connection/daint")]

    async def resolve() -> ClientCredentials:
        return held[0]

    site.on_token(reply(status, json=INVALID), reply(json={"access_token": TOKEN}))
    site.on("GET", JOBS, reply(json={"jobs": []}))
    client = site.client(KeptClient("Connection mantik-connection/daint", f"me {status}", resolve))
    raised = []
    for _ in range(3):
        with pytest.raises(
            LoginRefused, match=r"refused the client 'ada' \(Connection mantik-connection/daint\): Invalid client"
        ) as caught:
            await acall(client.jobs)
        raised.append(caught.value)
        assert_no_secret(told_by(caught.value))
    assert site.tokens.call_count == 1
    assert len(set(map(id, raised))) == 3
    assert [error.status for error in raised] == [status] * 3
    held[0] = ClientCredentials("ada", SecretStr("another"))
    assert await acall(client.jobs) == []
    assert site.tokens.call_count == 2


NO_TOKEN = "answered no token. Is this the site's token URL"
WRONG_URLS: dict[str, tuple[Reply, type[RequestFailed], str]] = {
    "404": (reply(404, json={"error": "Realm does not exist"}), NotFound, "no token endpoint at .*Check the token URL"),
    "404 of a gateway": (reply(404, text=PAGE), NotFound, "no token endpoint at .*Check the token URL"),
    "405": (reply(405, text=PAGE), RequestFailed, "HTTP 405: an HTML page"),
    "a page that says no": (reply(403, text=PAGE), RequestFailed, "an HTML page, 'Please log in'"),
    "a page": (reply(200, text=PAGE), ServiceUnavailable, NO_TOKEN),
    "no token": (reply(200, json={"token_type": "Bearer", "id_token": TOKEN}), ServiceUnavailable, NO_TOKEN),
    "an empty token": (reply(200, json={"access_token": ""}), ServiceUnavailable, NO_TOKEN),
    "a token that never ends": (
        reply(200, json={"access_token": TOKEN, "expires_in": "never"}),
        ServiceUnavailable,
        NO_TOKEN,
    ),
    "a list": (reply(200, json=[TOKEN]), ServiceUnavailable, NO_TOKEN),
    "elsewhere": (
        reply(302, headers={"Location": "https://other.example.org"}),
        ServiceUnavailable,
        "sends us elsewhere",
    ),
}


@pytest.mark.parametrize("case", WRONG_URLS)
async def test_what_gives_no_token_is_told_and_asked_again(site: Site, case: str) -> None:
    """It is no refusal of the client."""
    answer, kind, message = WRONG_URLS[case]
    site.on_token(answer)
    client = site.client()
    for _ in range(2):
        with pytest.raises(kind, match=message) as caught:
            await acall(client.jobs)
        assert not isinstance(caught.value, LoginRefused)
        assert "token endpoint" in str(caught.value)
        assert_no_secret(told_by(caught.value))
    assert site.tokens.call_count == 2


async def test_a_provider_that_is_down_for_a_moment_is_asked_again(site: Site) -> None:
    site.on_token(reply(503, text=PAGE), broken(httpx.ReadError), reply(json={"access_token": TOKEN}))
    site.on("GET", JOBS, reply(json={"jobs": []}))
    assert await acall(site.client().jobs) == []
    assert site.tokens.call_count == 3


async def test_who_has_no_key_at_the_site_is_told_so(site: Site) -> None:
    site.on("GET", JOBS, refusal(500, "Error executing Slurm command.", "No SSH credentials found for user:ada"))
    with pytest.raises(LoginRefused, match=r"no account at the site for 'ada-\d+' .*No SSH credentials"):
        await acall(site.client().jobs)


async def test_a_scope_is_named_where_the_provider_wants_one(site: Site) -> None:
    site.on("GET", JOBS, reply(json={"jobs": []}))
    credentials = FirecrestCredentials(client_id="me", client_secret=SECRET, scope="openid")
    await acall(site.client(credentials.credential()).jobs)
    assert parse_qs(site.tokens.calls.last.request.content.decode())["scope"] == ["openid"]
