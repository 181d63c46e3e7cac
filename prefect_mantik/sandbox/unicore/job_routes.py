"""The job resources."""

from __future__ import annotations

import re
import time
from urllib.parse import unquote_plus

from starlette.responses import Response

from prefect_mantik.sandbox.unicore import job_view
from prefect_mantik.sandbox.unicore.books import Entry
from prefect_mantik.sandbox.unicore.description import without_data
from prefect_mantik.sandbox.unicore.replies import (
    UnicoreError,
    json_body,
    json_reply,
    listing,
    parse_iso_time,
    properties_reply,
)
from prefect_mantik.sandbox.unicore.service import Call, no_content


async def jobs(call: Call) -> Response:
    """List the caller's jobs; of several tags each one is needed."""
    wanted = tag_patterns(call.request.query_params.get("tags", ""))
    entries = call.at.books.listed(call.caller.login) if call.caller.login else []
    urls = [f"{call.base}/jobs/{entry.id}" for entry in entries if has_tags(entry.tags, wanted)]
    return listing(call.request, f"{call.base}/jobs", "jobs", urls)


async def submit(call: Call) -> Response:
    """Take a job; whether it is any good shows later."""
    call.at.check_submission(call.caller)
    if call.request.path_params.get("siteId", call.at.target_system(call.caller)) != call.at.target_system(call.caller):
        raise UnicoreError(404)
    description = await json_body(call.request, "Could not submit job")
    entry = call.at.books.submit(description, call.caller)
    return Response(status_code=201, headers={"Location": f"{call.base}/jobs/{entry.id}"})


async def job(call: Call) -> Response:
    """Describe a job."""
    entry = call.job()
    lag = call.at.switches.unicore_status_lag
    content = job_view.describe(entry, call.base, call.at.target_system(call.caller), lag)
    return properties_reply(call.request, content)


async def change(call: Call) -> Response:
    """Set properties of a job, and say of each how it went."""
    entry = call.job()
    changes = await json_body(call.request, "Error setting properties")
    return json_reply({name: _set(entry, name, value) for name, value in changes.items()})


async def delete(call: Call) -> Response:
    """End a job and remove its directory."""
    await call.at.books.delete(call.job())
    return no_content()


async def into_allocation(call: Call) -> Response:
    """Refuse jobs for a job that is no allocation: the sandbox has none."""
    call.job()
    raise UnicoreError(
        500, "Could not submit task into allocation: java.lang.Exception: This job is not an allocation."
    )


async def details(call: Call) -> Response:
    """Give what the batch system says of a job."""
    return json_reply(job_view.details(call.job().job))


async def submitted(call: Call) -> Response:
    """Give the job description."""
    return json_reply(without_data(call.job().description))


async def action(call: Call) -> Response:
    """Start, abort or restart a job."""
    if not call.request.headers.get("content-type", "").startswith("application/json"):
        raise UnicoreError(415)
    entry = call.job()
    name = call.request.path_params["action"]
    if name == "start":
        entry.start.set()
    elif name == "abort":
        call.at.books.abort(entry)
    elif name == "restart":
        call.at.books.restart(entry)
    else:
        raise UnicoreError(404)
    return no_content({"Content-Type": "application/json"})


def tag_patterns(text: str) -> list[re.Pattern[str]]:
    """Read the tags of a query, as the server does: decoded a second time, and then as patterns of SQL.

    Args:
        text: Tags separated by commas, blanks or plus signs.

    Raises:
        UnicoreError: With status 500 for a percent sign.
    """
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        cause = "java.lang.IllegalArgumentException: URLDecoder: Incomplete trailing escape (%) pattern"
        raise UnicoreError(500, f"Error: {cause}")
    words = unquote_plus(text).replace(",", " ").split()
    return [re.compile(re.escape(f",{word},").replace("%", ".*").replace("_", ".")) for word in words]


def has_tags(tags: list[str], wanted: list[re.Pattern[str]]) -> bool:
    """Tell whether a job has all tags that are wanted."""
    stored = f",{','.join(tags)},"
    return all(pattern.search(stored) for pattern in wanted)


def _set(entry: Entry, name: str, value: object) -> str:
    if name == "tags" and isinstance(value, list):
        entry.tags = [str(tag) for tag in value]
        return "OK"
    if name == "terminationTime":
        try:
            entry.expires = max(parse_iso_time(str(value)), time.time())
        except ValueError as error:
            return f"FAILED: {error}"
        return "OK"
    if name == "acl":
        return "OK"
    return "Property not found or cannot be modified!"
