"""Logins and sessions at UNICORE sites: whatever proves who we are, one session, and no secret in sight."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
import pickle
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import httpx
import pytest

from prefect_mantik import MantikConnection, UnicoreCredentials, UnicoreSite
from prefect_mantik.errors import (
    ConfigurationError,
    EnvironmentInvalid,
    LoginRefused,
    RequestFailed,
)
from prefect_mantik.loop import Tls as TlsSettings, acall
from prefect_mantik.runs import Reason, RunState
from prefect_mantik.sandbox.env_file import read_env_file
from prefect_mantik.sandbox.process import SandboxControl, SandboxProcess
from prefect_mantik.sites.base import Site
from prefect_mantik.sites.unicore.site import DirectUnicoreSite
from prefect_mantik.unicore import UnicoreClient, login as login_module
from prefect_mantik.unicore.pyunicore_client import pyunicore_client
from tests.contract.conftest import UnicoreRoad
from tests.sandbox_jobs import credentials, new_key, unicore_site

BASE, JOBS = "/{site}/rest/core", "/{site}/rest/core/jobs"
TOKEN = f"{BASE}/token"


@pytest.fixture
def alder(sandbox_unicore_road: UnicoreRoad) -> Iterator[UnicoreRoad]:
    """The sandbox's site, whose switches are put back."""
    control = sandbox_unicore_road.sandbox.control
    control.expire_unicore_sessions()
    control.reset_requests()
    yield sandbox_unicore_road
    control.switch(unicore_password_login=True)
    control.change_site("alder", refuse_logins=False, entitled=True)


def oidc(road: UnicoreRoad, lifetime: float = 3600) -> str:
    """A token of the sites' identity provider: a new one each time, so that nobody shares its client."""
    return road.sandbox.control.unicore_token(road.username, lifetime)


def unicore_token(road: UnicoreRoad, **query: str) -> str:
    """A token of UNICORE's own, got past our client."""
    verify: Any = True
    if road.ca_file:
        import ssl

        verify = ssl.create_default_context(cafile=road.ca_file)
    answer = httpx.get(
        f"{road.url}/token",
        params=query,
        auth=(road.username, road.password),
        headers={"Accept": "text/plain"},
        verify=verify,
        trust_env=False,
    )
    return answer.raise_for_status().text.strip()


def opened(road: UnicoreRoad, login: Any = None, **fields: Any) -> DirectUnicoreSite:
    """The site with another login than the road's own."""
    site = road.site(login=login, **fields)
    assert isinstance(site, UnicoreSite)
    return site.open()


def with_token(road: UnicoreRoad, token: str, **fields: Any) -> DirectUnicoreSite:
    return opened(road, UnicoreCredentials(token=token), **fields)


def logins(control: SandboxControl) -> int:
    """Requests that ask who we are."""
    return control.count(route=BASE)


async def works(site: Site) -> None:
    """Ask for our jobs."""
    await acall(site.list)


async def refusal(site: Site) -> str:
    with pytest.raises(LoginRefused) as caught:
        await acall(site.list)
    return str(caught.value)


# --- What proves who we are -----------------------------------------------------------------------------------------


async def test_user_name_and_password(unicore_road: UnicoreRoad) -> None:
    await works(unicore_road.open())


async def test_a_bearer_token_of_unicores_own(unicore_road: UnicoreRoad) -> None:
    await works(with_token(unicore_road, unicore_token(unicore_road)))


async def test_a_bearer_token_of_the_identity_provider(alder: UnicoreRoad) -> None:
    await works(with_token(alder, oidc(alder)))


async def test_a_garbage_token_is_refused_and_no_job_is_submitted(unicore_road: UnicoreRoad) -> None:
    """The real server answers 200, as anonymous, with an empty list of jobs."""
    road, key = unicore_road, new_key()
    site = road.open(site=road.site(login=UnicoreCredentials(token="abc.def.ghi")))
    with pytest.raises(LoginRefused, match="refused the login of 'the token'"):
        await road.submit(key, site=site)
    assert road.jobs(key) == []


async def test_an_expired_token_says_so(unicore_road: UnicoreRoad) -> None:
    token = unicore_token(unicore_road, lifetime="-300")
    said = await refusal(with_token(unicore_road, token))
    assert "Its token ended 30" in said
    assert "s ago. Check the credentials; they are not tried again until they change." in said
    assert token not in said


