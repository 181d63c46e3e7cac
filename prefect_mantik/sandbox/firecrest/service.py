"""The FirecREST deployment as a whole: its systems, and what all routes have in common."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response

from prefect_mantik.sandbox.firecrest.books import Books
from prefect_mantik.sandbox.firecrest.replies import FirecrestError, add_headers, error_reply
from prefect_mantik.sandbox.firecrest.tokens import Tokens
from prefect_mantik.sandbox.scheduler import Site
from prefect_mantik.sandbox.settings import Switches

Mode = Literal["ssh", "hybrid", "rest"]

TIMED_OUT = "Command execution timeout limit exceeded."
# What the server answers without asking the site.
_WITHOUT_COMMAND = ("/status/systems",)
_USUAL = 0.025
_NO_CHANNEL = "Unable to open a new SSH channel."


@dataclass(frozen=True)
class System:
    """One system of the deployment: a name, and a manner of speaking to the site's batch system."""

    name: str
    site: Site
    switches: Switches
    books: Books
    over_ssh: bool

    @property
    def mode(self) -> Mode:
        """How the batch system is spoken to."""
        return "ssh" if self.over_ssh else self.switches.firecrest_rest_mode


@dataclass(frozen=True)
class Call:
    """A request that was let in.

    Attributes:
        request: The request.
        at: The system in its path.
        login: The site's user who it comes from.
        deployment: The server.
    """

    request: Request
    at: System
    login: str
    deployment: Deployment = field(repr=False)

    @property
    def command_timeout(self) -> float:
        """After how many seconds a command at the site is given up."""
        return self.at.switches.firecrest_command_timeout


CallHandler = Callable[[Call], Awaitable[Response]]


@dataclass
class Deployment:
    """The server with all its systems.

    Attributes:
        site: The site that all systems look at.
        switches: Looked at on every request.
        tokens: Lets requests in.
        systems: The systems by name.
        busy: How many SSH channels each user has open.
    """

    site: Site
    switches: Switches
    tokens: Tokens
    systems: dict[str, System]
    busy: Counter[str] = field(default_factory=Counter)

    @contextlib.asynccontextmanager
    async def channel(self, login: str) -> AsyncIterator[None]:
        """Hold an SSH channel, as a call does while its command runs at the site.

        Args:
            login: The site's user.

        Raises:
            FirecrestError: There is none for this user, or the command takes too long to be waited for.
        """
        if not self.site.entitled:
            raise FirecrestError(500, f"('No SSH credentials found for user:{login}',)")
        limit = self.switches.firecrest_max_sessions
        if limit and self.busy[login] >= limit:
            raise FirecrestError(424, _NO_CHANNEL)
        self.busy[login] += 1
        try:
            # With a limit the calls last as long as real ones do: at once they would never meet.
            seconds = self.switches.firecrest_command_time or (_USUAL if limit else 0.0)
            longest = self.switches.firecrest_command_timeout
            await asyncio.sleep(min(seconds, longest))
            yield
            # The work was done, only too late for the server: the outcome of a submit is then unknown.
            if seconds > longest:
                raise FirecrestError(408, TIMED_OUT)
        finally:
            self.busy[login] -= 1


def guarded(
    deployment: Deployment, handler: CallHandler, path: str, method: str
) -> Callable[[Request], Awaitable[Response]]:
    """Make a handler of requests out of one of calls.

    Args:
        deployment: The server.
        handler: Takes only requests that were let in.
        path: The route's template.
        method: The route's method.
    """
    compute = path.startswith("/compute/")
    # What only asks the batch system wraps whatever went wrong into one error.
    wraps = compute and method == "GET"

    async def handle(request: Request) -> Response:
        login: str | None = None
        try:
            login = deployment.tokens.login(request.headers.get("authorization"))
            call = Call(request, _system(deployment, request), login, deployment)
            reply = await _let_in(deployment, handler, path, call, wraps)
        except FirecrestError as error:
            reply = error_reply(error, login)
        except OSError as error:
            reply = error_reply(FirecrestError(500, str(error)), login)
        return add_headers(request, reply)

    return handle


async def _let_in(deployment: Deployment, handler: CallHandler, path: str, call: Call, wraps: bool) -> Response:
    _check_health(deployment, path, call.at)
    if path in _WITHOUT_COMMAND or (path.startswith("/compute/") and call.at.mode != "ssh"):
        return await handler(call)
    try:
        async with deployment.channel(call.login):
            return await handler(call)
    except FirecrestError as error:
        if wraps and (error.status in (408, 424) or str(error).startswith("('No SSH credentials")):
            cause = str(error).removeprefix("('").removesuffix("',)")
            raise FirecrestError(500, "Error executing Slurm command.", [cause]) from None
        raise


def _system(deployment: Deployment, request: Request) -> System:
    name = request.path_params.get("system")
    if name is None:
        return next(iter(deployment.systems.values()))
    system = deployment.systems.get(name.lower())
    if system is None:
        raise FirecrestError(404, "System not found")
    return system


def _check_health(deployment: Deployment, path: str, at: System) -> None:
    gate = {"compute": "scheduler", "filesystem": "ssh"}.get(path.split("/")[1])
    if "/transfer/" in path:
        gate = "scheduler"
    if deployment.site.unhealthy and gate is not None:
        raise FirecrestError(503, f"The {gate} service for the requested system ({at.name}) is unhealthy.")
