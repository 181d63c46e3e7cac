"""The manners of the platform's API: who may call, how bodies are read and how refusals look."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from uuid import UUID

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from prefect_mantik.sandbox.accounts import Accounts, User
from prefect_mantik.sandbox.errors import ApiError, parse
from prefect_mantik.sandbox.settings import Switches

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]
UserHandler = Callable[[Request, User], Awaitable[Response]]


def for_users(accounts: Accounts, handler: UserHandler) -> Handler:
    """Make a handler that only callers with a valid access token reach.

    Args:
        accounts: Checks the tokens.
        handler: Takes the request and its user.
    """

    async def handle(request: Request) -> Response:
        user = accounts.authenticate(request.headers.get("authorization"))
        request.scope["sandbox.account"] = user.name
        return await handler(request, user)

    return handle


def unproven(switches: Switches, handler: Handler) -> Handler:
    """Make a handler that is an unknown route until all endpoints are asked for.

    Args:
        switches: Looked at on every request.
        handler: The real one.
    """

    async def handle(request: Request) -> Response:
        if not switches.all_endpoints:
            return JSONResponse({"detail": "Not Found"}, 404)
        return await handler(request)

    return handle


def path_id(request: Request, name: str) -> UUID:
    """Read an id in a request's path.

    Args:
        request: The request.
        name: The name of the path parameter.
    """
    return parse(UUID, request.path_params[name], ("path", name))


async def read_body(request: Request, kind: type[T]) -> T:
    """Read a request's JSON body.

    Args:
        request: The request.
        kind: The type wanted.
    """
    raw = await request.body()
    if not raw:
        raise ApiError(422, [{"type": "missing", "loc": ["body"], "msg": "Field required", "input": None}])
    try:
        value: Any = json.loads(raw)
    except ValueError:
        problem = {"type": "json_invalid", "loc": ["body", 0], "msg": "JSON decode error", "input": {}}
        raise ApiError(422, [problem]) from None
    return parse(kind, value, ("body",))


async def refuse(_: Request, error: Exception) -> Response:
    """Answer an `ApiError`."""
    if not isinstance(error, ApiError):
        raise error
    return JSONResponse({"detail": error.detail}, error.status)


async def not_served(request: Request, error: Exception) -> Response:
    """Answer an unknown route or method as FastAPI does, and as UNICORE does below its paths."""
    status = getattr(error, "status_code", 404)
    headers = getattr(error, "headers", None)
    if "/rest/core" in request.url.path:
        return Response(status_code=status, headers=headers)
    return JSONResponse({"detail": getattr(error, "detail", "Not Found")}, status, headers=headers)
