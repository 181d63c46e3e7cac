"""A job as its properties show it: a little later than it is, and in UNICORE's words."""

from __future__ import annotations

import time
from typing import Any

from prefect_mantik.sandbox.jobs import Job, JobState
from prefect_mantik.sandbox.unicore.books import Entry
from prefect_mantik.sandbox.unicore.replies import iso_time, java_date, link

# The server itself brings these about; of the others it learns when it asks the batch system.
_AT_ONCE = {JobState.CREATED, JobState.STAGING_IN, JobState.READY}
_WORDS = {
    JobState.CREATED: "READY",
    JobState.STAGING_IN: "STAGINGIN",
    JobState.READY: "READY",
    JobState.QUEUED: "QUEUED",
    JobState.RUNNING: "RUNNING",
    JobState.STAGING_OUT: "STAGINGOUT",
    JobState.COMPLETED: "SUCCESSFUL",
}
_DIED = {JobState.CANCELLED, JobState.TIMEOUT, JobState.OUT_OF_MEMORY, JobState.NODE_FAIL}
_NOT_NORMAL = "Job did not complete normally on BSS, please check standard error file and job log for more information."
_UNKNOWN = "N/A"


def describe(entry: Entry, base: str, site_id: str, lag: float) -> dict[str, Any]:
    """Give the properties of a job.

    Args:
        entry: The job.
        base: The site's base URL.
        site_id: The target system it belongs to.
        lag: How many seconds the server learns late of what happens in the batch system.
    """
    job = entry.job
    # Once it has told the batch system, the server does not wait for the end of an aborted job.
    state = JobState.CANCELLED if entry.aborted else shown_state(job, lag)
    undefined = job.hold == "UNDEFINED" and not state.ended
    known = entry.understood
    early = (JobState.CREATED, JobState.STAGING_IN, JobState.READY)
    submitted = state not in early and _was_queued(job) and not (known and known.late_problem)
    return {
        "status": "UNDEFINED" if undefined else _WORDS.get(state, "FAILED"),
        "statusMessage": "Job aborted." if entry.aborted else _message(job) if state.ended else "",
        **_exit_code(job, state),
        "owner": entry.owner,
        "acl": [],
        "tags": entry.tags,
        "name": job.request.name if known is None else known.name,
        "jobType": "BATCH" if known is None else known.job_type,
        "submissionTime": iso_time(job.submitted),
        "terminationTime": iso_time(entry.expires),
        "submissionPreferences": entry.preferences,
        "queue": job.request.queue if submitted and not job.request.on_login_node else _UNKNOWN,
        "batchSystemID": _batch_id(job) if submitted else _UNKNOWN,
        "consumedTime": _consumed(job, state),
        "log": _log(entry, lag),
        "_links": _links(f"{base}/jobs/{entry.id}", base, entry.id, site_id),
    }


def shown_state(job: Job, lag: float) -> JobState:
    """Give the state that the server knows of.

    Args:
        job: The job.
        lag: How many seconds late it learns of what happens in the batch system.
    """
    now = time.time()
    shown = job.history[0][1]
    for moment, state in job.history:
        if moment + (0 if state in _AT_ONCE else lag) <= now:
            shown = state
    return shown


def details(job: Job) -> dict[str, Any]:
    """Give what the batch system says of a job."""
    return {
        "JobId": str(job.number),
        "JobName": job.request.name,
        "UserId": job.owner,
        "JobState": job.word(0) if job.kind == "FirecREST" else job.state.value,
        "Partition": job.request.queue,
        "NumNodes": str(job.request.nodes),
        "TimeLimit": str(int(job.request.walltime)),
        "WorkDir": str(job.directory),
    }


def _was_queued(job: Job) -> bool:
    return any(state in (JobState.QUEUED, JobState.RUNNING) for _, state in job.history)


def _batch_id(job: Job) -> str:
    return f"INTERACTIVE_{job.site}-login_{job.pid or 0}" if job.request.on_login_node else str(job.number)


def _message(job: Job) -> str:
    if job.state is JobState.COMPLETED:
        return ""
    if job.state in _DIED or (job.state is JobState.FAILED and job.ending is not None):
        return _NOT_NORMAL
    if job.state is JobState.FAILED and job.started is None and job.message.startswith("User pre-command"):
        return f"Pre-command(s) failed: [Command exited with non-zero exit code: <{job.exit_code}>. {_where(job)}]"
    if job.state is JobState.FAILED and job.started is not None and job.message.startswith("User application"):
        return f"User application exited with non-zero exit code: <{job.exit_code}>. {_where(job)}"
    return job.message


