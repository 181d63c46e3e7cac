"""A FirecREST server that answers what a test says, without a network. The sandbox has one that behaves."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import httpx
import pytest
import respx
from pydantic import SecretStr
from tenacity import AsyncRetrying, stop_after_attempt, stop_any

from prefect_mantik import api
from prefect_mantik.firecrest import ClientCredentials, ClientSource, FirecrestClient

API = "https://api.example.org/hpc/firecrest/v2"
TOKEN_URL = "https://auth.example.org/auth/realms/firecrest-clients/protocol/openid-connect/token"
JOBS, JOB, OPS = "/compute/daint/jobs", "/compute/daint/jobs/7", "/filesystem/daint/ops"
SECRET, TOKEN = "canary-S3cret-5f1", "canary-t0ken-9a2"
PAGE = "<html><head><title>Please log in</title></head></html>"
_number = count(1)

Reply = Callable[[httpx.Request], httpx.Response]


def reply(status: int = 200, **content: Any) -> Reply:
    """An answer."""
    return lambda _: httpx.Response(status, **content)


def broken(kind: type[httpx.TransportError]) -> Reply:
    """No answer."""

    def fail(request: httpx.Request) -> httpx.Response:
        raise kind("gone", request=request)

    return fail


def refusal(status: int, message: str, *causes: str) -> Reply:
    """An error in FirecREST's own form."""
    body = {"errorType": "error", "message": message, "causedBy": list(causes) or None, "data": None, "user": "ada"}
    return reply(status, json=body)


def a_job(job: str = "7", **changed: Any) -> dict[str, Any]:
    status = {"state": "RUNNING", "stateReason": "None", "exitCode": 0, "interruptSignal": 0}
    return {"jobId": job, "name": "x", "status": status, "time": {}, "workingDirectory": "/scratch/ada", **changed}


def a_system(name: str = "daint", **scheduler: Any) -> dict[str, Any]:
    return {"name": name, "scheduler": {"type": "slurm", "connectionMode": "ssh", **scheduler}, "servicesHealth": None}


class Pauses(list[float]):
    """Seconds before a repeat: noted, not waited; the clock goes on by them."""

    async def sleep(self, seconds: float) -> None:
        self.append(seconds)

    def monotonic(self) -> float:
        return time.monotonic() + sum(self)


def repeats_at_once(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    """Let repeats come at once, and at most five times."""
    made = Pauses()

    def repeats(**given: Any) -> AsyncRetrying:
        return AsyncRetrying(**{**given, "sleep": made.sleep, "stop": stop_any(given["stop"], stop_after_attempt(5))})

    monkeypatch.setattr(api, "AsyncRetrying", repeats)
    monkeypatch.setattr(api, "monotonic", made.monotonic)
    return made


class Site:
    """A FirecREST server and its identity provider, which answer what a test says."""

    def __init__(self, router: respx.MockRouter) -> None:
        self.router = router
        self.lifetime, self._given = 300.0, 0
        self.tokens = router.post(TOKEN_URL).mock(side_effect=self._token)

    def on(self, method: str, path: str, *replies: Reply) -> respx.Route:
        """Answer requests, one after the other; the last answer stays."""
        left = list(replies)

        def answer(request: httpx.Request) -> httpx.Response:
            return (left.pop(0) if len(left) > 1 else left[0])(request)

        return self.router.route(method=method, url__regex=rf"^{API}{path}(\?|$)").mock(side_effect=answer)

    def on_token(self, *replies: Reply) -> respx.Route:
        """Answer who wants a token."""
        left = list(replies)
        self.tokens.mock(side_effect=lambda request: (left.pop(0) if len(left) > 1 else left[0])(request))
        return self.tokens

    def client(self, source: ClientSource | None = None, system: str = "daint") -> FirecrestClient:
        """A client of its own, with nothing remembered."""
        known = source or new_client()
        return FirecrestClient(API, TOKEN_URL, system, known)

    def _token(self, _: httpx.Request) -> httpx.Response:
        self._given += 1
        return httpx.Response(200, json={"access_token": f"{TOKEN}-{self._given}", "expires_in": self.lifetime})


def new_client() -> ClientCredentials:
    """Credentials that no other test uses."""
    return ClientCredentials(f"ada-{next(_number)}", SecretStr(SECRET))


@contextlib.contextmanager
def scripted() -> Iterator[Site]:
    """A site for one test: what it does not answer is an error."""
    with respx.mock(assert_all_called=False) as router:
        yield Site(router)


def bearers(route: respx.Route) -> list[str]:
    """The tokens that requests bore, by their numbers."""
    return [call.request.headers["Authorization"].removeprefix(f"Bearer {TOKEN}-") for call in route.calls]


def told_by(error: BaseException, *, with_locals: bool = True) -> str:
    """All that an error and those that led to it say: also pickled, and with the variables of the frames it passed."""
    found, one = "", error
    while one is not None:
        shown = traceback.TracebackException.from_exception(one, capture_locals=with_locals)
        found += "".join(shown.format(chain=False)) + f"{one!r} {one} {vars(one)} {cloudpickle.dumps(one)!r}"
        one = one.__cause__ or one.__context__  # type: ignore[assignment]
    return found


def assert_no_secret(text: str) -> None:
    assert SECRET not in text
    assert TOKEN not in text
