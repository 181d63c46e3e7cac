"""One UNICORE site's REST API as a whole: what its routes have in common."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from starlette.requests import Request
from starlette.responses import Response

from prefect_mantik.sandbox.scheduler import Site
from prefect_mantik.sandbox.settings import Switches
from prefect_mantik.sandbox.unicore.books import Books, Entry
from prefect_mantik.sandbox.unicore.identities import Caller, Identities
from prefect_mantik.sandbox.unicore.logins import Logins
from prefect_mantik.sandbox.unicore.replies import UnicoreError, error_reply
from prefect_mantik.sandbox.unicore.storages import Storages

FACTORY = "default_target_system_factory"


class UnicoreSite:
    """A site with all that its REST API needs."""

    def __init__(self, site: Site, identities: Identities, switches: Switches) -> None:
        self.site = site
        self.name = site.name.upper()
        self.switches = switches
        self.identities = identities
        self.logins = Logins(site, identities, switches)
        owners = {person.logins.get(site.name, ""): person.owner for person in identities.people.values()}
        self.books = Books(site, switches, owners)
        self.storages = Storages(site, self.books)
        self.since = time.time()
        self.certificate = identities.certificate(self.name)

    def target_system(self, caller: Caller) -> str:
        """Give the id of a caller's target system."""
        return uuid5(NAMESPACE_URL, f"{self.name}/{caller.login}").hex[:11]

    def check_submission(self, caller: Caller) -> None:
        """Refuse jobs of those who may submit none, and all of them during maintenance."""
        if not caller.login:
            raise UnicoreError(403)
        if self.site.maintenance:
            raise UnicoreError(503, self.closed())

    def closed(self) -> str:
        """Say why no jobs are taken."""
        return self.site.maintenance_message or f"{self.name} is down for maintenance."


@dataclass(frozen=True)
class Call:
    """A request that was let in.

    Attributes:
        request: The request.
        at: The site.
        caller: Who it comes from.
    """

    request: Request
    at: UnicoreSite
    caller: Caller

    @property
    def base(self) -> str:
        """The site's base URL as the caller spells it: links follow it."""
        host = self.request.headers["host"]
        return f"{self.request.url.scheme}://{host}/{self.at.name}/rest/core"

    def job(self) -> Entry:
        """Give the job in the request's path.

        Raises:
            UnicoreError: 404 if there is none, 403 if it is somebody else's.
        """
        entry = self.at.books.find(self.request.path_params["jobId"])
        if entry is None:
            raise UnicoreError(404)
        if entry.login != self.caller.login:
            raise UnicoreError(403)
        return entry


CallHandler = Callable[[Call], Awaitable[Response]]


def guarded(sites: dict[str, UnicoreSite], handler: CallHandler) -> Callable[[Request], Awaitable[Response]]:
    """Make a handler of requests out of one of calls.

    Args:
        sites: All sites, by the name in their paths.
        handler: Takes only requests that were let in.
    """

    async def handle(request: Request) -> Response:
        at = sites.get(request.path_params["site"])
        if at is None:
            return Response(status_code=404)
        try:
            session = at.logins.session(request)
        except UnicoreError as error:
            return error_reply(error)
        try:
            reply = await handler(Call(request, at, session.caller))
        except UnicoreError as error:
            reply = error_reply(error)
        except OSError as error:
            reply = error_reply(UnicoreError(500, f"Error: java.io.IOException: {error}"))
        reply.headers.update(session.headers())
        reply.headers["X-Frame-Options"] = "DENY"
        return reply

    return handle


def not_here(what: str, error: Exception) -> UnicoreError:
    """Word a failure as the server words nearly all of them.

    Args:
        what: What was being done.
        error: What went wrong.
    """
    return UnicoreError(500, f"{what}: {error}")


def no_content(headers: dict[str, Any] | None = None) -> Response:
    """Answer that it was done."""
    return Response(status_code=204, headers=headers)
