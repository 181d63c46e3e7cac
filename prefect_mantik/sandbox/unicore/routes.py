"""The routes of UNICORE's REST API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.routing import Route

from prefect_mantik.sandbox.scheduler import Site
from prefect_mantik.sandbox.settings import Switches
from prefect_mantik.sandbox.unicore import base_routes, file_routes, job_routes
from prefect_mantik.sandbox.unicore.identities import Identities
from prefect_mantik.sandbox.unicore.service import CallHandler, UnicoreSite, guarded

PREFIX = "/{site}/rest/core"
_TABLE: list[tuple[str, str, CallHandler]] = [
    ("GET", "", base_routes.base),
    ("GET", "/token", base_routes.token),
    ("GET", "/certificate", base_routes.certificate),
    ("GET", "/factories", base_routes.factories),
    ("GET", "/factories/{factoryId}", base_routes.factory),
    ("GET", "/sites", base_routes.sites),
    ("GET", "/sites/{siteId}", base_routes.site),
    ("POST", "/sites/{siteId}", job_routes.submit),
    ("GET", "/sites/{siteId}/jobs", base_routes.site_jobs),
    ("GET", "/reservations", base_routes.nothing),
    ("GET", "/storagefactories", base_routes.nothing),
    ("GET", "/transfers", base_routes.nothing),
    ("GET", "/client-server-transfers", base_routes.nothing),
    ("GET", "/tasks", base_routes.nothing),
    ("GET", "/jobs", job_routes.jobs),
    ("POST", "/jobs", job_routes.submit),
    ("GET", "/jobs/{jobId}", job_routes.job),
    ("PUT", "/jobs/{jobId}", job_routes.change),
    ("DELETE", "/jobs/{jobId}", job_routes.delete),
    ("POST", "/jobs/{jobId}", job_routes.into_allocation),
    ("GET", "/jobs/{jobId}/details", job_routes.details),
    ("GET", "/jobs/{jobId}/submitted", job_routes.submitted),
    ("POST", "/jobs/{jobId}/actions/{action}", job_routes.action),
    ("GET", "/storages", file_routes.storages),
    ("GET", "/storages/{storageId}", file_routes.storage),
    ("PUT", "/storages/{storageId}", file_routes.change_storage),
    ("DELETE", "/storages/{storageId}", file_routes.delete_storage),
    ("POST", "/storages/{storageId}/actions/{action}", file_routes.act),
    ("POST", "/storages/{storageId}/imports", file_routes.no_transfer),
    ("POST", "/storages/{storageId}/exports", file_routes.no_transfer),
    ("POST", "/storages/{storageId}/transfers", file_routes.no_transfer),
    ("GET", "/storages/{storageId}/files", file_routes.read),
    ("GET", "/storages/{storageId}/files/{path:path}", file_routes.read),
    ("PUT", "/storages/{storageId}/files/{path:path}", file_routes.write),
    ("POST", "/storages/{storageId}/files/{path:path}", file_routes.make_directory),
    ("DELETE", "/storages/{storageId}/files/{path:path}", file_routes.delete),
]


class Unicore:
    """All UNICORE sites of the sandbox."""

    def __init__(self, sites: list[Site], identities: Identities, switches: Switches) -> None:
        self.identities = identities
        self.sites = {
            site.name.upper(): UnicoreSite(site, identities, switches) for site in sites if site.kind == "UNICORE"
        }

    def routes(self) -> list[Route]:
        """Give all endpoints."""
        routes = []
        for method, path, handler in _TABLE:
            # With a slash at the end it is the same resource.
            paths = (path,) if path.endswith(":path}") else (path, f"{path}/")
            routes += [Route(PREFIX + each, guarded(self.sites, handler), methods=[method]) for each in paths]
        return routes

    def expire_sessions(self) -> None:
        """Forget the security sessions of all sites."""
        for site in self.sites.values():
            site.logins.expire_sessions()

    def account_of(self, scope: Mapping[str, Any]) -> str | None:
        """Name whose request this is; None for a request that is for none of the sites.

        Args:
            scope: The ASGI scope of the request.
        """
        name, _, rest = scope["path"].lstrip("/").partition("/")
        if name not in self.sites or not rest.startswith("rest/core"):
            return None
        return self.sites[name].logins.account_of(scope)