async def test_a_token_file_is_read_anew_after_it_was_rotated(alder: UnicoreRoad, tmp_path: Path) -> None:
    file, control = tmp_path / "token", alder.sandbox.control
    file.write_text(f"{oidc(alder, 1)}\n")
    site = opened(alder, UnicoreCredentials(token_file=str(file)))
    await works(site)
    await asyncio.sleep(1)
    await works(site)  # the session lives on
    control.expire_unicore_sessions()
    file.write_text(oidc(alder))
    await works(site)


async def test_a_token_file_that_was_not_rotated_is_refused_until_it_is(alder: UnicoreRoad, tmp_path: Path) -> None:
    file, control = tmp_path / "token", alder.sandbox.control
    file.write_text(oidc(alder, 0))
    site = opened(alder, UnicoreCredentials(token_file=str(file)))
    for _ in range(3):
        assert f"refused the login of 'the token in {file}'" in await refusal(site)
    assert logins(control) == 1
    file.write_text(oidc(alder))
    await works(site)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read here: No such file"),
        ("", "must hold one token, on one line"),
        ("one\ntwo", "must hold one token, on one line"),
        ("schlüssel", "must hold one token"),
    ],
)
async def test_a_token_file_that_holds_no_token_is_named(
    alder: UnicoreRoad, tmp_path: Path, content: str | None, words: str
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigurationError, match=f"The token file {file} {words}"):
        await works(opened(alder, UnicoreCredentials(token_file=str(file))))
    assert alder.sandbox.control.count() == 0


