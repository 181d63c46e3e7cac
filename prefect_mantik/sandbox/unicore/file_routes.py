"""The storage resources and their files."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.responses import Response, StreamingResponse

from prefect_mantik.sandbox.unicore import files
from prefect_mantik.sandbox.unicore.replies import (
    UnicoreError,
    html_reply,
    int_parameter,
    json_body,
    json_reply,
    link,
    listing,
    properties_reply,
)
from prefect_mantik.sandbox.unicore.service import Call, no_content, not_here
from prefect_mantik.sandbox.unicore.storages import Settings, Storage

_OCTETS = "application/octet-stream"


async def storages(call: Call) -> Response:
    """List the caller's storages."""
    with_jobs = call.request.query_params.get("filter") == "all"
    names = call.at.storages.listed(call.caller, with_jobs=with_jobs)
    return listing(call.request, f"{call.base}/storages", "storages", [f"{call.base}/storages/{n}" for n in names])


async def storage(call: Call) -> Response:
    """Describe a storage."""
    return properties_reply(call.request, call.at.storages.describe(_storage(call), call.caller, call.base))


async def change_storage(call: Call) -> Response:
    """Set properties of a storage."""
    settings = call.at.storages.settings(_storage(call), call.caller)
    changes = await json_body(call.request, "Error setting properties")
    done = {}
    for name, value in changes.items():
        try:
            done[name] = _set(settings, name, value)
        except (TypeError, ValueError) as error:
            done[name] = f"FAILED: {error}"
    return json_reply(done)


def _set(settings: Settings, name: str, value: Any) -> str:
    if name == "umask":
        settings.umask = int(str(value), 8)
    elif name == "tags":
        settings.tags = [str(tag) for tag in value]
    else:
        return "Property not found or cannot be modified!"
    return "OK"


async def delete_storage(call: Call) -> Response:
    """Remove the directory of a job; other storages stay."""
    found = _storage(call)
    if found.entry is None:
        raise UnicoreError(403)
    files.delete(found.root)
    return no_content()


async def act(call: Call) -> Response:
    """Copy or rename a file."""
    found, name = _storage(call), call.request.path_params["action"]
    if name not in ("copy", "rename"):
        raise UnicoreError(404)
    body = await json_body(call.request, f"Error handling action: '{name}'")
    if "from" not in body or "to" not in body:
        return Response(status_code=400)
    try:
        source, target = (files.resolve(found.root, str(body[key])) for key in ("from", "to"))
        call.at.site.check_quota(target)
        if name == "copy":
            files.copy(source, target)
        else:
            source.replace(target)
    except (OSError, ValueError) as error:
        raise not_here(f"Error handling action: '{name}'", error) from None
    return no_content()


async def read(call: Call) -> Response:
    """Give the content of a file, or its properties, or a listing: as the Accept header says."""
    accept = call.request.headers.get("accept", "")
    found, path = _file(call, "Error downloading from" if _OCTETS in accept else "Error listing")
    if not path.exists():
        raise UnicoreError(404)
    if _OCTETS in accept:
        return await _content(call, path)
    properties = _properties(call, found, path)
    if "application/json" not in accept:
        return html_reply(properties)
    reply = json_reply(properties)
    if not properties["isDirectory"]:
        reply.headers["Accept-Ranges"] = "bytes"
    return reply


