"""The routes of FirecREST's REST API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from prefect_mantik.sandbox.firecrest import job_routes, status_routes
from prefect_mantik.sandbox.firecrest.books import Books
from prefect_mantik.sandbox.firecrest.file_routes import FILE_ROUTES
from prefect_mantik.sandbox.firecrest.replies import FirecrestError, add_headers, error_reply, json_reply
from prefect_mantik.sandbox.firecrest.service import CallHandler, Deployment, System, guarded
from prefect_mantik.sandbox.firecrest.tokens import Tokens
from prefect_mantik.sandbox.firecrest.transfer_store import store_routes
from prefect_mantik.sandbox.scheduler import Site
from prefect_mantik.sandbox.settings import Switches

PREFIX = "/firecrest/v2"
TOKEN_PATH = "/firecrest-auth/token"  # noqa: S105 (a path)
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_JOBS = "/compute/{system}/jobs"
_TABLE: list[tuple[str, str, CallHandler]] = [
    ("GET", "/status/systems", status_routes.systems),
    ("GET", "/status/{system}/nodes", status_routes.nodes),
    ("GET", "/status/{system}/partitions", status_routes.partitions),
    ("GET", "/status/{system}/reservations", status_routes.reservations),
    ("GET", "/status/{system}/userinfo", status_routes.userinfo),
    ("GET", _JOBS, job_routes.jobs),
    ("POST", _JOBS, job_routes.submit),
    ("GET", f"{_JOBS}/{{jobId}}", job_routes.job),
    ("DELETE", f"{_JOBS}/{{jobId}}", job_routes.cancel),
    ("GET", f"{_JOBS}/{{jobId}}/metadata", job_routes.metadata),
    ("PUT", f"{_JOBS}/{{jobId}}/attach", job_routes.attach),
    *FILE_ROUTES,
]


class Firecrest:
    """The FirecREST server of the sandbox: one site that several systems look at.

    Args:
        site: The site.
        switches: Looked at on every request.
        url: The sandbox's base URL.
    """

    def __init__(self, site: Site, switches: Switches, url: str) -> None:
        self.tokens = Tokens(site, switches, issuer=url)
        books = Books(site)
        systems = {
            name: System(name=name, site=site, switches=switches, books=books, over_ssh=over_ssh)
            for name, over_ssh in ((site.name, True), (f"{site.name}-rest", False))
        }
        self.deployment = Deployment(site=site, switches=switches, tokens=self.tokens, systems=systems)
        self._routes = [
            Route(TOKEN_PATH, self.tokens.grant, methods=["POST"]),
            _AnyCase(f"{PREFIX}/status/liveness/", self._liveness, methods=["GET"]),
            *(
                _AnyCase(PREFIX + path, guarded(self.deployment, handler, path, method), methods=[method])
                for method, path, handler in _TABLE
            ),
            *store_routes(site),
        ]

    def routes(self) -> list[Route]:
        """Give all endpoints."""
        everything = _AnyCase(f"{PREFIX}/{{path:path}}", self._not_served, methods=_METHODS)
        return [*self._routes, everything]

    def account_of(self, scope: Mapping[str, Any]) -> str | None:
        """Name whose request this is; None for a request that is not for this server.

        Args:
            scope: The ASGI scope of the request.
        """
        if not scope["path"].startswith((f"{PREFIX}/", TOKEN_PATH)):
            return None
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        return self.tokens.client_of(headers.get(b"authorization", ""))

    async def _liveness(self, request: Request) -> Response:
        return add_headers(request, json_reply(status_routes.liveness(self.deployment)))

    async def _not_served(self, request: Request) -> Response:
        """Answer for what is no endpoint, or not with this method."""
        partial = any(route.matches(request.scope)[0] is Match.PARTIAL for route in self._routes)
        error = FirecrestError(405, "Method Not Allowed") if partial else FirecrestError(404, "Not Found")
        return add_headers(request, error_reply(error, None))


class _AnyCase(Route):
    """The server does not mind how the letters of a path are written."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return super().matches({**scope, "path": scope["path"].lower()} if scope["type"] == "http" else scope)
