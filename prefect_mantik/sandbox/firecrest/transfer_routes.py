"""The operations on files that the server hands to the batch system."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid1, uuid4

from starlette.responses import Response

from prefect_mantik.sandbox.firecrest import file_views, transfers
from prefect_mantik.sandbox.firecrest.file_requests import Fields, body_fields, query_text
from prefect_mantik.sandbox.firecrest.files import Account, words
from prefect_mantik.sandbox.firecrest.replies import FirecrestError, json_reply, validation_error
from prefect_mantik.sandbox.firecrest.service import Call, CallHandler
from prefect_mantik.sandbox.firecrest.submission import JobDescription, submit_by_api, submit_with_sbatch
from prefect_mantik.sandbox.firecrest.transfer_store import MAX_PART_SIZE, ObjectStore
from prefect_mantik.sandbox.firecrest.transfers import Transfer

METHOD = "s3"
_METHODS = ("s3", "streamer", "wormhole")
_PREFIX = "/filesystem/{system}/transfer"


async def cp(call: Call) -> Response:
    """Copy files."""
    fields, source, target = await _two_paths(call)
    denied = _denied(call, "cp", source, target)
    return _answer(call, transfers.copy(source, target, denied, dereference=fields.flag("dereference")))


async def mv(call: Call) -> Response:
    """Move files."""
    _, source, target = await _two_paths(call)
    denied = _denied(call, "mv", source, target) or _denied(call, "mv", None, source)
    return _answer(call, transfers.move(source, target, denied))


async def rm(call: Call) -> Response:
    """Remove files."""
    path = _account(call).check(query_text(call, "path"), call.at.name)
    return _answer(call, transfers.remove(path, _denied(call, "rm", None, path)), status=200)


async def compress(call: Call) -> Response:
    """Pack files."""
    fields, source, target = await _two_paths(call)
    transfer = transfers.compress(
        source,
        target,
        _denied(call, "tar", source, target),
        compression=fields.compression(),
        pattern=fields.text("matchPattern", default=""),
        dereference=fields.flag("dereference"),
    )
    return _answer(call, transfer)


async def extract(call: Call) -> Response:
    """Unpack an archive."""
    fields, source, target = await _two_paths(call)
    denied = _denied(call, "tar", source, f"{target}/{Path(source).name}")
    return _answer(call, transfers.extract(source, target, denied, compression=fields.compression()))


async def upload(call: Call) -> Response:
    """Take a large file through the store: the job that fetches it waits until it is there."""
    path, wanted = await _large(call)
    size = wanted.number("fileSize")
    if size is None:
        raise validation_error("body", "transferDirectives", "Field required", problem="missing")
    store = ObjectStore(call.at.site)
    key, upload_id = store.begin(call.login, Path(path).name)
    url = store.url(key)
    transfer = transfers.ingress(url, url, path, denied=bool(_denied(call, "cat", None, path)))
    found = {
        "partsUploadUrls": store.part_urls(key, upload_id, size),
        "completeUploadUrl": store.complete_url(key, upload_id),
        "maxPartSize": MAX_PART_SIZE,
    }
    return _answer(call, transfer, found)


async def download(call: Call) -> Response:
    """Give a large file through the store: a job brings it there."""
    path, _ = await _large(call)
    source = words(path)[0]
    size = file_views.status_of(_account(call), source, dereference=True)["size"]
    store = ObjectStore(call.at.site)
    key, upload_id = store.begin(call.login, source.name)
    urls = store.part_urls(key, upload_id, size)
    transfer = transfers.outgress(path, f"tmp/{uuid1()}/", urls, store.complete_url(key, upload_id))
    return _answer(call, transfer, {"downloadUrl": store.url(key)})


TRANSFER_ROUTES: list[tuple[str, str, CallHandler]] = [
    ("POST", f"{_PREFIX}/cp", cp),
    ("POST", f"{_PREFIX}/mv", mv),
    ("DELETE", f"{_PREFIX}/rm", rm),
    ("POST", f"{_PREFIX}/compress", compress),
    ("POST", f"{_PREFIX}/extract", extract),
    ("POST", f"{_PREFIX}/upload", upload),
    ("POST", f"{_PREFIX}/download", download),
]


def _account(call: Call) -> Account:
    return Account(call.at.site, call.login)


async def _two_paths(call: Call) -> tuple[Fields, str, str]:
    fields = await body_fields(call)
    return fields, _account(call).check(fields.source(), call.at.name), fields.text("targetPath")


async def _large(call: Call) -> tuple[str, Fields]:
    fields = await body_fields(call)
    path, wanted = fields.source(), fields.inner("transferDirectives")
    method = wanted.text("transferMethod")
    if method not in _METHODS:
        raise validation_error("body", "transferDirectives", "Input should be 's3'", problem="literal_error")
    if method != METHOD:
        raise FirecrestError(400, "Requested transfer method is not available.")
    return _account(call).check(path, call.at.name), wanted


def _denied(call: Call, program: str, source: str | None, target: str) -> str:
    """Say what a command would say that may not do it: to the operating system all users of the sandbox are one."""
    account = _account(call)
    for path, allowed in ((source, account.read), (target, account.change)):
        try:
            if path is not None:
                allowed(Path(path))
        except PermissionError:
            return f"{program}: '{path}': Permission denied"
        except FileNotFoundError:
            continue  # the command itself says so
    return ""


def _answer(call: Call, transfer: Transfer, found: dict[str, Any] | None = None, status: int = 201) -> Response:
    """Submit a job, and say where its logs will be."""
    home = call.at.site.home(call.login)
    token = uuid4()
    output, error = (f"{home}/.f7t_file_handling_job_{kind}{token}.log" for kind in ("", "error_"))
    description = JobDescription(
        name=transfer.name,
        working_directory=str(home),
        standard_input="/dev/null",
        standard_output=output,
        standard_error=error,
        env={"PATH": "/bin:/usr/bin/:/usr/local/bin/"},
        script=transfer.script,
    )
    submit = submit_with_sbatch if call.at.mode == "ssh" else submit_by_api
    number = submit(call.at.books, description, transfer.script, call.login)
    job = {
        "jobId": str(number),
        "system": call.at.name,
        "workingDirectory": str(home),
        "logs": {"outputLog": output, "errorLog": error},
    }
    more = {} if found is None else {"transferDirectives": {"transferMethod": METHOD, **found}}
    return json_reply({"transferJob": job, **more}, status)
