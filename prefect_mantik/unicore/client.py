"""A UNICORE site's operations, called as one account.

Ids are taken from the links that a server answers, hosts never: behind a gateway or a tunnel a server may name itself
by an address that we cannot reach, and a session must not travel to a host that a reply names. All paths are those of
the UNICORE REST API (https://unicore-docs.readthedocs.io/en/latest/user-docs/rest-api/).
"""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from prefect_mantik.api import TOTAL_TIMEOUT, Call, JsonApi
from prefect_mantik.errors import ConfigurationError, LoginRefused, NotFound, RequestFailed, ServiceUnavailable
from prefect_mantik.loop import VERIFIED, Tls, per_process
from prefect_mantik.unicore.login import SESSION_UNKNOWN, Credential, UnicoreLogin
from prefect_mantik.unicore.schemas import FileProperties, JobProperties, SiteProperties

POLL_TIMEOUT = 20.0
"""Seconds for what is asked again anyway."""

UPLOAD_TIMEOUT = 3600.0

_PAGE = 200
_BYTES = {"Accept": "application/octet-stream"}
_FILE = "/storages/{storage}/files{path}"

M = TypeVar("M", bound=BaseModel)


class UnicoreClient:
    """A UNICORE site as one account sees it. Use `unicore_client`, which shares one for each account.

    Args:
        api_url: Base URL of the site's REST API, ending in `/rest/core`.
        credential: What proves who we are.
        preferences: Which of the account's uids, groups and roles to use.
        renewable: See `UnicoreLogin`.
        tls: How the site's certificate is verified.
    """

    def __init__(
        self,
        api_url: str,
        credential: Credential,
        preferences: Mapping[str, str] | None = None,
        *,
        renewable: bool = False,
        tls: Tls = VERIFIED,
    ) -> None:
        self.api_url, self.username = api_url.rstrip("/"), credential.username
        nobody = _Doorstep("the site", self.api_url, self.username, tls=tls)
        self._login = UnicoreLogin(nobody, credential, preferences or {}, renewable=renewable)
        self._api = _UnicoreApi("the site", self.api_url, self.username, self._login, tls)

    def now(self) -> datetime:
        """The site's clock."""
        return self._api.now()

    @property
    def quiet(self) -> float:
        """See `JsonApi.quiet`."""
        return self._api.quiet

    async def who(self) -> SiteProperties:
        """Log in, and ask who we are and whether the site takes jobs."""
        return await self._login.who()

    # --- Jobs ---

    async def jobs(self, *tags: str) -> list[str]:
        """Ids of the jobs that bear all of some tags of [A-Za-z0-9-] (a server takes `_` and `%` for wildcards)."""
        found: list[str] = []
        while True:
            params = {"offset": str(len(found)), "num": str(_PAGE), **({"tags": ",".join(tags)} if tags else {})}
            answer = await self._api.call(Call("GET", "/jobs", params=params, timeout=POLL_TIMEOUT))
            if not isinstance(answer, dict) or not isinstance(answer.get("jobs"), list):
                # Never taken for "there is no job".
                raise ServiceUnavailable(f"GET /jobs: {self.api_url} does not answer as UNICORE does.")
            page = [_id(url) for url in answer["jobs"]]
            fresh = [job for job in page if job not in found]
            found.extend(fresh)
            links = answer.get("_links")
            more = isinstance(links, dict) and "next" in links
            if not fresh or not (more or len(page) >= _PAGE):
                return found

    async def submit(self, description: Mapping[str, Any]) -> str:
        """Submit a job and return its id. Not repeatable: `ServiceUnavailable` with `sent` leaves open whether it is.

        That the site takes a job does not mean that it is valid: most of what is wrong is found later. `RequestFailed`
        with status 500 or 503 holds words of the site's own.
        """
        response = await self._api.fetch(Call("POST", "/jobs", json=dict(description), repeatable=False))
        location = response.headers.get("Location", "")
        if not _id(location):
            raise ServiceUnavailable(f"POST /jobs: {self.api_url} took the job and did not say where it is.")
        return _id(location)

    async def job(self, job: str, *fields: str, timeout: float = POLL_TIMEOUT) -> JobProperties:
        """Some properties of a job, or all."""
        params = {"fields": ",".join(fields)} if fields else None
        call = Call("GET", "/jobs/{job}", values={"job": job}, params=params, timeout=timeout)
        return self._read(JobProperties, call, await self._api.call(call))

    async def submitted(self, job: str) -> dict[str, Any]:
        """The description with which a job was submitted (inline data left out)."""
        answer = await self._api.call(Call("GET", "/jobs/{job}/submitted", {"job": job}, timeout=POLL_TIMEOUT))
        return answer if isinstance(answer, dict) else {}

    async def details(self, job: str) -> str:
        """What the batch system says of a job, in whatever form it does."""
        response = await self._api.fetch(Call("GET", "/jobs/{job}/details", {"job": job}, timeout=POLL_TIMEOUT))
        return response.text

    async def act(self, action: str, job: str) -> None:
        """Start or abort a job. May be repeated: what comes too late does nothing."""
        await self._api.call(Call("POST", "/jobs/{job}/actions/{action}", {"job": job, "action": action}, json={}))

    async def delete_job(self, job: str) -> None:
        """Abort a job and remove it with its directory."""
        await self._api.call(Call("DELETE", "/jobs/{job}", {"job": job}, timeout=POLL_TIMEOUT))

    async def queues(self) -> list[str]:
        """The names of the queues, as far as the site tells."""
        factories = await self._api.call(Call("GET", "/factories", timeout=POLL_TIMEOUT))
        names: list[str] = []
        for url in factories.get("factories", []) if isinstance(factories, dict) else []:
            call = Call("GET", "/factories/{factory}", {"factory": _id(url)}, timeout=POLL_TIMEOUT)
            resources = (await self._api.call(call)).get("resources", {})
            names += [name for name in resources if name != "*"]
        return names

    async def set_tags(self, job: str, tags: Sequence[str]) -> None:
        """Replace the tags of a job."""
        await self._api.call(Call("PUT", "/jobs/{job}", {"job": job}, json={"tags": list(tags)}, timeout=POLL_TIMEOUT))

    # --- Files ---

    async def stat(self, storage: str, path: str) -> FileProperties:
        """Describe a file, or a directory with its content."""
        call = Call("GET", _FILE, self._at(storage, path), timeout=POLL_TIMEOUT)
        return self._read(FileProperties, call, await self._api.call(call))

    async def read(self, storage: str, path: str, first: int, last: int) -> bytes:
        """Read bytes `first` to `last`, both included. They must exist: a server may hang behind the end of a file."""
        headers = {**_BYTES, "Range": f"bytes={first}-{last}"}
        response = await self._api.fetch(
            Call("GET", _FILE, self._at(storage, path), headers=headers, timeout=TOTAL_TIMEOUT)
        )
        # A server may leave the range out of account, and answers of ranges bear no Content-Range.
        whole = response.status_code != httpx.codes.PARTIAL_CONTENT
        return response.content[first : last + 1] if whole else response.content

    async def write(self, storage: str, path: str, data: bytes | Path) -> FileProperties:
        """Write a file and compare its size, as a request that was cut short leaves a part; describe what is there."""
        upload, content = (data, None) if isinstance(data, Path) else (None, data)
        timeout = UPLOAD_TIMEOUT if upload else POLL_TIMEOUT
        size = await asyncio.to_thread(_size, data)
        await self._api.call(
            Call(
                "PUT",
                _FILE,
                self._at(storage, path),
                content=content,
                upload=upload,
                headers={"Content-Type": "application/octet-stream"},
                timeout=timeout,
            )
        )
        there = await self.stat(storage, path)
        if there.size != size:
            raise ServiceUnavailable(
                f"PUT {path}: {size} bytes were sent to {self.api_url}, {there.size} are there. Is the disk quota full?"
            )
        return there

    async def set_permissions(self, storage: str, path: str, permissions: str) -> None:
        """Set permissions such as `rw-------`. Raises where the server hides a failure in its answer."""
        call = Call("PUT", _FILE, self._at(storage, path), json={"permissions": permissions}, timeout=POLL_TIMEOUT)
        answer = await self._api.call(call)
        told = str(answer.get("permissions", "")) if isinstance(answer, dict) else ""
        if told.upper().startswith("FAILED"):
            raise RequestFailed(f"PUT {path}: {self.api_url} did not set the permissions {permissions}: {told}")

    async def mkdir(self, storage: str, path: str) -> None:
        """Make a directory and its parents."""
        await self._api.call(Call("POST", _FILE, self._at(storage, path), json={}, timeout=POLL_TIMEOUT))

    async def remove(self, storage: str, path: str) -> None:
        """Remove a file, or a directory with all in it."""
        await self._api.call(Call("DELETE", _FILE, self._at(storage, path), timeout=POLL_TIMEOUT))

    async def rename(self, storage: str, path: str, target: str) -> None:
        """Rename within a storage."""
        body = {"from": normal(path), "to": normal(target)}
        call = Call("POST", "/storages/{storage}/actions/rename", {"storage": storage}, json=body, repeatable=False)
        await self._api.call(call)

    def _at(self, storage: str, path: str) -> dict[str, object]:
        return {"storage": storage, "path": PurePosixPath(normal(path))}

    def _read(self, kind: type[M], call: Call, answer: Any) -> M:
        try:
            return kind.model_validate(answer)
        except ValidationError as error:
            fields = ", ".join(sorted({".".join(str(part) for part in item["loc"]) for item in error.errors()}))
            raise ServiceUnavailable(
                f"{call}: {self.api_url} does not answer as UNICORE does ({fields or 'no object'}).",
                method=call.method,
                path=call.path,
            ) from None


