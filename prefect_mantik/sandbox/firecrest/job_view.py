"""A job as FirecREST shows it: what it reads out of the answers of Slurm's commands, or of Slurm's own REST API."""

from __future__ import annotations

import time
from typing import Any

from prefect_mantik.sandbox.firecrest.books import Books, Entry, Group
from prefect_mantik.sandbox.firecrest.job_environment import node_names
from prefect_mantik.sandbox.jobs import JobState

_WAITING = {JobState.CREATED, JobState.STAGING_IN, JobState.READY, JobState.QUEUED}
_TERM = 15
_KILL = 9
# What Slurm's REST API gives for a time that never was.
_NEVER = 4294967294
_OUT_OF_MEMORY = 125
Exit = tuple[int | None, int | None]


def shown_by_commands(books: Books, entries: list[Entry]) -> list[dict[str, Any]]:
    """Describe jobs as `squeue` and `sacct` know them.

    Args:
        books: The site's jobs.
        entries: Those to describe.
    """
    shown = []
    waiting: dict[Group, list[Entry]] = {}
    for entry in entries:
        if entry.group is None or entry.begun:
            shown.append(_by_commands(books, entry, job_id(entry)))
        else:
            waiting.setdefault(entry.group, []).append(entry)
    for group, tasks in waiting.items():
        shown += _rest_of_array(books, group, tasks)
    return shown


def shown_by_api(books: Books, entries: list[Entry]) -> list[dict[str, Any]]:
    """Describe jobs as Slurm's REST API knows them.

    Args:
        books: The site's jobs.
        entries: Those to describe.
    """
    return [_by_api(books, entry) for entry in sorted(entries, key=lambda entry: entry.number)]


def job_id(entry: Entry) -> str:
    """Give the id of a job or of a task of an array as Slurm's commands write it."""
    return str(entry.number) if entry.group is None else f"{entry.group.number}_{entry.index}"


def state_of(entry: Entry) -> str:
    """Say the state in the batch system's word."""
    job = entry.job
    if job.killed is not None:
        return JobState.CANCELLED.value
    if job.state in _WAITING:
        return "PENDING"
    if job.state.ended:
        return job.state.value
    return "SUSPENDED" if job.hold else "RUNNING"


def reason_of(books: Books, entry: Entry) -> str:
    """Say why a job waits."""
    job, site = entry.job, books.site
    if entry.begun:
        return "BeginTime" if job.attempts else entry.kept_reason
    if not entry.eligible and (unmet := books.unmet(entry)):
        return unmet
    if books.throttled(entry):
        return "JobArrayTaskLimit"
    if entry.waits_for_ever:
        return "PartitionTimeLimit"
    if job.hold:
        return job.hold_reason or "JobHeldUser"
    if job.not_before > time.time():
        return "BeginTime"
    if site.maintenance:
        return "ReqNodeNotAvail, Reserved for maintenance"
    if site.queue_reason:
        return site.queue_reason
    place = site.place_in_queue(job)
    return "None" if place is None else "Resources" if place == 0 else "Priority"


def ended_at(entry: Entry) -> float | None:
    """Give when a job ended as far as anybody is told."""
    return entry.job.killed if entry.job.killed is not None else entry.job.ended


def _by_commands(books: Books, entry: Entry, shown_id: str) -> dict[str, Any]:
    job, word = entry.job, state_of(entry)
    code, signal = _exit(entry, word)
    if word == "CANCELLED" and job.killer != "slurm":
        word = f"CANCELLED by {books.site.uid(job.killer or job.owner)}"
    started, pending = job.started is not None, word == "PENDING"
    time_fields = _times(books, entry, pending)
    return {
        "jobId": shown_id,
        "name": entry.name or "allocation",
        "status": {
            "state": word,
            "stateReason": reason_of(books, entry),
            "exitCode": None if pending else code,
            "interruptSignal": None if pending else signal,
        },
        "tasks": _steps(books, entry, shown_id, api=False) if started else [],
        "time": time_fields,
        **_common(books, entry),
        "allocationNodes": job.request.nodes if started or pending else 0,
        "group": job.owner,
        "nodes": node_names(books.site.name, job.request.nodes) if started else "" if pending else "None assigned",
        "killRequestUser": None,
    }


def _rest_of_array(books: Books, group: Group, waiting: list[Entry]) -> list[dict[str, Any]]:
    """Describe the tasks that still wait: once as `sacct` knows them, and once as `squeue` does."""
    limit = "" if group.limit is None else f"%{group.limit}"
    described = _by_commands(books, waiting[0], str(group.number))
    past = {
        **described,
        "jobId": f"{group.number}_[{_ranges([entry.index for entry in waiting])}{limit}]",
        "status": {"state": "PENDING", "stateReason": "None", "exitCode": 0, "interruptSignal": 0},
        "time": {**described["time"], "start": None, "end": None, "suspended": 0},
        "allocationNodes": 0,
        "nodes": "None assigned",
    }
    return [past, described]


def _by_api(books: Books, entry: Entry) -> dict[str, Any]:
    job, word = entry.job, state_of(entry)
    if job.attempts:
        word = "NODE_FAIL"  # the first attempt hides all that came after it
    code, signal = _api_exit(_exit(entry, word))
    started, pending = job.started is not None or word == "NODE_FAIL", word == "PENDING"
    killed_by = (job.killer or job.owner) if word == "CANCELLED" and job.killer != "slurm" else ""
    waits = {"elapsed": None, "start": 0, "end": 0, "suspended": 0, "limit": int(entry.limit)}
    return {
        "jobId": str(entry.number),
        "name": entry.name or ("" if pending else "allocation"),
        "status": {
            "state": word,
            "stateReason": "None" if job.attempts else reason_of(books, entry),
            "exitCode": code,
            "interruptSignal": signal,
        },
        "tasks": None if pending else _steps(books, entry, str(entry.number), api=True) if started else [],
        "time": waits if pending else _api_times(books, entry),
        **_common(books, entry),
        "allocationNodes": job.request.nodes if started else 0,
        "group": None if pending else job.owner,
        "nodes": node_names(books.site.name, job.request.nodes) if started else "" if pending else "None assigned",
        "killRequestUser": None if pending else killed_by,
    }


