"""The operations on files that the server runs as commands on the login node, while the caller waits."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from starlette.responses import Response

from prefect_mantik.sandbox.firecrest import file_changes, file_views
from prefect_mantik.sandbox.firecrest.file_requests import body_fields, form_file, query_flag, query_number, query_text
from prefect_mantik.sandbox.firecrest.files import MAX_OPS_FILE_SIZE, Account, words
from prefect_mantik.sandbox.firecrest.replies import FirecrestError, json_reply, no_content
from prefect_mantik.sandbox.firecrest.service import TIMED_OUT, Call, CallHandler
from prefect_mantik.sandbox.firecrest.transfer_routes import TRANSFER_ROUTES

_PREFIX = "/filesystem/{system}/ops"


async def ls(call: Call) -> Response:
    """List a directory."""
    account, path = _asked(call)
    listed = file_views.list_files(
        account,
        path,
        hidden=query_flag(call, "showHidden"),
        recursive=query_flag(call, "recursive"),
        numeric=query_flag(call, "numericUid"),
        dereference=query_flag(call, "dereference"),
    )
    return _output(listed)


async def stat(call: Call) -> Response:
    """Give the numbers of a file."""
    account, path = _asked(call)
    return _output(file_views.status_of(account, path, dereference=query_flag(call, "dereference")))


async def head(call: Call) -> Response:
    """Give the beginning of a file."""
    lines, size, rest = _span(call, "skipTrailing")
    account, path = _asked(call)
    data = file_views.head(account, path, lines=lines, size=size, rest=rest)
    number = next((each for each in (lines, size) if each is not None), None)
    end = 10 if number is None else -number if rest else number
    return await _excerpt(call, data, size, 0, end)


async def tail(call: Call) -> Response:
    """Give the end of a file."""
    lines, size, rest = _span(call, "skipHeading")
    account, path = _asked(call)
    data = file_views.tail(account, path, lines=lines, size=size, rest=rest)
    number = next((each for each in (lines, size) if each is not None), None)
    start = 10 if number is None else number if rest else -number
    return await _excerpt(call, data, size, start, -1)


async def view(call: Call) -> Response:
    """Give (a part of) a file as text."""
    account, path = _asked(call)
    offset = query_number(call, "offset") or 0
    asked = query_number(call, "size")
    size = MAX_OPS_FILE_SIZE if asked is None else asked
    if offset < 0:
        raise FirecrestError(400, "`offset` value must be an integer value equal or greater than 0")
    if size <= 0:
        raise FirecrestError(400, "`size` value must be an integer value greater than 0")
    if size > MAX_OPS_FILE_SIZE:
        raise FirecrestError(400, f"`size` value must be less than {MAX_OPS_FILE_SIZE} bytes")
    text, fetched = file_views.view(account, path, size=size, offset=offset)
    await _check_size(call, fetched)
    return _output(text)


async def checksum(call: Call) -> Response:
    """Give the checksum of a file."""
    account, path = _asked(call)
    digest = await asyncio.to_thread(file_views.checksum, account, path)
    return _output({"algorithm": "SHA256", "checksum": digest})


async def file(call: Call) -> Response:
    """Say what a file is."""
    return _output(file_views.kind(*_asked(call)))


async def download(call: Call) -> Response:
    """Give a file as it is."""
    content = file_views.content(*_asked(call))
    await _check_size(call, len(content))
    return Response(content, media_type="application/octet-stream")


async def upload(call: Call) -> Response:
    """Store a file."""
    account, directory = _account(call), query_text(call, "path")
    name, content = await form_file(call)
    account.check(directory, call.at.name)
    if len(content) > MAX_OPS_FILE_SIZE:
        raise FirecrestError(413, "File to upload is too large.")
    file_changes.write(account, words(f"{directory}/{name}")[0], content)
    if not content:
        # The server has nothing to send, so it never tells the command that this was all.
        await _time_out(call)
    return no_content()


async def mkdir(call: Call) -> Response:
    """Make a directory."""
    fields = await body_fields(call)
    account, path = _sent(call, fields.source())
    file_changes.make_directory(account, path, parents=fields.flag("parent"))
    return _described(account, path, 201)


async def symlink(call: Call) -> Response:
    """Make a symbolic link."""
    fields = await body_fields(call)
    account, target = _sent(call, fields.source())
    link = words(fields.text("linkPath"))[0]
    file_changes.make_link(account, str(target), link)
    return _described(account, link, 201)


async def chmod(call: Call) -> Response:
    """Change the permissions of a file."""
    fields = await body_fields(call)
    account, path = _sent(call, fields.source())
    file_changes.change_mode(account, path, fields.text("mode"))
    return _described(account, path)


async def chown(call: Call) -> Response:
    """Change whose a file is."""
    fields = await body_fields(call)
    account, path = _sent(call, fields.source())
    file_changes.change_owner(account, path, fields.text("owner", default=""), fields.text("group", default=""))
    return _described(account, path)


async def rm(call: Call) -> Response:
    """Remove a file or a directory."""
    account, path = _account(call), query_text(call, "path")
    file_changes.remove(account, words(account.check(path, call.at.name)))
    return no_content()


async def compress(call: Call) -> Response:
    """Pack a file or a directory."""
    fields = await body_fields(call)
    account, source = _sent(call, fields.source())
    await file_changes.compress(
        account,
        source,
        words(fields.text("targetPath"))[0],
        compression=fields.compression(),
        pattern=fields.text("matchPattern", default=""),
        dereference=fields.flag("dereference"),
        timeout=call.command_timeout,
    )
    return no_content()


async def extract(call: Call) -> Response:
    """Unpack an archive."""
    fields = await body_fields(call)
    account, source = _sent(call, fields.source())
    target = words(fields.text("targetPath"))[0]
    compression = fields.compression()
    await file_changes.extract(account, source, target, compression=compression, timeout=call.command_timeout)
    return no_content()


FILE_ROUTES: list[tuple[str, str, CallHandler]] = [
    ("GET", f"{_PREFIX}/ls", ls),
    ("GET", f"{_PREFIX}/stat", stat),
    ("GET", f"{_PREFIX}/head", head),
    ("GET", f"{_PREFIX}/tail", tail),
    ("GET", f"{_PREFIX}/view", view),
    ("GET", f"{_PREFIX}/checksum", checksum),
    ("GET", f"{_PREFIX}/file", file),
    ("GET", f"{_PREFIX}/download", download),
    ("POST", f"{_PREFIX}/upload", upload),
    ("POST", f"{_PREFIX}/mkdir", mkdir),
    ("POST", f"{_PREFIX}/symlink", symlink),
    ("PUT", f"{_PREFIX}/chmod", chmod),
    ("PUT", f"{_PREFIX}/chown", chown),
    ("DELETE", f"{_PREFIX}/rm", rm),
    ("POST", f"{_PREFIX}/compress", compress),
    ("POST", f"{_PREFIX}/extract", extract),
    *TRANSFER_ROUTES,
]


def _account(call: Call) -> Account:
    return Account(call.at.site, call.login)


def _asked(call: Call) -> tuple[Account, Path]:
    return _sent(call, query_text(call, "path"))


def _sent(call: Call, path: str) -> tuple[Account, Path]:
    account = _account(call)
    return account, words(account.check(path, call.at.name))[0]


def _output(content: Any, status: int = 200) -> Response:
    return json_reply({"output": content}, status)


def _described(account: Account, path: Path, status: int = 200) -> Response:
    return _output(file_views.describe(account, path, str(path)), status)


def _span(call: Call, skip: str) -> tuple[int | None, int | None, bool]:
    lines, size = query_number(call, "lines"), query_number(call, "bytes")
    if lines and size:
        raise FirecrestError(400, "Only one of `bytes` or `lines` can be specified.")
    return lines, size, query_flag(call, skip)


async def _excerpt(call: Call, data: bytes, size: int | None, start: int, end: int) -> Response:
    await _check_size(call, len(data))
    unit = "bytes" if size else "lines"
    text = data.decode(errors="replace")
    return _output({"content": text, "contentType": unit, "startPosition": start, "endPosition": end})


async def _check_size(call: Call, size: int) -> None:
    if size > MAX_OPS_FILE_SIZE:
        # More than this the server does not take from a command, which then waits to be rid of it.
        await _time_out(call)


async def _time_out(call: Call) -> None:
    await asyncio.sleep(call.command_timeout)
    raise FirecrestError(408, TIMED_OUT)