class _Doorstep(JsonApi):
    """Where we log in: a refusal may come as 500."""

    def _judged(self, response: httpx.Response, call: Call) -> Exception:
        if response.status_code == httpx.codes.INTERNAL_SERVER_ERROR and "AuthenticationException" in response.text:
            return self._error(LoginRefused, call, response, "refused the login")
        return super()._judged(response, call)


class _UnicoreApi(JsonApi):
    """UNICORE's manners: 403 within a session we are known in is no refused login, and 500 says no to a file."""

    def _judged(self, response: httpx.Response, call: Call) -> Exception:
        submits = call.method == "POST" and call.path == "/jobs"
        if submits and response.status_code in (500, 503) and _in_its_own_words(response):
            return self._error(RequestFailed, call, response, "does not take the job")
        of_a_file = call.path.startswith("/storages/")
        if of_a_file and "NullPointerException" in response.text:  # with 500, for a job that has no directory
            return self._error(NotFound, call, response, "has no such directory")
        if of_a_file and call.method != "GET" and response.status_code == httpx.codes.INTERNAL_SERVER_ERROR:
            # A full disk, a missing right: not other a moment later, and uploads have an hour.
            return self._error(ServiceUnavailable, call, response, "could not do this")
        if response.status_code == httpx.codes.NOT_FOUND and response.content:
            # UNICORE has no words for it: this is a gateway, which says nothing of the job.
            return self._error(ServiceUnavailable, call, response, "is not where its URL says")
        if response.status_code == httpx.codes.FORBIDDEN:
            return self._error(RequestFailed, call, response, f"does not allow this to {self.username!r}")
        if response.status_code == SESSION_UNKNOWN:
            return self._error(ServiceUnavailable, call, response, "knows none of the sessions that it opens")
        return super()._judged(response, call)