def _where(job: Job) -> str:
    return f"More information might be available in the job's working directory '{job.directory}/'"


def _exit_code(job: Job, state: JobState) -> dict[str, str]:
    ran = job.exit_code is not None and job.started is not None and job.ending is None
    known = ran and state in (JobState.COMPLETED, JobState.FAILED)
    return {"exitCode": str(job.exit_code)} if known else {}


def _consumed(job: Job, shown: JobState) -> dict[str, str]:
    begun: dict[JobState, float] = {}
    spent: dict[JobState, float] = {}
    for (moment, state), following in zip(job.history, [*job.history[1:], None], strict=True):
        begun.setdefault(state, moment)
        if following is not None:
            spent[state] = spent.get(state, 0.0) + following[0] - moment
    total = job.history[-1][0] - job.history[0][0]

    def seconds(state: JobState) -> str:
        return str(int(spent[state])) if state in spent else _UNKNOWN

    return {
        "total": str(int(total)) if shown is JobState.COMPLETED else _UNKNOWN,
        "stage-in": seconds(JobState.STAGING_IN)
        if JobState.STAGING_IN in begun
        else ("0" if job.started else _UNKNOWN),
        "preCommand": _UNKNOWN,
        "queued": seconds(JobState.QUEUED),
        "main": seconds(JobState.RUNNING) if shown.ended else _UNKNOWN,
        "postCommand": _UNKNOWN,
        "stage-out": seconds(JobState.STAGING_OUT) if shown is JobState.COMPLETED else _UNKNOWN,
    }


def _log(entry: Entry, lag: float) -> list[str]:
    job = entry.job
    now = time.time()
    lines = list(job.events)
    for number, (moment, state) in enumerate(job.history):
        if moment + (0 if state in _AT_ONCE else lag) <= now:
            lines += [(moment, text) for text in _lines_of(entry, state, first=number == 0)]
    return [f"{java_date(moment)}: {text}" for moment, text in sorted(lines, key=lambda line: line[0])]


def _lines_of(entry: Entry, state: JobState, *, first: bool) -> list[str]:
    job = entry.job
    lines = ["Created with type 'JSON'", _client(entry)] if first else []
    if state is JobState.STAGING_IN:
        lines += ["Status set to PREPROCESSING (staging in)."]
    elif state is JobState.READY:
        lines += ["Status set to READY."]
    elif state is JobState.QUEUED:
        asked = entry.understood.resources if entry.understood else f"Queue={job.request.queue}"
        executable = str(entry.description.get("Executable", ""))
        lines += ["Status set to PENDING.", f"Requesting resources: [{asked}]"]
        if entry.understood is not None and entry.understood.late_problem:
            return lines
        lines += [f"Submitted executable: {executable}"]
        lines += ["TSI reply: submission OK.", f"Submitted to TSI as [{job.owner} {job.owner}] with BSSID={job.number}"]
    elif state is JobState.COMPLETED:
        lines += _ending(job, ["End of processing - successful."])
        spent = _consumed(job, state)
        parts = ("Total", "total"), ("Stage-in", "stage-in"), ("Queued", "queued"), ("Main", "main")
        told = [(title, spent[key]) for title, key in (*parts, ("Stage-out", "stage-out"))]
        lines += [", ".join(f"{title}: {value} sec." for title, value in told if value != _UNKNOWN)]
    elif state.ended and not entry.aborted:
        lines += _ending(job, ["Status set to DONE - failure."])
    return lines


def _ending(job: Job, lines: list[str]) -> list[str]:
    return [*(f"Exit code {code}" for code in _exit_code(job, job.state).values()), *lines]


def _client(entry: Entry) -> str:
    return (
        f"Client: Name: {entry.owner}\nXlogin: uid: [{entry.login}], gids: [hpc, addingOSgroups: true]\n"
        f"Role: user: role from attribute source\nSecurity tokens: User: {entry.owner}\n"
        "Client's original IP: 127.0.0.1"
    )


def _links(own: str, base: str, job_id: str, site_id: str) -> dict[str, dict[str, str]]:
    return {
        "self": link(own),
        "details": link(f"{own}/details", "BSS job details"),
        "submitted": link(f"{own}/submitted", "Submitted job description"),
        "action:start": link(f"{own}/actions/start", "Start"),
        "action:abort": link(f"{own}/actions/abort", "Abort"),
        "action:restart": link(f"{own}/actions/restart", "Restart"),
        "forwarding": link(f"{own}/forward-port", "Start port forwarding"),
        "workingDirectory": link(f"{base}/storages/{job_id}-uspace", "Working directory"),
        "parentTSS": link(f"{base}/sites/{site_id}", "Parent TSS"),
    }
