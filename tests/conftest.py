"""What all tests share: nothing of the developer's own surroundings, and one Prefect server for those that ask."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_FOREIGN = ("MANTIK_", "MLFLOW_")
_PREFECT_HOME = pytest.StashKey["tempfile.TemporaryDirectory[str]"]()


def pytest_configure(config: pytest.Config) -> None:
    """Prefect reads its profiles when it is imported: before any test, so that a fixture would come too late."""
    config.stash[_PREFECT_HOME] = tempfile.TemporaryDirectory(prefix="prefect-home-")
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        del os.environ[name]
    os.environ["PREFECT_HOME"] = config.stash[_PREFECT_HOME].name


def pytest_unconfigure(config: pytest.Config) -> None:
    if home := config.stash.get(_PREFECT_HOME, None):
        home.cleanup()


@pytest.fixture(scope="session")
def empty_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def neutral_environment(monkeypatch: pytest.MonkeyPatch, empty_home: Path) -> None:
    for name in [name for name in os.environ if name.startswith(_FOREIGN)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(empty_home))
    monkeypatch.setenv("NETRC", str(empty_home / "no-netrc"))


@pytest.fixture(autouse=True)
def nobody_is_left_alone() -> Iterator[None]:
    """A test that lets a server answer 429 must not keep the next one from asking it."""
    yield
    if api := sys.modules.get("prefect_mantik.api"):
        api._refusing_until().clear()


@dataclass(frozen=True)
class PrefectServer:
    """A real Prefect server on this machine.

    Attributes:
        api_url: Of its API.
        home: PREFECT_HOME of the tests.
        database: Its SQLite file.
    """

    api_url: str
    home: Path
    database: Path

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of a child process that works with this server."""
        return {**os.environ, "PREFECT_API_URL": self.api_url, "PREFECT_LOGGING_LEVEL": "WARNING", **more}

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Ask the API as a browser does, past Prefect's client and our code."""
        import httpx

        deadline = time.monotonic() + 20
        while True:
            answer = httpx.request(method, f"{self.api_url}{path}", json=body, timeout=30, trust_env=False)
            # Prefect's own answer while its SQLite database is locked; its client tries again too.
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
                break
            time.sleep(0.3)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def document(self, reference: str, *, include_secrets: bool = False) -> dict[str, Any]:
        """A block document as the API gives it."""
        slug, _, name = reference.partition("/")
        secrets = str(include_secrets).lower()
        path = f"/block_types/slug/{slug}/block_documents/name/{name}?include_secrets={secrets}"
        found: dict[str, Any] = self.request("GET", path)
        return found

    def documents(self) -> set[str]:
        """References of all block documents of ours."""
        ours = ("mantik-", "training-", "unicore-", "firecrest-")
        found = self.request("POST", "/block_documents/filter", {"limit": 200})
        return {
            f"{item['block_type']['slug']}/{item['name']}"
            for item in found
            if item["block_type"]["slug"].startswith(ours)
        }


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[PrefectServer]:
    """One server for the whole session. It takes 20 s to start: ask for it only where a server is needed."""
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, PREFECT_SERVER_DATABASE_CONNECTION_URL
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=60):
        database = str(PREFECT_SERVER_DATABASE_CONNECTION_URL.value()).partition(":///")[2]
        yield PrefectServer(str(PREFECT_API_URL.value()), Path(PREFECT_HOME.value()), Path(database))