def _in_its_own_words(response: httpx.Response) -> bool:
    """Whether an error is UNICORE's, and no gateway's in front of it."""
    try:
        body = response.json()
    except ValueError:
        return False
    return isinstance(body, dict) and bool(body.get("errorMessage"))


def normal(path: str) -> str:
    """A path within a storage, from its root.

    Raises:
        ConfigurationError: It leads out of the storage, or holds what no path can hold, or what UNICORE takes in none.
    """
    if "\0" in path or "\n" in path:
        raise ConfigurationError(f"{path!r} is no path: it holds a line break or a zero byte.")
    if "%" in path or "\\" in path:
        raise ConfigurationError(f"UNICORE takes no name with % or a backslash, as in {path!r}: rename it.")
    if ".." in path.split("/"):
        raise ConfigurationError(f"{path!r} leads out of the storage: paths begin at its root and hold no '..'.")
    return posixpath.normpath(f"/{path.strip('/')}")


def _size(data: bytes | Path) -> int:
    return data.stat().st_size if isinstance(data, Path) else len(data)


def _id(url: object) -> str:
    return urlsplit(str(url)).path.rstrip("/").rpartition("/")[2]


@per_process
def unicore_client(
    api_url: str,
    credential: Credential,
    preferences: tuple[tuple[str, str], ...] = (),
    renewable: bool = False,
    tls: Tls = VERIFIED,
) -> UnicoreClient:
    """The client of one account at one site, shared by all who use that account in this process."""
    return UnicoreClient(api_url, credential, dict(preferences), renewable=renewable, tls=tls)