async def write(call: Call) -> Response:
    """Store a file with all the directories it needs, or change the permissions of one."""
    kind = call.request.headers.get("content-type", "")
    if not kind:
        raise UnicoreError(415)
    if kind.startswith("application/json"):
        return await _change(call)
    found, path = _file(call, "Error uploading to")
    what = f"Error uploading to '{_shown(call)}'"
    try:
        call.at.site.check_quota(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise OSError(f"java.io.FileNotFoundException: {path} (Is a directory)")
        # Readers see it grow, as they do at the real server.
        mode = 0o666 & ~call.at.storages.settings(found, call.caller).umask
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            async for chunk in call.request.stream():
                call.at.site.check_quota(path)
                file.write(chunk)
    except OSError as error:
        raise not_here(what, error) from None
    return no_content()


async def make_directory(call: Call) -> Response:
    """Make a directory."""
    found, path = _file(call, "Cannot create directory")
    try:
        call.at.site.check_quota(path)
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_here(f"Cannot create directory <{_shown(call)}>", error) from None
    name = call.request.path_params.get("path", "")
    return Response(status_code=201, headers={"Location": f"{call.base}/storages/{found.id}/files/{quote(name)}"})


async def delete(call: Call) -> Response:
    """Remove a file or a directory."""
    _, path = _file(call, "Cannot delete")
    try:
        files.delete(path)
    except OSError:
        cause = "eu.unicore.xnjs.ems.ExecutionException: Could not delete. (Command execution on TSI reported an error)"
        raise UnicoreError(500, f"Cannot delete <{_shown(call).lstrip('/')}>: {cause}") from None
    return no_content()


async def no_transfer(call: Call) -> Response:
    """Refuse transfers between sites and capability URLs: the sandbox has none."""
    _storage(call)
    raise UnicoreError(404)


def _storage(call: Call) -> Storage:
    return call.at.storages.find(call.request.path_params["storageId"], call.caller)


def _file(call: Call, doing: str) -> tuple[Storage, Path]:
    raw: bytes = call.request.scope.get("raw_path", b"")
    files.check_raw_path(raw, b"/files")
    found = _storage(call)
    if not found.root.is_dir():
        cause = "java.lang.NullPointerException (no further message available)"
        raise UnicoreError(500, f"{doing} '{_shown(call)}': {cause}")
    try:
        return found, files.resolve(found.root, call.request.path_params.get("path", ""))
    except ValueError as error:
        if call.request.method == "GET":
            raise UnicoreError(404) from None
        raise not_here(f"{doing} '{_shown(call)}'", error) from None


def _shown(call: Call) -> str:
    path: str = call.request.path_params.get("path", "")
    return f"/{path.lstrip('/')}"


async def _change(call: Call) -> Response:
    _, path = _file(call, "Error changing")
    changes = await json_body(call.request, "")
    if not path.exists():
        raise UnicoreError(404)
    return json_reply(files.change(path, changes))


def _properties(call: Call, found: Storage, path: Path) -> dict[str, object]:
    owner, group = call.caller.login, call.caller.group
    properties = files.describe(path, owner, group)
    own = f"{call.base}/storages/{found.id}"
    links = {"parentStorage": link(own, "Parent Storage")}
    if properties["isDirectory"]:
        limit = files.ROOT_LIMIT if path == found.root else files.DIRECTORY_LIMIT
        offset, num = int_parameter(call.request, "offset", 0), int_parameter(call.request, "num", limit)
        listed = files.content(found.root, path, owner, group, slice(offset, offset + num))
        properties["content"] = listed
        links["self"] = link(f"{own}/files?offset={offset}&num={len(listed)}")
        # There whether or not there is more.
        links["next"] = link(f"{own}/files?offset={offset + len(listed)}&num={len(listed)}")
    return {**properties, "metadata": {}, "_links": links}


async def _content(call: Call, path: Path) -> Response:
    size = files.size_of(path)
    if size is None:
        return Response(status_code=406, headers={"Vary": "Accept"})
    header = call.request.headers.get("range")
    if header is None:
        return StreamingResponse(files.read_chunks(path), media_type=_OCTETS)
    offset, length = files.parse_range(header, size)
    if offset > 0 and offset >= size:
        # The server goes on skipping towards a place that it never reaches.
        await asyncio.sleep(call.at.switches.unicore_past_end)
    return StreamingResponse(files.read_chunks(path, offset, length), 206, media_type=_OCTETS)