async def test_the_variables_are_the_login_where_a_block_has_none(
    alder: UnicoreRoad, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MANTIK_UNICORE_USERNAME", alder.username)
    with pytest.raises(EnvironmentInvalid, match="MANTIK_UNICORE_PASSWORD not set: set both or give the site a login"):
        opened(alder)
    monkeypatch.setenv("MANTIK_UNICORE_PASSWORD", alder.password)
    await works(opened(alder))


# --- A password that is good for /token only, as at JSC -------------------------------------------------------------


def renewing(road: UnicoreRoad, login: UnicoreCredentials | None = None) -> DirectUnicoreSite:
    given = login or UnicoreCredentials(username=road.username, password=road.password, renewable=True)
    # A client of the test's own.
    client = UnicoreClient(road.url, given.credential(), renewable=given.renewable)
    return DirectUnicoreSite(cast("DirectUnicoreSite", road.open())._settings, client)


async def test_a_password_that_is_good_for_tokens_only(alder: UnicoreRoad) -> None:
    control = alder.sandbox.control
    control.switch(unicore_password_login=False)
    site = renewing(alder)
    await works(site)
    control.expire_unicore_sessions()
    await works(site)
    assert control.count(route=TOKEN) == 1


async def test_a_password_that_is_good_for_tokens_only_submits(alder: UnicoreRoad) -> None:
    alder.sandbox.control.switch(unicore_password_login=False)
    login = UnicoreCredentials(username=alder.username, password=alder.password, renewable=True)
    site = alder.open(site=alder.site(login=login))
    handle = await alder.submit(new_key(), alder.spec("show"), site=site)
    assert (await acall(site.poll, [handle]))[handle].state in (RunState.SCHEDULED, RunState.RUNNING)


async def test_a_token_is_renewed_before_it_ends_though_the_session_lives_on(
    alder: UnicoreRoad, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The credential may be good once only: a token that was let end could not be had again."""
    control = alder.sandbox.control
    now = time.time()
    monkeypatch.setattr(login_module, "wall_clock", lambda: now)
    site = renewing(alder, UnicoreCredentials(token=oidc(alder, 1), renewable=True))
    await works(site)
    await asyncio.sleep(1)  # the credential ended
    now += login_module.TOKEN_LIFETIME * 0.8
    await works(site)
    assert control.count(route=TOKEN) == 2
    control.expire_unicore_sessions()
    await works(site)
    assert control.count(route=TOKEN) == 2


async def test_a_token_that_ended_falls_back_to_the_credential(
    alder: UnicoreRoad, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = alder.sandbox.control
    now = time.time()
    monkeypatch.setattr(login_module, "wall_clock", lambda: now)
    site = renewing(alder)
    await works(site)
    now += 2 * login_module.TOKEN_LIFETIME
    control.expire_unicore_sessions()
    control.add_fault("status", route=TOKEN, status=403)
    await works(site)
    assert [entry["status"] for entry in control.requests() if entry["route"] == TOKEN] == [200, 403]


async def test_a_renewal_that_fails_is_no_harm_while_the_session_lives(
    alder: UnicoreRoad, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = alder.sandbox.control
    now = time.time()
    monkeypatch.setattr(login_module, "wall_clock", lambda: now)
    site = renewing(alder)
    await works(site)
    now += login_module.TOKEN_LIFETIME * 0.8
    control.add_fault("status", route=TOKEN, status=403, times=2)
    await works(site)
    await works(site)
    assert control.count(route=TOKEN) == 3


async def test_a_token_that_the_server_forgot_is_fetched_anew(
    alder: UnicoreRoad, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before it would end by itself: the server got another key."""
    control = alder.sandbox.control
    site = renewing(alder)
    await works(site)
    control.expire_unicore_sessions()
    control.add_fault("status", route=BASE, method="GET", status=403)
    await works(site)
    assert control.count(route=TOKEN) >= 2


async def test_a_garbage_token_to_renew_is_tried_once_and_a_good_one_works_again(
    unicore_road: UnicoreRoad, tmp_path: Path
) -> None:
    """The real server gives even the anonymous a token."""
    file = tmp_path / "token"
    file.write_text("garbage")
    login = UnicoreCredentials(token_file=str(file), renewable=True)
    site = opened(unicore_road, login)
    for _ in range(2):
        assert "refused the login" in await refusal(site)
    file.write_text(unicore_token(unicore_road, renewable="true"))
    await works(site)


async def test_a_token_that_cannot_be_renewed_says_so_at_once(unicore_road: UnicoreRoad) -> None:
    """UNICORE answers 500, which else is worth another try."""
    login = UnicoreCredentials(token=unicore_token(unicore_road), renewable=True)
    began = time.monotonic()
    with pytest.raises(RequestFailed, match="non-renewable token"):
        await works(opened(unicore_road, login))
    assert time.monotonic() - began < 10


# --- A Connection that the platform keeps ---------------------------------------------------------------------------


def connection(road: UnicoreRoad, name: str = "ALDER") -> MantikConnection:
    return MantikConnection(
        connection_id=road.sandbox.env[f"MANTIK_CONNECTION_ID_{name}"], credentials=credentials(road.sandbox)
    )


async def test_a_connection_is_the_login_and_leaves_no_trace(
    alder: UnicoreRoad, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    control = alder.sandbox.control
    block = alder.site(login=connection(alder))
    site = alder.open(site=block)
    handle = await alder.submit(new_key(), site=site)
    client = site._client  # type: ignore[attr-defined]
    secret = alder.sandbox.env["MANTIK_CONNECTION_ID_ALDER"]
    found = await acall(credentials(alder.sandbox).get_client().connection, UUID(secret))
    assert found.password is not None
    shown = [repr(block), str(block), handle.model_dump_json(), caplog.text, repr(vars(client)), repr(client._login)]
    for word in (secret, found.password.get_secret_value()):
        assert not [text for text in shown if word in text]
    assert (await acall(site.poll, [handle]))[handle].state in (RunState.SCHEDULED, RunState.RUNNING)
    fetched = control.count(route="/users/{userId}/settings/connections/{connectionId}")
    control.expire_unicore_sessions()
    await works(site)
    assert control.count(route="/users/{userId}/settings/connections/{connectionId}") == fetched + 1


async def test_a_connection_for_another_kind_of_site_is_refused_by_name(alder: UnicoreRoad) -> None:
    with pytest.raises(ConfigurationError, match="is for FirecREST, not for UNICORE") as caught:
        await works(opened(alder, connection(alder, "CEDAR")))
    assert alder.sandbox.env["MANTIK_CONNECTION_ID_CEDAR"] not in str(caught.value)
    assert logins(alder.sandbox.control) == 0


async def test_a_connection_that_is_not_there_is_not_shown(alder: UnicoreRoad) -> None:
    wrong = "3d2f0f1e-0000-4000-8000-000000000000"
    login = MantikConnection(connection_id=wrong, credentials=credentials(alder.sandbox))
    with pytest.raises(ConfigurationError, match="The Connection ID in .* is none of 'sandbox''s") as caught:
        await works(opened(alder, login))
    assert wrong not in str(caught.value)


# --- Refusals -------------------------------------------------------------------------------------------------------


async def test_a_wrong_password_is_tried_once_and_a_changed_block_works_again(alder: UnicoreRoad) -> None:
    control = alder.sandbox.control
    wrong = UnicoreCredentials(username=alder.username, password="wrong password")
    said = {await refusal(opened(alder, wrong)) for _ in range(3)}
    assert control.count() == 1
    assert len(said) == 1
    text = said.pop()
    assert text == (
        f"{alder.url} refused the login of '{alder.username}': Forbidden. "
        "Check the credentials; they are not tried again until they change."
    )
    await works(alder.open())


async def test_a_wrong_password_at_the_real_server_is_refused_in_the_same_words(unicore_road: UnicoreRoad) -> None:
    login = UnicoreCredentials(username=unicore_road.username, password="wrong password")
    said = await refusal(opened(unicore_road, login))
    assert said.startswith(f"{unicore_road.url} refused the login of '{unicore_road.username}': ")
    assert "wrong password" not in said


async def test_a_refused_login_pauses_the_wait_for_a_run_and_ends_none(alder: UnicoreRoad) -> None:
    handle = await alder.submit(new_key())
    site = opened(alder, UnicoreCredentials(username=alder.username, password="now another"))
    status = (await acall(site.poll, [handle]))[handle]
    assert (status.state, status.reason) == (RunState.UNKNOWN, Reason.PAUSED)
    assert "refused the login" in status.site_word


async def test_a_user_without_a_role_is_refused_as_such(alder: UnicoreRoad) -> None:
    """Who is known and may do nothing is answered 200, with an empty list of jobs."""
    alder.sandbox.control.change_site("alder", entitled=False)
    said = await refusal(with_token(alder, oidc(alder)))
    assert "the site does not know this user, or has no account for it" in said


async def test_a_user_who_lost_the_right_in_the_middle_submits_nothing(alder: UnicoreRoad) -> None:
    control, key = alder.sandbox.control, new_key()
    site = alder.open(site=alder.site(login=UnicoreCredentials(token=oidc(alder))))
    await works(site)
    control.change_site("alder", entitled=False)
    control.expire_unicore_sessions()
    with pytest.raises(LoginRefused, match="has no account for it"):
        await alder.submit(key, site=site)
    control.change_site("alder", entitled=True)
    assert alder.jobs(key) == []


async def test_an_empty_403_within_a_session_is_no_refused_login(alder: UnicoreRoad) -> None:
    """It says that this is not allowed, and the next thing may be."""
    control = alder.sandbox.control
    site = with_token(alder, oidc(alder))
    control.add_fault("status", route=JOBS, method="GET", status=403)
    with pytest.raises(RequestFailed, match="does not allow this to 'the token'") as caught:
        await works(site)
    assert not isinstance(caught.value, LoginRefused)
    await works(site)


async def test_preferences_choose_the_account_and_the_group(alder: UnicoreRoad) -> None:
    site = opened(alder, UnicoreCredentials(token=oidc(alder)), group="sandbox-budget", uid="sandbox-at-alder")
    who = await acall(site._client.who)
    assert who.client["xlogin"]["group"] == "sandbox-budget"
    assert who.uid == "sandbox-at-alder"
    await works(site)


@pytest.mark.parametrize("preferences", [{"group": "astronomers"}, {"uid": "root"}])
async def test_a_preference_that_is_not_to_be_had_is_named(
    unicore_road: UnicoreRoad, preferences: dict[str, str]
) -> None:
    site = opened(
        unicore_road,
        UnicoreCredentials(username=unicore_road.username, password=unicore_road.password),
        **preferences,
    )
    [(name, value)] = preferences.items()
    assert f"Or the account may not use the preferences {name}:{value}." in await refusal(site)


async def test_check_tells_of_a_refused_login(alder: UnicoreRoad) -> None:
    findings = await acall(with_token(alder, "garbage").check)
    assert [(finding.what, finding.ok) for finding in findings] == [("log in", False)]
    assert "refused the login" in findings[0].message


# --- Sessions -------------------------------------------------------------------------------------------------------


async def test_one_login_serves_many_calls(alder: UnicoreRoad) -> None:
    control = alder.sandbox.control
    site = with_token(alder, oidc(alder))
    for _ in range(10):
        await works(site)
    assert (logins(control), control.count(route=JOBS)) == (1, 10)


async def test_blocks_with_the_same_login_share_a_session(alder: UnicoreRoad) -> None:
    token = oidc(alder)
    for _ in range(3):
        await works(with_token(alder, token))
    assert logins(alder.sandbox.control) == 1


async def test_a_session_that_ended_is_opened_anew_and_the_call_is_made_once_more(alder: UnicoreRoad) -> None:
    control = alder.sandbox.control
    site = with_token(alder, oidc(alder))
    await works(site)
    control.expire_unicore_sessions()
    control.reset_requests()
    await works(site)
    asked = [(entry["route"], entry["status"], entry["count"]) for entry in control.requests()]
    assert sorted(asked) == [(BASE, 200, 1), (JOBS, 200, 1), (JOBS, 432, 1)]


async def test_a_session_that_ends_during_an_upload_leaves_the_whole_file(alder: UnicoreRoad, tmp_path: Path) -> None:
    control, size = alder.sandbox.control, 24 * 2**20
    big = tmp_path / "big"
    big.write_bytes(os.urandom(size))
    client = with_token(alder, oidc(alder))._client
    await acall(client.jobs)
    control.expire_unicore_sessions()
    assert (await acall(client.write, "HOME", "/big", big)).size == size
    assert await acall(client.read, "HOME", "/big", 0, size - 1) == big.read_bytes()
    control.expire_unicore_sessions()
    await acall(client.write, "HOME", "/big", b"short")
    assert await acall(client.read, "HOME", "/big", 0, 4) == b"short"
    await acall(client.remove, "HOME", "/big")


@pytest.mark.slow
@pytest.mark.unicore
async def test_a_session_that_ends_during_an_upload_to_a_real_server(
    unicore_server: Any, mantik_sandbox: SandboxProcess, tmp_path: Path
) -> None:
    from tests.contract.conftest import real_unicore

    road, size = real_unicore(mantik_sandbox, unicore_server), 24 * 2**20
    big = tmp_path / "big"
    big.write_bytes(os.urandom(size))
    site = with_token(road, unicore_token(road))
    client = site._client
    job = await acall(client.submit, {"haveClientStageIn": "true", "Imports": [{"To": "mantik-token", "Data": "-"}]})
    for _ in range(50):
        with contextlib.suppress(RequestFailed):
            if "/mantik-token" in (await acall(client.stat, f"{job}-uspace", "/")).content:
                break
        await asyncio.sleep(0.1)
    client._login._session.id = "no-such-session"  # type: ignore[union-attr]
    assert (await acall(client.write, f"{job}-uspace", "/big", big)).size == size
    assert await acall(client.read, f"{job}-uspace", "/big", 0, size - 1) == big.read_bytes()
    await acall(client.delete_job, job)


# --- Certificates ---------------------------------------------------------------------------------------------------


class Tls:
    """A site that is served with a certificate that it signed itself."""

    def __init__(self, sandbox: SandboxProcess) -> None:
        env = read_env_file(sandbox.env_file)
        self.url = f"{env['MANTIK_SANDBOX_TLS_URL']}/ALDER/rest/core"
        self.ca_file = env["MANTIK_SANDBOX_CA_FILE"]
        self.pem = Path(self.ca_file).read_text()
        self.username, self.password = env["MANTIK_UNICORE_USERNAME"], env["MANTIK_UNICORE_PASSWORD"]
        self.control = sandbox.control

    def open(self, **fields: Any) -> DirectUnicoreSite:
        return unicore_site(self.url, self.username, self.password, **fields).open()


@pytest.fixture(scope="module")
def tls() -> Iterator[Tls]:
    from prefect_mantik.sandbox.process import start_sandbox

    with start_sandbox(tls=True) as sandbox:
        yield Tls(sandbox)


async def test_a_certificate_that_nobody_vouches_for_is_refused_before_anything_is_sent(tls: Tls) -> None:
    tls.control.reset_requests()
    with pytest.raises(RequestFailed, match="CERTIFICATE_VERIFY_FAILED.*Nothing was sent"):
        await asyncio.wait_for(works(tls.open()), 10)
    assert tls.control.count() == 0


async def test_certificates_by_path_by_text_or_not_at_all(tls: Tls) -> None:
    await works(tls.open(ca_certificates=tls.ca_file))
    await works(tls.open(ca_certificates=tls.pem))
    await works(tls.open(verify=False))


@pytest.mark.parametrize("given", ["/no/such/file.pem", "-----BEGIN CERTIFICATE-----\nnonsense"])
async def test_certificates_that_cannot_be_read_are_named(tls: Tls, given: str) -> None:
    with pytest.raises(ConfigurationError, match="CA certificates of .* cannot be"):
        await works(tls.open(ca_certificates=given))


# --- pyunicore's own client, for what a person does by hand -----------------------------------------------------------


async def test_the_client_of_pyunicore_has_our_login(unicore_road: UnicoreRoad, tmp_path: Path) -> None:
    token = unicore_token(unicore_road)
    (tmp_path / "token").write_text(token)
    for login in (
        UnicoreCredentials(username=unicore_road.username, password=unicore_road.password),
        UnicoreCredentials(token=token),
        UnicoreCredentials(token_file=str(tmp_path / "token")),
    ):
        client = await asyncio.to_thread(
            pyunicore_client, login.credential(), unicore_road.url, TlsSettings(unicore_road.ca_file)
        )
        assert client.access_info()["role"]["selected"] == "user"


async def test_the_client_of_pyunicore_verifies_certificates(tls: Tls) -> None:
    login = UnicoreCredentials(username=tls.username, password=tls.password)
    tls.control.reset_requests()
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        await asyncio.to_thread(login.get_client, tls.url)
    assert tls.control.count() == 0


async def test_the_client_of_pyunicore_needs_a_url() -> None:
    with pytest.raises(ConfigurationError, match="The URL of the UNICORE site"):
        await asyncio.to_thread(UnicoreCredentials(token="x").get_client)


# --- Secrets --------------------------------------------------------------------------------------------------------


def _text_of(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error) + str(vars(error))


async def test_no_secret_is_shown_by_anything(alder: UnicoreRoad, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    control = alder.sandbox.control
    password, token = "very secret password", oidc(alder)
    encoded = base64.b64encode(f"{alder.username}:{password}".encode()).decode()
    login = UnicoreCredentials(token=token, renewable=True)
    site = alder.open(site=alder.site(login=login))
    handle = await alder.submit(new_key(), site=site)
    client = cast("Any", site)._client
    session, renewed = client._login._session.id, client._login._token
    assert session
    assert renewed
    shown = [repr(login), str(login), handle.model_dump_json(), repr(handle), repr(client._login._session)]
    shown += [repr(client), repr(client._login), repr(client._login._credential), repr(alder.site(login=login))]
    shown += [str(await acall(client.submitted, handle.remote_id))]
    for problem in ({"action": "drop_before"}, {"action": "status", "status": 403}):
        control.add_fault(**problem, route=f"{JOBS}/{{jobId}}", times=None)
        with pytest.raises(RequestFailed) as caught:
            await acall(client.job, handle.remote_id, timeout=0.2)
        shown.append(_text_of(caught.value))
        control.clear_faults()
    wrong = opened(alder, UnicoreCredentials(username=alder.username, password=password))
    with pytest.raises(LoginRefused) as refused:
        await works(wrong)
    shown += [_text_of(refused.value), repr(wrong._client._login._credential), repr(pickle.dumps(refused.value))]
    shown.append(caplog.text)
    for secret in (password, encoded, token, renewed, session):
        assert [text for text in shown if secret in text] == []


async def test_a_site_that_repeats_our_login_in_its_error_is_not_repeated(alder: UnicoreRoad) -> None:
    token = oidc(alder)
    body = json.dumps({"errorMessage": f"cannot read {token}", "status": 403})
    alder.sandbox.control.add_fault("status", route=BASE, status=403, body=body)
    said = await refusal(with_token(alder, token))
    assert "cannot read ***" in said
    assert token not in said
