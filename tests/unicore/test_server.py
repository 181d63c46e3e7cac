"""The real UNICORE server itself: it starts, says what it is, and lets nobody in with a wrong password."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from prefect_mantik.errors import LoginRefused
from prefect_mantik.loop import Tls, acall
from prefect_mantik.unicore import Password, unicore_client
from prefect_mantik.unicore.login import SESSION
from tests.unicore.server import real_unicore
from tests.unicore.server.real_unicore import RealUnicore


def on_the_server(test: Callable[..., object]) -> Callable[..., object]:
    """Mark a test that needs the server running."""
    return pytest.mark.slow(pytest.mark.unicore(test))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealUnicore]:
    """A server of this module's own, with a name of its own."""
    if reason := real_unicore.missing():
        pytest.skip(f"no real UNICORE server: {reason}")
    with real_unicore.start(tmp_path_factory.mktemp("unicore"), site="LARCH") as running:
        yield running


@on_the_server
def test_it_says_what_it_is(server: RealUnicore) -> None:
    with server.client() as client:
        told = client.get(server.url).raise_for_status().json()["server"]
    assert (told["siteName"], told["version"]) == ("LARCH", "11.0.0")
    assert told["externalConnections"] == {"TSI 1": "OK"}
    assert told["jobSubmission"]["enabled"] is True


@on_the_server
@pytest.mark.parametrize(("user", "role"), [(user, role) for user, role in real_unicore.USERS.items() if role])
def test_its_users_have_their_roles(server: RealUnicore, user: str, role: str) -> None:
    with server.client(user) as client:
        answer = client.get(server.url)
    if role == "banned":
        assert answer.status_code == 403
    else:
        assert answer.json()["client"]["role"]["selected"] == role


@on_the_server
async def test_a_wrong_password_is_refused(server: RealUnicore) -> None:
    with server.client() as client:
        answer = client.get(server.url, auth=("demouser", "wrong-canary-7f"))
    assert (answer.status_code, answer.content, SESSION in answer.headers) == (403, b"", False)
    wrong = Password("demouser", SecretStr("wrong-canary-7f"))
    ours = unicore_client(server.url, wrong, (), False, Tls(str(server.ca_file)))
    with pytest.raises(LoginRefused, match="refused the login of 'demouser'") as refused:
        await acall(ours.who)
    assert "wrong-canary-7f" not in str(refused.value)


# --- Where it cannot run --------------------------------------------------------------------------------------------


def program(directory: Path, name: str, script: str) -> None:
    (directory / name).write_text(f"#!/bin/sh\n{script}\n")
    (directory / name).chmod(0o755)


@pytest.mark.parametrize(
    ("java", "reason"),
    [
        (None, "no java"),
        ("""echo 'openjdk version "11.0.2" 2019-01-15' >&2""", "java is older than 17"),
        ("""echo 'java version "1.8.0_181"' >&2""", "java is older than 17"),
        ("""echo 'openjdk version "21" 2023-09-19' >&2""", "no mvn"),
    ],
    ids=str,
)
def test_what_is_missing_is_named(
    java: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if java:
        program(tmp_path, "java", java)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(real_unicore, "BUILD", tmp_path / "nothing-was-fetched")
    assert real_unicore.missing() == reason


def test_a_maven_that_fails_is_a_reason_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "java", """echo 'openjdk version "21" 2023-09-19' >&2""")
    program(tmp_path, "mvn", "echo 'Could not transfer artifact'; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(real_unicore, "BUILD", tmp_path / "build")
    reason = real_unicore.missing()
    assert reason is not None
    assert reason.startswith("Maven Central did not give what pom.xml asks for: ")
    assert "Could not transfer" in (tmp_path / "build" / "maven.log").read_text()
