"""A FirecREST system's operations, called as one account.

Built on pyfirecrest's `AsyncFirecrest` (see `requests`). Paths, parameters and answers are those of the server's
OpenAPI document (https://eth-cscs.github.io/firecrest-v2/).
"""

from __future__ import annotations

import builtins
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from prefect_mantik.errors import ConfigurationError, NotFound, NotSupported, ServiceUnavailable
from prefect_mantik.firecrest.login import ClientSource, FirecrestLogin
from prefect_mantik.firecrest.schemas import FileEntry, Job, System
from prefect_mantik.loop import VERIFIED, SingleFlight, Tls, per_process

Window = Literal["1h", "8h", "24h", "3d", "7d"]
"""How far back a list of jobs reaches. Jobs that wait or run are always in it."""

POLL_TIMEOUT = 20.0
"""Seconds for what is asked again anyway."""

PATIENT_TIMEOUT = 180.0
"""Seconds for all else: the server's health gate may be closed for two minutes after one slow probe."""

_LATE_TIMEOUT = 12.0
"""Seconds for what the server is known to answer late: after the 5 s that it gives a command."""

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


class FirecrestClient:
    """A system as one account sees it. Use `firecrest_client`, which shares one for each account and system.

    Args:
        api_url: Base URL of the API, such as `https://<host>/<platform>/firecrest/v2`.
        token_url: Where the identity provider gives tokens.
        system: The system's name.
        source: The credentials.
        tls: How certificates are verified.
    """

    def __init__(self, api_url: str, token_url: str, system: str, source: ClientSource, *, tls: Tls = VERIFIED) -> None:
        from prefect_mantik.firecrest.requests import FirecrestApi, Requests

        self.api_url, self.system, self.username = api_url.rstrip("/"), system, source.username
        login = FirecrestLogin(token_url, source, tls)
        api = FirecrestApi("the site", self.api_url, self.username, login, tls)
        self._soon = Requests(api, login, tls, POLL_TIMEOUT)
        self._patient = Requests(api, login, tls, PATIENT_TIMEOUT)
        self._late = Requests(api, login, tls, _LATE_TIMEOUT)
        self._api = api
        self._about: System | None = None
        self._asking = SingleFlight()

    def now(self) -> datetime:
        """The server's clock."""
        return self._api.now()

    @property
    def quiet(self) -> float:
        """See `JsonApi.quiet`."""
        return self._api.quiet

    # --- The system -------------------------------------------------------------------------------------------------

    async def about(self) -> System:
        """What the server says of the system; asked once, as its mode and limits do not change.

        Raises:
            ConfigurationError: The server has no such system.
        """
        if self._about is None:
            self._about = await self._asking.run(self.log_in)
        return self._about

    async def log_in(self) -> System:
        """Get a token, and ask for the system."""
        systems = await self._asked(self._patient.systems(), self._each(System))
        for system in systems:
            if system.name.lower() == self.system.lower():
                return self._usable(system)
        names = ", ".join(item.name for item in systems) or "none"
        raise ConfigurationError(f"{self.api_url} has no system {self.system}, only: {names}. Check the site's block.")

    def _usable(self, system: System) -> System:
        if system.scheduler.type != "slurm":
            raise ConfigurationError(
                f"{system.name} at {self.api_url} has the batch system {system.scheduler.type}: runs are sent to Slurm "
                "only."
            )
        return system

    async def partitions(self) -> list[str]:
        """The names of the partitions."""
        answer = self._patient.partitions(self.system)
        return await self._asked(answer, lambda told: [str(item["name"]) for item in told])

    async def user(self) -> tuple[str, list[str]]:
        """Our user name at the system, and the accounts that may be charged, where the server tells."""

        def read(told: Any) -> tuple[str, list[str]]:
            return str(told["user"]["name"]), [str(item["name"]) for item in told.get("accounts") or ()]

        return await self._asked(self._patient.userinfo(self.system), read)

    # --- Jobs -------------------------------------------------------------------------------------------------------

    async def jobs(self, window: Window = "24h", *, name: str | None = None, patient: bool = False) -> list[Job]:
        """Our jobs: those that wait or run, and those that ended within a window.

        Jobs that were cancelled before they could start are not among them.

        Args:
            window: How far back.
            name: Only jobs of exactly this name.
            patient: Whether to ride out a closed health gate, for whom no answer is no use.

        Raises:
            Unreadable: A job of ours has a name that the server cannot read.
        """
        requests = self._patient if patient else self._soon
        return await self._asked(requests.job_info(self.system, name=name, time_window=window), self._each(Job))

    async def job(self, job: str) -> Job:
        """One job by its id, however old it is.

        Raises:
            NotFound: There is none.
            NotSupported: It is an array.
        """
        found = await self._asked(self._soon.job_info(self.system, job), self._each(Job))
        if not found:
            raise NotFound(f"{self.system} answered without a job {job}.", status=404, detail="no job in the answer")
        return _no_array(job, found)

    async def submit(self, script: str, directory: str, fields: Mapping[str, Any] | None = None) -> str:
        """Submit a job and return its id. Not repeatable: `ServiceUnavailable` with `sent` leaves open whether it is.

        pyfirecrest's `submit` cannot send name, output, constraints: the request is made here, over the same
        authenticated client.

        Args:
            script: A batch script.
            directory: Where it runs; absolute.
            fields: More fields of the job, by the names of FirecREST's API.
        """
        body = {"job": {**(fields or {}), "workingDirectory": directory, "script": script}}
        taken = self._patient.post(f"/compute/{self.system}/jobs", httpx.codes.CREATED, json=body)
        job = await self._asked(taken, lambda response: response.json()["jobId"])
        if not job:
            raise ServiceUnavailable(f"POST /compute/{self.system}/jobs: the server took the job and gave no id.")
        return str(job)

    async def cancel(self, job: str) -> None:
        """Cancel a job. That it has ended is success.

        Raises:
            NotFound: There is none. (A server that asks Slurm's REST API does not tell.)
        """
        from prefect_mantik.firecrest.requests import JobEnded

        try:
            await self._asked(self._soon.cancel_job(self.system, job), _nothing)
        except JobEnded:
            return

    async def output_path(self, job: str) -> str:
        """Where a job writes its output: an absolute path."""
        answer = self._soon.job_metadata(self.system, job)
        return await self._asked(answer, lambda told: str(told[0]["standardOutput"]))

    # --- Files ------------------------------------------------------------------------------------------------------

    async def list(self, path: str) -> list[FileEntry]:
        """What lies in a directory."""
        answer = self._patient.list_files(self.system, _plain(path), show_hidden=True)
        return await self._asked(answer, self._each(FileEntry))

    async def stat(self, path: str) -> dict[str, Any]:
        """Mode, size and times of a file or directory, as numbers."""
        return await self._asked(self._soon.stat(self.system, _plain(path), dereference=True), dict)

    async def mkdir(self, path: str) -> None:
        """Make a directory and its parents; one that is there is left as it is."""
        await self._asked(self._patient.mkdir(self.system, _plain(path), create_parents=True), _nothing)

    async def chmod(self, path: str, mode: str) -> None:
        """Set permissions such as `600`."""
        await self._asked(self._patient.chmod(self.system, _plain(path), mode), _nothing)

    async def upload(self, directory: str, name: str, content: bytes) -> None:
        """Write a file of at most `System.largest_upload` bytes over what may be there.

        pyfirecrest's `upload` takes a file on disk only, where a token must not be: the request is made here.
        """
        place, whole = _plain(directory), _plain(f"{directory}/{name}")
        path = f"/filesystem/{self.system}/ops/upload"
        sent = {"params": {"path": place}, "files": {"file": (name, content)}}
        if content:
            await self._asked(self._patient.post(path, httpx.codes.NO_CONTENT, **sent), _nothing)
            return
        # The server waits for the content of an empty file for 5 s, answers 408, and has made the file.
        try:
            await self._asked(self._late.post(path, httpx.codes.NO_CONTENT, **sent), _nothing)
        except ServiceUnavailable:
            if (await self.stat(whole)).get("size") != 0:
                raise

    async def download(self, path: str) -> bytes:
        """A file of at most `System.largest_upload` bytes, as it is. pyfirecrest's `download` writes a file."""
        answer = self._patient.get(f"/filesystem/{self.system}/ops/download", {"path": _plain(path)})
        return await self._asked(answer, lambda response: response.content)

    async def tail(self, path: str, offset: int) -> str:
        """A file from a byte on, as text: what is no UTF-8 is replaced."""
        answer = self._soon.tail(self.system, _plain(path), num_bytes=offset + 1, exclude_beginning=True)
        return await self._asked(answer, lambda told: str(told["content"]))

    async def view(self, path: str, offset: int, size: int) -> str:
        """Some characters of a file, as text: what is no UTF-8 is replaced. pyfirecrest's `view` has no offset."""
        params = {"path": _plain(path), "offset": offset, "size": size}
        answer = self._soon.get(f"/filesystem/{self.system}/ops/view", params)
        return await self._asked(answer, lambda response: str(response.json()["output"]))

    async def checksum(self, path: str) -> str:
        """SHA-256 of a file, in hexadecimal."""
        return await self._asked(self._patient.checksum(self.system, _plain(path)), lambda told: str(told["checksum"]))

    async def remove(self, path: str) -> None:
        """Remove a file, or a directory with all in it."""
        await self._asked(self._patient.rm(self.system, _plain(path)), _nothing)

    # --- Answers ----------------------------------------------------------------------------------------------------

    async def _asked(self, answer: Awaitable[Any], read: Callable[[Any], T]) -> T:
        """Await an operation of pyfirecrest's and read it: other forms of an answer raise what is not ours."""
        from firecrest.FirecrestException import FirecrestException

        try:
            return read(await answer)
        except (FirecrestException, LookupError, TypeError, AttributeError, ValueError) as error:
            kind = type(error).__name__
        # Outside of `except`: pyfirecrest's errors hold the response with its request, and would be kept as a context.
        raise ServiceUnavailable(f"{self.api_url} does not answer as FirecREST does ({kind}).")

    def _each(self, kind: type[M]) -> Callable[[Any], builtins.list[M]]:
        return lambda told: [self._read(kind, item) for item in told]

    def _read(self, kind: type[M], answer: Any) -> M:
        try:
            return kind.model_validate(answer)
        except ValidationError as error:
            fields = ", ".join(sorted({".".join(str(part) for part in item["loc"]) for item in error.errors()}))
        raise ServiceUnavailable(f"{self.api_url} does not answer as FirecREST does ({fields or 'no object'}).")


def _nothing(_: Any) -> None:
    """What is to be read of an answer that says no more than that it was done."""


def _no_array(job: str, found: Sequence[Job]) -> Job:
    """The one job that an answer is about."""
    if any(item.job_id != job for item in found):
        tasks = ", ".join(item.job_id for item in found[:4])
        raise NotSupported(f"Job {job} is an array ({tasks}): a training run is one job, submit each task as its own.")
    return found[-1]


def _plain(path: str) -> str:
    """A path as it is.

    Raises:
        ConfigurationError: It is not absolute, or holds what the server hands to a shell without escaping.
    """
    if not path.startswith("/") or ".." in path.split("/"):
        raise ConfigurationError(
            f"{path!r} is no absolute path: FirecREST takes paths from the root only, without '..'."
        )
    if any(character in path for character in "'\n\0"):
        raise ConfigurationError(f"FirecREST takes no name with a single quote or a line break, as in {path!r}.")
    return path


@per_process
def firecrest_client(
    api_url: str, token_url: str, system: str, source: ClientSource, tls: Tls = VERIFIED
) -> FirecrestClient:
    """The client of one account at one system, shared by all who use that account in this process."""
    return FirecrestClient(api_url, token_url, system, source, tls=tls)
