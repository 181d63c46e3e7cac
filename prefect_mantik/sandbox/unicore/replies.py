"""How UNICORE's replies look: JSON, errors, times and links."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

# Refusals of these kinds have no body.
_WITHOUT_BODY = {400, 403, 404, 406, 415, 432}
PAGE = 200


class UnicoreError(Exception):
    """A refusal of the REST API."""

    def __init__(self, status: int, message: str = "") -> None:
        super().__init__(message)
        self.status = status


def error_reply(error: UnicoreError) -> Response:
    """Answer a refusal."""
    if error.status in _WITHOUT_BODY:
        return Response(status_code=error.status)
    return json_reply({"errorMessage": str(error), "status": error.status}, error.status)


def json_reply(content: Mapping[str, Any], status: int = 200) -> Response:
    """Answer with JSON."""
    return Response(json.dumps(content), status, media_type="application/json")


def html_reply(content: Mapping[str, Any]) -> Response:
    """Answer those who do not ask for JSON, as browsers do."""
    rows = "".join(f"<tr><td>{key}</td><td>{json.dumps(value)}</td></tr>" for key, value in content.items())
    page = f"<html>\n<head></head><body>\n<h2>Properties</h2>\n<table>{rows}</table></body></html>\n"
    return Response(page, media_type="text/html")


def properties_reply(request: Request, content: Mapping[str, Any]) -> Response:
    """Answer with the properties that were asked for, in the form that was asked for.

    Args:
        request: Its `fields` names properties (or with `!` those to leave out), its Accept header the form.
        content: All properties.
    """
    chosen = choose_fields(content, request.query_params.get("fields", ""))
    return json_reply(chosen) if wants_json(request) else html_reply(chosen)


def choose_fields(content: Mapping[str, Any], fields: str) -> dict[str, Any]:
    """Reduce properties to those asked for.

    Args:
        content: All properties.
        fields: Names separated by commas, blanks or plus signs.
    """
    names = fields.replace(",", " ").replace("+", " ").split()
    wanted = {name for name in names if not name.startswith("!")}
    unwanted = {name[1:] for name in names if name.startswith("!")}
    return {key: value for key, value in content.items() if key not in unwanted and (not wanted or key in wanted)}


def wants_json(request: Request) -> bool:
    """Tell whether JSON is asked for by name; the server prefers HTML for `*/*`."""
    return "application/json" in request.headers.get("accept", "")


async def json_body(request: Request, doing: str) -> dict[str, Any]:
    """Read a JSON object from a request.

    Args:
        request: The request.
        doing: What failed if it is none, e.g. "Could not submit job".
    """
    raw = await request.body()
    if raw and not request.headers.get("content-type", "").startswith("application/json"):
        raise UnicoreError(415)
    text = raw.decode(errors="replace")
    cause = f"A JSONObject text must begin with '{{' at {min(len(text), 1)} [character {min(len(text), 1) + 1} line 1]"
    value: Any = None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if text.lstrip().startswith("{"):
            cause = f"{error.msg} at {error.pos} [character {error.colno} line {error.lineno}]"
    if not isinstance(value, dict):
        raise UnicoreError(500, f"{doing}: org.json.JSONException: {cause}")
    return value


def link(href: str, description: str = "") -> dict[str, str]:
    """Give one link of a `_links` object."""
    return {"href": href} | ({"description": description} if description else {})


def listing(request: Request, base: str, name: str, urls: list[str]) -> Response:
    """Answer with one page of a list of resources.

    Args:
        request: Its `offset` and `num` choose the page.
        base: The list's URL.
        name: The key of the list.
        urls: All of them.
    """
    offset, num = int_parameter(request, "offset", 0), int_parameter(request, "num", PAGE)
    page = urls[offset : offset + num]
    links = {"self": link(f"{base}/?offset={offset}&num={num}")}
    rest = len(urls) - offset - num
    if rest > 0:
        links["next"] = link(f"{base}/?offset={offset + num}&num={min(num, rest)}")
    if offset > 0:
        links["previous"] = link(f"{base}/?offset={max(0, offset - num)}&num={num}")
    return properties_reply(request, {name: page, "_links": links})


def int_parameter(request: Request, name: str, default: int) -> int:
    """Read a number from the query; what is none is not found, as in JAX-RS."""
    try:
        return int(request.query_params.get(name, default))
    except ValueError:
        raise UnicoreError(404) from None


def iso_time(seconds: float) -> str:
    """Write a point in time as UNICORE does: no colon in the offset."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S%z")


def parse_iso_time(text: str) -> float:
    """Read a point in time that UNICORE could have written.

    Raises:
        ValueError: It could not.
    """
    for form in ("%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%d %H:%M"):
        try:
            return datetime.strptime(text, form).astimezone(timezone.utc).timestamp()
        except ValueError:
            continue
    raise ValueError(f"Unparseable date: {text!r}")


def java_date(seconds: float) -> str:
    """Write a point in time as `Date.toString` does."""
    return time.strftime("%a %b %d %H:%M:%S UTC %Y", time.gmtime(seconds))
