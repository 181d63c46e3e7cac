"""How FirecREST's replies look: JSON, errors and their headers."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response

APP_VERSION = "2.x.x"
_SOURCES = "/srv/firecrest/src/firecrest"


class FirecrestError(Exception):
    """A refusal of the REST API.

    Args:
        status: The HTTP status.
        message: What it says.
        caused_by: Further texts, as calls that ask the batch system have them.
    """

    def __init__(self, status: int, message: str, caused_by: list[str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.caused_by = caused_by
        self.fields: list[dict[str, str]] | None = None
        self.headers: dict[str, str] = {}

    def body(self, user: str | None) -> dict[str, Any]:
        """Give the body.

        Args:
            user: Whose request it is.
        """
        return {
            "errorType": "error" if self.fields is None else "validation",
            "message": str(self),
            "causedBy": self.caused_by,
            "data": None if self.fields is None else {"fields": self.fields},
            "user": user,
        }


def validation_error(location: str, name: str, message: str, *, problem: str = "value_error") -> FirecrestError:
    """Refuse a request that is not well formed: status 400.

    Args:
        location: Where the problem is: path, query or body.
        name: The parameter.
        message: What is wrong with it, e.g. "Field required".
        problem: The kind of problem in the words of pydantic.
    """
    return validation_errors([{"type": problem, "loc": (location, name), "msg": message}])


def validation_errors(
    problems: Sequence[Mapping[str, Any]],
    file: str = "router.py",
    line: int = 1,
    function: str = "handle",
    endpoint: str = "",
) -> FirecrestError:
    """Refuse a request with several problems: status 400.

    Args:
        problems: Each as pydantic describes it.
        file: The file of the server that the text names, below its sources.
        line: The line there.
        function: The function there.
        endpoint: Its method and path.
    """
    count = f"{len(problems)} validation error{'s' if len(problems) > 1 else ''}:"
    lines = [f"  {dict(each)}" for each in problems]
    place = f'  File "{_SOURCES}/{file}", line {line}, in {function}\n    {endpoint}'
    # The server lower-cases the whole text, and with it values and the path of one of its own files.
    error = FirecrestError(400, "\n".join([count, *lines, "", place]).lower())
    error.fields = [
        {"location": str(each["loc"][0]), "name": str(each["loc"][1]), "message": str(each["msg"])} for each in problems
    ]
    return error


def error_reply(error: FirecrestError, user: str | None) -> Response:
    """Answer a refusal.

    Args:
        error: The refusal.
        user: Whose request it is; None if that is not known.
    """
    reply = json_reply(error.body(user), error.status)
    reply.headers.update(error.headers)
    if user is not None:
        reply.headers["f7t-authusername"] = user
    return reply


def json_reply(content: Any, status: int = 200) -> Response:
    """Answer with JSON."""
    return Response(json.dumps(content, ensure_ascii=False), status, media_type="application/json")


def no_content() -> Response:
    """Answer that it was done."""
    return Response(status_code=204)


def add_headers(request: Request, reply: Response) -> Response:
    """Add the headers that all replies have."""
    reply.headers["f7t-timestamp"] = repr(time.time())
    reply.headers["f7t-appversion"] = APP_VERSION
    for name in ("x-request-id", "x-correlation-id"):
        reply.headers[name] = request.headers.get(name) or str(uuid4())
    return reply
