"""Blocks, built in code, for the sites of a running sandbox."""

from __future__ import annotations

import base64
import contextlib
import itertools
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

from prefect_mantik import (
    FirecrestCredentials,
    FirecrestSite,
    MantikConnection,
    MantikCredentials,
    MantikProject,
    MantikSite,
    TrainingJob,
    UnicoreCredentials,
    UnicoreSite,
)
from prefect_mantik.runs import RunKey
from prefect_mantik.sandbox.process import SandboxProcess
from prefect_mantik.sites.notes import Step, SubmitNote, Way

_number = itertools.count(1)


def credentials(sandbox: SandboxProcess, **fields: Any) -> MantikCredentials:
    """The sandbox's first user."""
    env = sandbox.env
    given = {
        "username": env["MANTIK_USERNAME"],
        "password": env["MANTIK_PASSWORD"],
        "api_url": env["MANTIK_API_URL"],
        "tracking_uri": env["MLFLOW_TRACKING_URI"],
    }
    return MantikCredentials(**{**given, **fields})


def project(sandbox: SandboxProcess, **fields: Any) -> MantikProject:
    """The sandbox's project."""
    env = sandbox.env
    given = {
        "credentials": fields.get("credentials") or credentials(sandbox),
        "project_id": env["MANTIK_PROJECT_ID"],
        "experiment_repository_id": env["MANTIK_EXPERIMENT_REPOSITORY_ID"],
        "code_repository_id": env["MANTIK_CODE_REPOSITORY_ID"],
        "compute_budget_account": env["MANTIK_COMPUTE_BUDGET_ACCOUNT"],
    }
    return MantikProject(**{**given, **fields})


def mantik_site(sandbox: SandboxProcess, name: str = "alder", **fields: Any) -> MantikSite:
    """One of the sandbox's sites, reached through the platform. It settles fast: the sandbox shows runs soon."""
    env = sandbox.env
    url = env[f"MANTIK_SANDBOX_{name.upper()}_URL"]
    resources = {"Queue": "batch", "Runtime": "5m", "Nodes": 1}
    where: dict[str, Any] = {"UnicoreApiUrl": url}
    if name == "cedar":
        where = {"Firecrest": {"ApiUrl": url, "TokenUrl": env["MANTIK_SANDBOX_CEDAR_TOKEN_URL"], "Machine": "cedar"}}
    connection = fields.pop("connection", None) or MantikConnection(
        connection_id=env[f"MANTIK_CONNECTION_ID_{name.upper()}"],
        credentials=fields.pop("credentials", None) or credentials(sandbox),
    )
    given = {
        "connection": connection,
        "backend_config": {**where, "Resources": resources},
        "settle": 1.2,
        "poll_shortest": 1.0,
    }
    return MantikSite(**{**given, **fields})


def unicore_site(url: str, username: str, password: str, **fields: Any) -> UnicoreSite:
    """A site reached by UNICORE."""
    config = {"Resources": {"Queue": "batch", "Runtime": "5m", "Nodes": 1}}
    if environment := fields.pop("environment", None):
        config["Environment"] = environment
    given = {
        "api_url": url,
        "login": UnicoreCredentials(username=username, password=password),
        "backend_config": config,
        "settle": 1.2,
        "poll_shortest": 1.0,
    }
    return UnicoreSite(**{**given, **fields})


def firecrest_site(sandbox: SandboxProcess, system: str = "cedar", **fields: Any) -> FirecrestSite:
    """The sandbox's site cedar, reached by FirecREST. `cedar-rest` reads no `#SBATCH` lines."""
    env = sandbox.env
    resources = {"Queue": "batch", "Runtime": "5m", "Nodes": 1} if system == "cedar" else {"Queue": "batch"}
    config: dict[str, Any] = {"Resources": resources}
    if environment := fields.pop("environment", None):
        config["Environment"] = environment
    given = {
        "api_url": env["MANTIK_SANDBOX_CEDAR_URL"],
        "token_url": env["MANTIK_SANDBOX_CEDAR_TOKEN_URL"],
        "system": system,
        "login": FirecrestCredentials(
            client_id=env["MANTIK_FIRECREST_CLIENT_ID"], client_secret=env["MANTIK_FIRECREST_CLIENT_SECRET"]
        ),
        "root": env["MANTIK_SANDBOX_CEDAR_ROOT"],
        "backend_config": config,
        "settle": 1.2,
        "poll_shortest": 1.0,
    }
    return FirecrestSite(**{**given, **fields})


def training_job(sandbox: SandboxProcess, name: str = "alder", **fields: Any) -> TrainingJob:
    """A job at one of the sandbox's sites."""
    if "site" not in fields:
        fields["site"] = mantik_site(sandbox, name)
    return TrainingJob(**{"project": project(sandbox), **fields})


def new_key(name: str = "") -> RunKey:
    """A key that no other test uses."""
    return RunKey(name=name or f"run {next(_number)}", scope="origin", origin=new_origin())


def new_origin() -> str:
    """A random origin."""
    return base64.b32encode(secrets.token_bytes(10)).decode().lower()


class MemoryLedger:
    """A ledger that a test can look into and fill."""

    remembers = True

    def __init__(self, key: RunKey | None = None, attempt: int = 1, *, way: Way = ()) -> None:
        self.notes: dict[str, SubmitNote] = {key.site_key: SubmitNote(attempt=attempt)} if key else {}
        self.way: Sequence[Step] = way

    @property
    def pending(self) -> dict[str, SubmitNote]:
        """What was announced and has no handle."""
        return {key: note for key, note in self.notes.items() if note.pending}

    @contextlib.asynccontextmanager
    async def turn(self, key: RunKey) -> AsyncIterator[None]:
        yield

    async def look_up(self, key: RunKey) -> tuple[SubmitNote | None, Way]:
        return self.notes.get(key.site_key), self.way

    async def open(self, key: RunKey, note: SubmitNote) -> None:
        self.notes[key.site_key] = note

    async def accepted(self, key: RunKey, note: SubmitNote) -> None:
        self.notes[key.site_key] = note

    async def close(self, key: RunKey, remote_id: str | None = None) -> None:
        if note := self.notes.get(key.site_key):
            self.notes[key.site_key] = note.model_copy(update={"pending": False, "remote_id": remote_id})

    async def take_back(self, key: RunKey, before: SubmitNote | None) -> None:
        self.notes.pop(key.site_key, None)
        if before and before.remote_id:
            self.notes[key.site_key] = before
