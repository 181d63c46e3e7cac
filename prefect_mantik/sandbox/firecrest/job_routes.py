"""The compute resources: jobs."""

from __future__ import annotations

import asyncio
import json
import re
import time

from starlette.responses import Response

from prefect_mantik.sandbox.firecrest import job_view
from prefect_mantik.sandbox.firecrest.books import Entry
from prefect_mantik.sandbox.firecrest.replies import FirecrestError, json_reply, no_content, validation_errors
from prefect_mantik.sandbox.firecrest.service import TIMED_OUT, Call
from prefect_mantik.sandbox.firecrest.submission import read_job, script_of, submit_by_api, submit_with_sbatch

_FILE = "compute/router.py"
_WINDOWS = {"1h": 3600, "8h": 28800, "24h": 86400, "3d": 259200, "7d": 604800}
_EXPECTED_WINDOWS = "'1h', '8h', '24h', '3d' or '7d'"
_FAILED = "Error executing Slurm command."
_UNEXPECTED = "Unexpected Slurm command response."
_NO_ACCOUNTING = (
    f"{_UNEXPECTED} exit_status:1 std_err:sacct: error: slurm_persist_conn_open_without_init: failed to open "
    "persistent connection to host:localhost:6819: Connection refused\n"
    "sacct: error: Sending PersistInit msg: Connection refused\n"
)
_LONGEST_NAME = 235
_ID = "^[a-zA-Z0-9]+$"
_TRUE, _FALSE = ("true", "1", "on", "yes", "t", "y"), ("false", "0", "off", "no", "f", "n")


async def submit(call: Call) -> Response:
    """Take a job."""
    description = read_job(await call.request.body())
    books = call.at.books
    script = description.script
    if script is None:
        script = script_of(books, description.script_path or "", call.login)
        number = submit_with_sbatch(books, description, script, call.login)
    elif call.at.mode != "ssh":
        number = submit_by_api(books, description, script, call.login)
    elif not script:
        # The server never closes the standard input of an `sbatch` that it has nothing to give.
        await asyncio.sleep(call.command_timeout)
        raise FirecrestError(408, TIMED_OUT)
    else:
        number = submit_with_sbatch(books, description, script, call.login)
    return json_reply({"jobId": str(number)}, 201)


async def jobs(call: Call) -> Response:
    """List jobs: the caller's own or all, without those that ended too long ago."""
    query = call.request.query_params
    everybody = _flag(call, "allusers")
    window = query.get("time_window", "24h")
    if window not in _WINDOWS:
        problem = {"type": "enum", "loc": ("query", "time_window"), "msg": f"Input should be {_EXPECTED_WINDOWS}"}
        context = {"input": window, "ctx": {"expected": _EXPECTED_WINDOWS}}
        raise validation_errors([problem | context], *_where(call, 70, "get_jobs"))
    if len(query.get("name", "")) > _LONGEST_NAME:
        text = f"String should have at most {_LONGEST_NAME} characters"
        problem = {"type": "string_too_long", "loc": ("query", "name"), "msg": text, "input": query["name"]}
        raise validation_errors([problem], *_where(call, 70, "get_jobs"))
    _check_accounting(call)
    since = time.time() - _WINDOWS[window]
    found = [
        entry
        for entry in call.at.books.all()
        if (everybody or entry.job.owner == call.login)
        and query.get("account", entry.account) == entry.account
        and query.get("name", entry.name) == entry.name
        and _is_listed(entry, since)
    ]
    return _shown(call, found)


async def job(call: Call) -> Response:
    """Describe a job, whosever it is."""
    entries = _find(call, "get_job", 117, "sacct: fatal: Bad job/step specified: {id}\n", wrapped=True)
    _check_accounting(call)
    if not entries:
        raise FirecrestError(404, "Job not found.")
    return _shown(call, entries)


async def metadata(call: Call) -> Response:
    """Give the script of a job and the names of its files."""
    if call.at.mode == "rest":
        raise FirecrestError(501, "Not Implemented")
    entries = _find(call, "get_job_metadata", 147, "slurm_load_jobs error: Invalid job id specified\n", wrapped=True)
    if not entries:
        raise FirecrestError(404, "Job not found.")
    entry = entries[-1]
    request = entry.job.request
    number = entry.number if entry.group is None else entry.group.number
    described = {
        "jobId": str(number),
        "script": entry.script if entry.job.owner == call.login else "",
        "standardInput": str(entry.workdir / request.input),
        "standardOutput": str(entry.workdir / entry.output),
        "standardError": str(entry.workdir / entry.error),
    }
    return json_reply({"jobs": [described]})


