"""The MLflow server under `/tracking/`, behind the platform's token check."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import AsyncIterator

import httpx
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse

from prefect_mantik.sandbox.accounts import Accounts

PREFIX = "/tracking"
_HOP_BY_HOP = {
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}
# What stays between the caller and us: MLflow must not see tokens, and has a host check of its own.
_OURS = {"authorization", "cookie", "host"}
# A redirect would be part of the navigation that a link in a mail or chat began, and a strict cookie is not sent there.
_LOGGED_IN = '<!doctype html><meta http-equiv="refresh" content="0;url=/tracking/"><a href="/tracking/">MLflow</a>'


class BrowserLogin:
    """Lets a person on this machine look at MLflow's pages: a link that works once sets a cookie."""

    def __init__(self, port: int) -> None:
        self._cookie = f"mantik-sandbox-{port}"  # cookies do not tell ports apart
        self._session = secrets.token_urlsafe(32)
        self._tickets: set[str] = set()
        self._origins = {f"http://{host}:{port}" for host in ("127.0.0.1", "localhost", "[::1]")}

    def ticket(self) -> str:
        """Make a ticket that is good for one login."""
        ticket = secrets.token_urlsafe(24)
        self._tickets.add(ticket)
        return ticket

    async def login(self, request: Request) -> Response:
        """Serve `/login`."""
        ticket = request.query_params.get("ticket", "")
        if ticket not in self._tickets:
            return PlainTextResponse("This login link was used already or is not one of ours.\n", 403)
        self._tickets.remove(ticket)
        response = HTMLResponse(_LOGGED_IN, headers={"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})
        response.set_cookie(self._cookie, self._session, path=PREFIX, httponly=True, samesite="strict")
        return response

    def admits(self, request: Request) -> bool:
        """Tell whether a request comes from a logged-in browser and from a page of ours."""
        cookie = request.cookies.get(self._cookie, "")
        # Pages of other ports on this host count as the same site: the cookie alone does not keep them out.
        own_page = request.headers.get("origin") in {None, *self._origins}
        return own_page and hmac.compare_digest(cookie.encode(), self._session.encode())


class TrackingProxy:
    """Passes requests on to MLflow, streaming both ways."""

    def __init__(self, client: httpx.AsyncClient, accounts: Accounts, browser: BrowserLogin) -> None:
        self._client = client
        self._accounts = accounts
        self._browser = browser

    async def __call__(self, request: Request) -> Response:
        """Serve anything under `/tracking/`."""
        path = request.scope["raw_path"].decode("ascii").removeprefix(PREFIX) or "/"
        authorization = request.headers.get("authorization")
        if path.startswith("/api/") or authorization is not None or not self._browser.admits(request):
            request.scope["sandbox.account"] = self._accounts.authenticate(authorization).name
        else:
            request.scope["sandbox.account"] = "browser"
        return await self._forward(request, path)

    async def _forward(self, request: Request, path: str) -> Response:
        dropped = _HOP_BY_HOP | _OURS | _named_by_connection(request.headers.get("connection", ""))
        headers = [(name, value) for name, value in request.headers.items() if name not in dropped]
        has_body = "transfer-encoding" in request.headers or request.headers.get("content-length", "0") != "0"
        query = request.scope["query_string"].decode("ascii")
        # Not built by the client, which would add headers of its own, such as the encodings that it understands.
        outgoing = httpx.Request(
            request.method,
            httpx.URL(f"http://localhost{path}" + (f"?{query}" if query else "")),
            headers=headers,
            content=request.stream() if has_body else None,
        )
        try:
            answer = await self._client.send(outgoing, stream=True)
        except ClientDisconnect:
            return Response(status_code=499)
        except httpx.TransportError as error:
            return JSONResponse({"detail": f"The tracking server does not answer: {type(error).__name__}"}, 502)
        dropped = _HOP_BY_HOP | _named_by_connection(answer.headers.get("connection", ""))
        response = StreamingResponse(_raw(answer), answer.status_code, background=BackgroundTask(answer.aclose))
        response.raw_headers = [
            (name.lower(), value) for name, value in answer.headers.raw if name.decode("ascii").lower() not in dropped
        ]
        return response


async def _raw(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    finally:
        await answer.aclose()


def _named_by_connection(header: str) -> set[str]:
    return {name.strip().lower() for name in header.split(",") if name.strip()}


def route_template(path: str) -> str:
    """Name a tracking request in the counts: the path without what differs from call to call.

    Args:
        path: The request's path.
    """
    for marker in ("/mlflow-artifacts/artifacts/", "/static-files/"):
        head, found, _ = path.partition(marker)
        if found:
            return f"{head}{marker}{{path}}"
    return path
