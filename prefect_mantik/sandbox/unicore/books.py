"""The jobs of one UNICORE site as its REST API knows them: those it took itself and those the platform sent."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from prefect_mantik.sandbox.jobs import Job, JobFailed, JobState
from prefect_mantik.sandbox.scheduler import Site
from prefect_mantik.sandbox.settings import Switches
from prefect_mantik.sandbox.unicore.description import Import, Understood, tags_of, understand
from prefect_mantik.sandbox.unicore.identities import Caller
from prefect_mantik.sandbox.unicore.replies import java_date

# How long a job shows each state that it only passes through.
_STEP = 0.05


@dataclass(eq=False, kw_only=True)
class Entry:
    """A job in the books."""

    id: str
    job: Job
    login: str
    owner: str
    description: Mapping[str, Any]
    understood: Understood | None
    tags: list[str]
    expires: float
    preferences: dict[str, str] = field(default_factory=dict)
    listed_from: float = 0.0
    start: asyncio.Event = field(default_factory=asyncio.Event)
    aborted: bool = False


class Books:
    """Takes jobs and finds them again."""

    def __init__(self, site: Site, switches: Switches, owners: dict[str, str]) -> None:
        self.site = site
        self._switches = switches
        self._owners = owners
        self._entries: dict[str, Entry] = {}
        self._own: set[Job] = set()
        self._seen = 0
        self._endings: set[asyncio.Task[None]] = set()

    def submit(self, description: Mapping[str, Any], caller: Caller) -> Entry:
        """Take a job.

        Args:
            description: The job description.
            caller: Who submits it.
        """
        job_id = uuid4()
        directory = self.site.directory / "workdirs" / str(job_id)
        understood = understand(
            description,
            directory=directory,
            dn=caller.dn,
            slots=self.site.slots,
            projects=frozenset(filter(None, self._switches.unicore_projects.split(","))),
        )
        now = time.time()
        start = asyncio.Event()
        entry = Entry(
            id=str(job_id),
            job=self._run(understood, start, caller.login, directory, job_id),
            login=caller.login,
            owner=caller.owner,
            description=description,
            understood=understood,
            tags=tags_of(description),
            expires=now + self._switches.unicore_job_lifetime,
            preferences=dict(caller.preferences),
            listed_from=now + self._switches.unicore_list_lag,
            start=start,
        )
        self._entries[entry.id] = entry
        return entry

    def listed(self, login: str) -> list[Entry]:
        """Give the jobs of a local account that show in lists, newest first."""
        now = time.time()
        entries = [entry for entry in self._all() if entry.login == login and entry.listed_from <= now]
        return sorted(entries, key=lambda entry: entry.job.submitted, reverse=True)

    def find(self, job_id: str) -> Entry | None:
        """Give a job by its id, whosever it is."""
        self._take_over()
        entry = self._entries.get(job_id)
        return entry if entry is not None and self._is_there(entry) else None

    def abort(self, entry: Entry) -> None:
        """Have a job ended that has not ended yet; its processes may take their time."""
        if not entry.job.state.ended:
            entry.job.note("Got 'abort' request.")
            entry.aborted = True
            ending = asyncio.create_task(self.site.end(entry.job))
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)

    async def delete(self, entry: Entry) -> None:
        """End a job and remove all there is of it."""
        await self.site.end(entry.job)
        self._entries.pop(entry.id, None)
        shutil.rmtree(entry.job.directory, ignore_errors=True)

    def restart(self, entry: Entry) -> None:
        """Run a job once more that has ended."""
        if entry.understood is not None and entry.job.state.ended:
            entry.start, entry.aborted = asyncio.Event(), False
            if entry.understood.waits:
                entry.start.set()
            entry.job = self._run(entry.understood, entry.start, entry.login, entry.job.directory)

    def _all(self) -> list[Entry]:
        self._take_over()
        return [entry for entry in list(self._entries.values()) if self._is_there(entry)]

    def _is_there(self, entry: Entry) -> bool:
        if entry.expires <= time.time():
            del self._entries[entry.id]
            shutil.rmtree(entry.job.directory, ignore_errors=True)
            return False
        return entry.job.state is not JobState.VANISHED

    def _take_over(self) -> None:
        """Put the jobs into the books that came by the platform."""
        new = self.site.jobs[self._seen :]
        self._seen += len(new)
        for job in new:
            if job in self._own:
                continue
            self._entries[str(job.id)] = Entry(
                id=str(job.id),
                job=job,
                login=job.owner,
                owner=self._owners.get(job.owner, job.owner),
                description=job.request.description,
                understood=None,
                tags=[],
                expires=job.submitted + self._switches.unicore_job_lifetime,
            )

    def _run(
        self, understood: Understood, start: asyncio.Event, login: str, directory: Path, job_id: UUID | None = None
    ) -> Job:
        async def prepare(job: Job) -> None:
            await self._prepare(job, understood, start)

        async def nobody_told(_: Job) -> None:
            pass

        job = self.site.submit(
            understood.request,
            owner=login,
            directory=directory,
            on_change=nobody_told,
            prepare=prepare,
            job_id=job_id,
        )
        self._own.add(job)
        return job

    async def _prepare(self, job: Job, understood: Understood, start: asyncio.Event) -> None:
        await asyncio.sleep(_STEP)
        if understood.problem:
            raise JobFailed(understood.problem)
        self.site.check_quota(job.directory)
        job.directory.mkdir(parents=True, exist_ok=True, mode=0o777 & ~max(job.request.umask, 0))
        job.note(f"Created job directory <{job.directory}/>")
        if understood.imports:
            job.enter(JobState.STAGING_IN)
            await asyncio.sleep(_STEP)
            for item in understood.imports:
                self._stage_in(job, item)
            job.note("Stage in is DONE.")
        if understood.request.script:
            job.enter(JobState.READY)
        if understood.waits:
            await start.wait()
        await asyncio.sleep(_STEP)
        if understood.late_problem:
            job.enter(JobState.QUEUED)
            await asyncio.sleep(_STEP)
            raise JobFailed(understood.late_problem)
        if job.request.not_before > time.time():
            job.note(f"Further processing scheduled for {java_date(job.request.not_before)}")

    def _stage_in(self, job: Job, item: Import) -> None:
        what = f"[{'inline://' if item.data is not None else item.source} -> {item.to}]"
        job.note(f"Started filetransfer {what}")
        try:
            self._write(job.directory, item)
        except (OSError, ValueError) as error:
            text = f"Filetransfer FAILED: {what} error message: {error}"
            job.note(text)
            if item.fail_on_error:
                job.note(f"Stage in was NOT SUCCESSFUL: {text}")
                raise JobFailed(f"Staging in failed. Reason: {text}") from None

    def _write(self, directory: Path, item: Import) -> None:
        if item.data is None:
            raise ValueError(f"Could not get {item.source}: the sandbox stages in inline data only")
        target = Path(os.path.normpath(directory / item.to.lstrip("/")))
        if directory not in target.parents:
            cause = f"java.lang.IllegalArgumentException: Invalid path: <{directory}/..>: too many '..'"
            raise ValueError(f"Inline import to '{directory}//{item.to}' failed: {cause}")
        self.site.check_quota(target)
        if item.mode == "nooverwrite" and target.exists():
            raise ValueError(f"File <{item.to}> exists, and overwriting it was not asked for")
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("a" if item.mode == "append" else "w", encoding="utf-8", newline="") as file:
            file.write(item.data)
        target.chmod(0o600)
        if item.permissions:
            try:
                target.chmod(mode_of(item.permissions))
            except ValueError as error:
                what = f"Setting permissions of '{directory}//{item.to}' to '{item.permissions}' failed"
                raise ValueError(f"{what}: java.lang.IllegalArgumentException: {error}") from None


def mode_of(permissions: str) -> int:
    """Read permissions such as `rwxr-x---`.

    Args:
        permissions: Nine letters, or three for the owner alone.

    Raises:
        ValueError: They are something else.
    """
    wrong = len(permissions) not in (3, 9) or any(
        letter not in (("r", "w", "x")[place % 3], "-") for place, letter in enumerate(permissions)
    )
    if wrong:
        raise ValueError(f"Illegal permissions string <{permissions}>")
    bits = "".join("0" if letter == "-" else "1" for letter in permissions)
    return int(bits.ljust(9, "0"), 2)