async def cancel(call: Call) -> Response:
    """Have a job ended."""
    job_id = call.request.path_params["jobId"]
    entries = _find(call, "delete_job_cancel", 177, "scancel: error: Invalid job id {id}\n", wrapped=False)
    mine = [entry for entry in entries if entry.job.owner == call.login]
    live = [entry for entry in mine if not entry.over]
    for entry in live:
        call.at.books.cancel(entry, call.login)
    if live or call.at.mode != "ssh":
        return no_content()
    code, why = 0, "Invalid job id specified"
    if mine:
        why = "Job/step already completing or completed"
    elif entries:
        code, why = 210, "Access/permission denied"
    told = f"scancel: Terminating job {job_id}\nscancel: error: Kill job error on job id {job_id}: {why}\n"
    raise FirecrestError(500, f"{_UNEXPECTED} exit_status:{code} std_err:{told}")


async def attach(call: Call) -> Response:
    """Run a command beside a job that runs."""
    try:
        command = json.loads(await call.request.body())["command"]
    except (ValueError, LookupError, TypeError):
        problem = {"type": "missing", "loc": ("body", "command"), "msg": "Field required", "input": None}
        raise validation_errors([problem], *_where(call, 207, "attach")) from None
    job_id = call.request.path_params["jobId"]
    entries = _find(call, "attach", 207, "srun: error: Invalid job id {id}\n", wrapped=False)
    if call.at.mode != "ssh":
        return no_content()
    live = [entry for entry in entries if entry.job.owner == call.login and entry.job.pid is not None]
    if not live or live[0].over:
        waits = any(not entry.begun for entry in entries)
        why = "Job is pending execution" if waits else "Invalid job id specified"
        told = (
            f"srun: error: Unable to confirm allocation for job {job_id}: {why}\n"
            f"srun: Check SLURM_JOB_ID environment variable. Expired or invalid job {job_id}\n"
        )
        raise FirecrestError(500, f"{_UNEXPECTED} exit_status:1 std_err:{told}")
    try:
        code = await asyncio.wait_for(call.at.site.run_beside(live[0].job, str(command)), call.command_timeout)
    except asyncio.TimeoutError:
        raise FirecrestError(408, TIMED_OUT) from None
    if code:
        told = f"srun: error: {call.at.site.name}001: task 0: Exited with exit code {code}\n"
        raise FirecrestError(500, f"{_UNEXPECTED} exit_status:{code} std_err:{told}")
    return no_content()


def _find(call: Call, function: str, line: int, complaint: str, *, wrapped: bool) -> list[Entry]:
    """Give the jobs of the id in the path.

    Raises:
        FirecrestError: With status 400 for what no id can be, and 500 for what Slurm does not take for one.
    """
    job_id = call.request.path_params["jobId"]
    if not re.fullmatch(_ID[1:-1], job_id, re.ASCII):
        text = f"String should match pattern '{_ID}'"
        problem = {"type": "string_pattern_mismatch", "loc": ("path", "job_id"), "msg": text, "input": job_id}
        raise validation_errors([problem | {"ctx": {"pattern": _ID}}], *_where(call, line, function))
    if not job_id.isdigit():
        text = f"{_UNEXPECTED} exit_status:1 std_err:{complaint.format(id=job_id)}"
        raise FirecrestError(500, _FAILED, [text]) if wrapped else FirecrestError(500, text)
    return call.at.books.find(int(job_id))


def _shown(call: Call, entries: list[Entry]) -> Response:
    books = call.at.books
    if call.at.mode != "ssh":
        return json_reply({"jobs": job_view.shown_by_api(books, entries)})
    # The server cuts the lines of Slurm's commands at this sign.
    if any("|" in entry.name or "|" in str(entry.workdir) for entry in entries):
        raise FirecrestError(500, _FAILED)
    return json_reply({"jobs": job_view.shown_by_commands(books, entries)})


def _is_listed(entry: Entry, since: float) -> bool:
    if not entry.over:
        return True
    never = entry.job.started is None and not entry.eligible
    return not never and (job_view.ended_at(entry) or time.time()) >= since


def _check_accounting(call: Call) -> None:
    if call.at.site.accounting_down:
        raise FirecrestError(500, _FAILED, [_NO_ACCOUNTING])


def _flag(call: Call, name: str) -> bool:
    text = call.request.query_params.get(name, "false")
    if text.lower() in _TRUE + _FALSE:
        return text.lower() in _TRUE
    message = "Input should be a valid boolean, unable to interpret input"
    problem = {"type": "bool_parsing", "loc": ("query", name), "msg": message, "input": text}
    raise validation_errors([problem], *_where(call, 70, "get_jobs"))


def _where(call: Call, line: int, function: str) -> tuple[str, int, str, str]:
    tail = "/{job_id}" if "jobId" in call.request.path_params else ""
    return _FILE, line, function, f"{call.request.method} /compute/{{system_name}}/jobs{tail}"
