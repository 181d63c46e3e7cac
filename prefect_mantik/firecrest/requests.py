"""pyfirecrest's client, whose requests go our way: over the account's one HTTP client, with our manners.

pyfirecrest knows the paths, the parameters and the forms of FirecREST's API. By itself it has no time limits, repeats
nothing but a 429 (for ever, also a submit), opens a connection pool for each client, and its errors hold whole
responses, of which a refusal's headers hold the token. So its four kinds of request are sent by `JsonApi` instead: at
most four at a time for an account, with a deadline, repeated where that is safe, and with errors of ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import httpx
from firecrest import UnexpectedStatusException
from firecrest.v2 import AsyncFirecrest

from prefect_mantik.api import Call, JsonApi, Repeat
from prefect_mantik.errors import LoginRefused, NotFound, RequestFailed, ServiceUnavailable
from prefect_mantik.firecrest.answers import Meaning, meaning, said
from prefect_mantik.firecrest.login import FirecrestLogin
from prefect_mantik.loop import Tls, tls_context

TRY_TIMEOUT = 40.0
"""Seconds for one try. The server gives up after 5 to 10 s; gateways have up to 30 s."""


class JobEnded(RequestFailed):
    """The job has ended already."""


class Unreadable(RequestFailed):
    """The server cannot read what its batch system says."""


class FirecrestApi(JsonApi):
    """FirecREST's manners: what its refusals mean stands in `answers`."""

    def _judged(self, response: httpx.Response, call: Call) -> Exception:
        told = said(response)
        match meaning(call.method, call.path, told):
            case Meaning.REFUSED:
                return self._error(RequestFailed, call, response, "says no")
            case Meaning.NOT_THERE:
                return self._error(NotFound, call, response, "knows no such thing")
            case Meaning.NO_ACCESS:
                return self._error(LoginRefused, call, response, f"has no account at the site for {self.username!r}")
            case Meaning.ENDED:
                return self._error(JobEnded, call, response, "says that the job has ended")
            case Meaning.UNREADABLE:
                return self._error(
                    Unreadable,
                    call,
                    response,
                    "cannot read what its batch system says: a | in the name of one of your jobs breaks that for a day",
                )
            case Meaning.PASSES:
                return Repeat(self._error(ServiceUnavailable, call, response, "cannot do this now", sent=False))
            case Meaning.ELSEWHERE:
                return self._error(
                    ServiceUnavailable,
                    call,
                    response,
                    "is not where its URL says: at most sites FirecREST's API is at https://<host>/<platform>/firecrest/v2",
                )
            case Meaning.UNCLEAR:
                return self._error(ServiceUnavailable, call, response, "did not say whether it did this")
        if response.status_code == httpx.codes.FORBIDDEN:
            return self._error(RequestFailed, call, response, f"does not allow this to {self.username!r}")
        return super()._judged(response, call)

    def _explained(self, response: httpx.Response) -> str:
        return said(response).text or super()._explained(response)


class Requests(AsyncFirecrest):
    """pyfirecrest's operations as one account, on the background loop.

    Its protected methods for the four kinds of request are replaced. A version of pyfirecrest that does not call them
    any more would go its own way with the same login: the tests tell.

    Args:
        api: What sends the requests.
        login: Says who calls.
        tls: How the server's certificate is verified.
        timeout: Seconds for one request with all its repeats.
    """

    def __init__(self, api: FirecrestApi, login: FirecrestLogin, tls: Tls, timeout: float) -> None:
        super().__init__(api.base_url, _Authorization(login), verify=tls_context(tls))
        self.timeout = timeout
        self.disable_client_logging = True
        self._api = api

    async def get(self, path: str, params: Mapping[str, Any]) -> httpx.Response:
        """Ask for what pyfirecrest has no operation for, or one without the parameters that we need."""
        return _of_status(await self._fetch("GET", path, params=params), httpx.codes.OK)

    async def post(self, path: str, expected: int, **body: Any) -> httpx.Response:
        """Send what pyfirecrest has no operation for, or one without the fields that we need."""
        return _of_status(await self._fetch("POST", path, **body), expected)

    async def _get_request(
        self, endpoint: str, additional_headers: Any = None, params: Mapping[str, Any] | None = None
    ) -> httpx.Response:
        return await self._fetch("GET", endpoint, params=params)

    async def _post_request(
        self,
        endpoint: str,
        additional_headers: Any = None,
        params: Mapping[str, Any] | None = None,
        data: Any = None,
        files: Mapping[str, Any] | None = None,
        json_data: Any = None,
    ) -> httpx.Response:
        return await self._fetch("POST", endpoint, params=params, files=files, json=json_data)

    async def _put_request(
        self, endpoint: str, additional_headers: Any = None, data: Any = None, json_data: Any = None
    ) -> httpx.Response:
        return await self._fetch("PUT", endpoint, json=json_data)

    async def _delete_request(
        self, endpoint: str, additional_headers: Any = None, params: Mapping[str, Any] | None = None, data: Any = None
    ) -> httpx.Response:
        return await self._fetch("DELETE", endpoint, params=params)

    async def _fetch(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        files: Mapping[str, Any] | None = None,
    ) -> httpx.Response:
        given = {name: _query(value) for name, value in (params or {}).items() if value is not None}
        submits = method == "POST" and path.startswith("/compute/")
        call = Call(
            method,
            path,
            params=given or None,
            json=json,
            files=files,
            repeatable=not submits,
            timeout=self.timeout,
            try_timeout=math.inf if files else TRY_TIMEOUT,  # megabytes over a slow line: half of the time for all
        )
        return await self._api.fetch(call)


def _of_status(response: httpx.Response, expected: int) -> httpx.Response:
    """A gateway's login page, say, comes with a success of another kind."""
    if response.status_code != expected:
        raise UnexpectedStatusException([response], expected)  # type: ignore[no-untyped-call]
    return response


def _query(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class _Authorization:
    """Our login, as pyfirecrest takes it."""

    def __init__(self, login: FirecrestLogin) -> None:
        self._login = login

    async def auth_headers(self) -> Mapping[str, str]:
        """The headers that make a request ours, valid now."""
        return await self._login.headers()