def _common(books: Books, entry: Entry) -> dict[str, Any]:
    job = entry.job
    return {
        "account": entry.account,
        "cluster": books.site.name,
        "partition": job.request.queue,
        "user": job.owner,
        "workingDirectory": str(entry.workdir),
        "priority": 0 if job.hold and not entry.begun else 1,
    }


def _exit(entry: Entry, word: str) -> Exit:
    job = entry.job
    if word == "FAILED":
        if job.signal is not None:
            return 0, job.signal
        return 1 if job.exit_code is None else job.exit_code, 0
    if word == "NODE_FAIL":
        return 1, 0
    return 0, _OUT_OF_MEMORY if word == "OUT_OF_MEMORY" else 0


def _api_exit(codes: Exit) -> Exit:
    code, signal = codes
    return (code, None) if not signal else (None, signal)


def _times(books: Books, entry: Entry, pending: bool) -> dict[str, Any]:
    job = entry.job
    if pending:
        start = _estimated_start(books, entry)
        end = None if start is None else start + int(entry.limit)
        return {"elapsed": 0, "start": start, "end": end, "suspended": None, "limit": int(entry.limit)}
    end = _seconds(ended_at(entry))
    held = int(job.suspended + (time.time() - job.held if job.held is not None and not entry.over else 0))
    until = time.time() if end is None else end
    elapsed = 0 if job.started is None else max(0, int(until - int(job.started)) - held)
    return {
        "elapsed": elapsed,
        "start": _seconds(job.started),
        "end": end,
        "suspended": held,
        "limit": int(entry.limit),
    }


def _api_times(books: Books, entry: Entry) -> dict[str, Any]:
    times = _times(books, entry, pending=False)
    if entry.job.attempts:
        start, end = (int(moment) for moment in entry.job.attempts[0])
        return {**times, "elapsed": end - start, "start": start, "end": end}
    return {**times, "start": _NEVER if times["start"] is None else times["start"], "end": times["end"] or 0}


def _estimated_start(books: Books, entry: Entry) -> int | None:
    """Give when a job that waits is expected to start, where the batch system has an idea of it."""
    reason = reason_of(books, entry)
    if reason == "BeginTime":
        return int(max(entry.begin, entry.job.not_before))
    if reason != "Resources":
        return None
    busy = (other for other in books.all() if other.job.started is not None and not other.over)
    return min((int((other.job.started or 0) + other.limit) for other in busy), default=None)


def _steps(books: Books, entry: Entry, shown_id: str, *, api: bool) -> list[dict[str, Any]]:
    job, word = entry.job, state_of(entry)
    times = _api_times(books, entry) if api else _times(books, entry, pending=False)
    word, codes = _batch_step(entry, "NODE_FAIL" if api and job.attempts else word)
    if api and codes == (_KILL, 0):
        codes = (128 + _KILL, 0)
    steps = [_step(f"{shown_id}.batch", "batch", word, codes, times, api=api)]
    known = [] if api and job.attempts else books.site.surroundings.steps_of(job.number)
    own_steps = (step for step in known if step[1] >= int(job.started or 0))  # and not those of an earlier attempt
    for number, (name, start, end, code) in enumerate(own_steps):
        over = ended_at(entry) if end is None else end
        if end is None:
            state, exits = ("RUNNING", (0, 0)) if over is None else ("CANCELLED", (0, _TERM))
        else:
            state, exits = ("FAILED" if code else "COMPLETED"), (code or 0, 0)
        stop = _seconds(over)
        elapsed = int(time.time() if stop is None else stop) - start
        own = {"elapsed": max(0, elapsed), "start": start, "end": (stop or 0) if api else stop, "suspended": 0}
        steps.append(_step(f"{shown_id}.{number}", name, state, exits, own, api=api))
    return steps


def _step(step_id: str, name: str, state: str, codes: Exit, times: dict[str, Any], *, api: bool) -> dict[str, Any]:
    code, signal = _api_exit(codes) if api else codes
    return {
        "id": step_id,
        "name": name,
        "status": {"state": state, "stateReason": None, "exitCode": code, "interruptSignal": signal},
        "time": {**times, "limit": None},
    }


def _batch_step(entry: Entry, word: str) -> tuple[str, Exit]:
    signal = entry.job.signal
    if word == "FAILED" and signal is not None:
        return "CANCELLED", (0, signal)
    if word == "TIMEOUT":
        return ("CANCELLED", (0, _TERM)) if signal == _TERM else ("FAILED", (_KILL, 0))
    if word == "NODE_FAIL":
        return "CANCELLED", (None, None)
    if word in ("CANCELLED", "PREEMPTED"):
        return "CANCELLED", (0, _TERM)
    return word, _exit(entry, word)


def _ranges(indices: list[int]) -> str:
    parts: list[list[int]] = []
    for index in indices:
        if parts and index == parts[-1][-1] + 1:
            parts[-1].append(index)
        else:
            parts.append([index])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _seconds(moment: float | None) -> int | None:
    return None if moment is None else int(moment)
