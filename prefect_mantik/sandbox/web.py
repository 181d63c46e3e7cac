"""The web server: one application on loopback that answers for its own host only."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from prefect_mantik.sandbox import tracking
from prefect_mantik.sandbox.errors import ApiError, SandboxError
from prefect_mantik.sandbox.faults import Faults, FaultsMiddleware
from prefect_mantik.sandbox.http import not_served, refuse
from prefect_mantik.sandbox.tls import Certificate

HOSTS = ("127.0.0.1", "localhost", "[::1]")


class OwnHostOnly:
    """Refuses requests for another host: a page in a browser may have its name point to 127.0.0.1."""

    def __init__(self, app: ASGIApp, ports: Sequence[int]) -> None:
        self._app = app
        self._hosts = {f"{host}:{port}".encode() for host in HOSTS for port in ports}

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
    """Runs the application in the current event loop, and can cut connections.

    Args:
        routes: What it serves.
        faults: How it misbehaves.
        account_of: Names whose request it is, for the counts.
        listener: Where it listens.
        secure: Where it listens for https too, and its certificate.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        faults: Faults,
        account_of: Callable[[Scope], str],
        listener: socket.socket,
        secure: tuple[socket.socket, Certificate] | None = None,
    ) -> None:
        self._routes = routes
        self._listeners = [listener] if secure is None else [listener, secure[0]]
        self._open: dict[object, asyncio.BaseTransport] = {}
        app = Starlette(routes=routes, exception_handlers={ApiError: refuse, HTTPException: not_served})
        app.router.redirect_slashes = False
        counted = FaultsMiddleware(app, faults=faults, route_of=self._route_of, account_of=account_of, drop=self._drop)
        guarded = OwnHostOnly(counted, [each.getsockname()[1] for each in self._listeners])
        files = [None] if secure is None else [None, secure[1]]
        self._servers = [_Server(self._config(guarded, certificate)) for certificate in files]
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start to answer."""
        for server, listener in zip(self._servers, self._listeners, strict=True):
            task = asyncio.create_task(server.serve(sockets=[listener]), name="sandbox server")
            self._tasks.append(task)
            while not server.started:
                if task.done():
                    task.result()
                    raise SandboxError("The sandbox's server ended before it had started")
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Answer no more."""
        for server in self._servers:
            server.should_exit = True
        await asyncio.gather(*self._tasks)

    def _config(self, app: ASGIApp, certificate: Certificate | None) -> uvicorn.Config:
        return uvicorn.Config(
            app,
            http=_recording(self._open),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
            ssl_certfile=None if certificate is None else certificate.certificate,
            ssl_keyfile=None if certificate is None else certificate.key,
        )

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
                return _template(route)
            if match is Match.PARTIAL:
                partial = _template(route)
        return partial


def _template(route: Route) -> str:
    # With and without a slash at the end it is the same resource.
    return route.path.rstrip("/").replace(":path}", "}")


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
