"""The web server: one application on loopback that answers for its own host only."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator, Sequence

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from prefect_mantik.sandbox import tracking
from prefect_mantik.sandbox.accounts import Accounts
from prefect_mantik.sandbox.errors import ApiError, SandboxError
from prefect_mantik.sandbox.faults import Faults, FaultsMiddleware
from prefect_mantik.sandbox.http import not_served, refuse

HOSTS = ("127.0.0.1", "localhost", "[::1]")


class OwnHostOnly:
    """Refuses requests for another host: a page in a browser may have its name point to 127.0.0.1."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._hosts = {f"{host}:{port}".encode() for host in HOSTS}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request of the server."""
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) == 1 and hosts[0].lower() in self._hosts:
            await self._app(scope, receive, send)
            return
        body = b'{"detail": "This sandbox answers for its own host only"}'
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 421, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class WebServer:
    """Runs the application in the current event loop, and can cut connections."""

    def __init__(self, routes: Sequence[Route], faults: Faults, accounts: Accounts, listener: socket.socket) -> None:
        self._routes = routes
        self._listener = listener
        self._open: dict[object, asyncio.BaseTransport] = {}
        app = Starlette(routes=routes, exception_handlers={ApiError: refuse, HTTPException: not_served})
        app.router.redirect_slashes = False
        counted = FaultsMiddleware(
            app, faults=faults, route_of=self._route_of, account_of=accounts.account_of, drop=self._drop
        )
        config = uvicorn.Config(
            OwnHostOnly(counted, listener.getsockname()[1]),
            http=_recording(self._open),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start to answer."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._listener]), name="sandbox server")
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise SandboxError("The sandbox's server ended before it had started")
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Answer no more."""
        if self._task is not None:
            self._server.should_exit = True
            await self._task

    def _drop(self, scope: Scope) -> None:
        transport = self._open.get(tuple(scope["client"]))
        if isinstance(transport, asyncio.WriteTransport):
            transport.abort()

    def _route_of(self, scope: Scope) -> str:
        if scope["path"].startswith(tracking.PREFIX):
            return tracking.route_template(scope["path"])
        partial = "unknown"
        for route in self._routes:
            match, _ = route.matches(scope)
            if match is Match.FULL:
                return route.path
            if match is Match.PARTIAL:
                partial = route.path
        return partial


class _Server(uvicorn.Server):
    """Leaves the signals to whoever runs the sandbox."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _recording(opened: dict[object, asyncio.BaseTransport]) -> type[H11Protocol]:
    """Make uvicorn's protocol class keep the open connections by the address of their other end."""

    class Recording(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            opened[self.client] = transport

        def connection_lost(self, exc: Exception | None) -> None:
            opened.pop(self.client, None)
            super().connection_lost(exc)

    return Recording
