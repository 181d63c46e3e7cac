"""The jobs of the FirecREST site as its batch system knows them, by whatever way they came."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from dataclasses import dataclass, field
from os.path import normpath
from pathlib import Path

from prefect_mantik.sandbox.firecrest.job_environment import array_variables, expand, slurm_variables
from prefect_mantik.sandbox.firecrest.sbatch import Dependency, Options
from prefect_mantik.sandbox.jobs import Job, JobRequest, JobState
from prefect_mantik.sandbox.scheduler import Site

ACCOUNTS = ("sandbox-budget", "users")
# The longest and the usual time limit of each partition, in seconds.
PARTITIONS = {"batch": (86400.0, 3600.0), "devel": (3600.0, 3600.0)}
# How often a job that waits for something looks whether it has come.
_TICK = 0.05


@dataclass(eq=False)
class Group:
    """What the tasks of an array have in common."""

    number: int
    limit: int | None = None
    turns: asyncio.Semaphore | None = None
    tasks: list[Entry] = field(default_factory=list)


@dataclass(eq=False, kw_only=True)
class Entry:
    """A job in the books.

    Attributes:
        job: The job itself.
        name: Its name; empty if it was given none.
        account: What it is charged to.
        limit: Its time limit in seconds.
        script: The batch script.
        workdir: Its working directory.
        output: The file for standard output.
        error: The file for standard error.
        begin: The earliest start that was asked for.
        dependencies: The jobs it waits for.
        dies_without: Whether it is cancelled when one of them can no longer end as wanted.
        waits_for_ever: Whether its time limit is more than its partition allows.
        eligible: Whether nothing but the queue ever stood between it and its start.
        group: The array that it is a task of.
        index: Its place in the array.
        kept_reason: Why it waited, which shows even after its end.
    """

    job: Job
    name: str
    account: str
    limit: float
    script: str
    workdir: Path
    output: str
    error: str
    begin: float = 0.0
    dependencies: tuple[Dependency, ...] = ()
    dies_without: bool = False
    waits_for_ever: bool = False
    eligible: bool = False
    group: Group | None = None
    index: int = 0
    kept_reason: str = "None"

    @property
    def number(self) -> int:
        """The number of its own."""
        return self.job.number

    @property
    def begun(self) -> bool:
        """Whether it has started, or ended without."""
        return self.job.started is not None or self.job.state.ended or self.job.killed is not None

    @property
    def over(self) -> bool:
        """Whether it has ended as far as anybody is told."""
        return self.job.state.ended or self.job.killed is not None


class Books:
    """Takes jobs and finds them again."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._entries: dict[Job, Entry] = {}
        self._seen = 0
        self._endings: set[asyncio.Task[None]] = set()

    def all(self) -> list[Entry]:
        """Give all jobs, by their numbers."""
        self._take_over()
        there = [entry for entry in self._entries.values() if entry.job.state is not JobState.VANISHED]
        return sorted(there, key=lambda entry: (entry.group.number if entry.group else entry.number, entry.index))

    def find(self, number: int) -> list[Entry]:
        """Give a job or the tasks of an array, whosever it is.

        Args:
            number: The job's number, or that of the array.
        """
        entries = self.all()
        tasks = [entry for entry in entries if entry.group is not None and entry.group.number == number]
        return tasks or [entry for entry in entries if entry.number == number]

    def submit(self, request: JobRequest, options: Options, owner: str, workdir: Path) -> int:
        """Take a job or an array, and give its number.

        Args:
            request: What to run; the names of its files may hold placeholders.
            options: What was asked for.
            owner: The site's user.
            workdir: Where it runs.
        """
        indices: tuple[int | None, ...] = options.array.indices if options.array else (None,)
        numbers = [self.site.next_number() for _ in indices]
        limit = options.array.limit if options.array else None
        turns = asyncio.Semaphore(limit) if limit else None
        group = Group(numbers[0], limit, turns) if options.array else None
        # The number of the array is its last task's own too.
        for number, index in zip([*numbers[1:], numbers[0]], indices, strict=True):
            place = (numbers[0], index) if index is not None else None
            own = self._own_request(request, options, owner, workdir, number, place)
            entry = self._enter(own, options, owner, workdir, number)
            if group is not None and index is not None:
                entry.group, entry.index = group, index
                group.tasks.append(entry)
        return numbers[0]

    def cancel(self, entry: Entry, killer: str) -> None:
        """Have a job ended; it shows at once, though its processes may take their time.

        Args:
            entry: The job.
            killer: Who wants it.
        """
        if entry.over:
            return
        entry.job.killed, entry.job.killer = time.time(), killer
        ending = asyncio.create_task(self.site.end(entry.job))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)

    def unmet(self, entry: Entry) -> str:
        """Say why a job may not even wait for nodes; empty if it may."""
        job = entry.job
        if any(self._never(entry, dependency) for dependency in entry.dependencies):
            return "DependencyNeverSatisfied"
        if not all(self._met(entry, dependency) for dependency in entry.dependencies):
            return "Dependency"
        if job.hold:
            return job.hold_reason or "JobHeldUser"
        if entry.begin > time.time():
            return "BeginTime"
        return ""

    def throttled(self, entry: Entry) -> bool:
        """Tell whether as many tasks of the array run as may."""
        turns = entry.group.turns if entry.group else None
        return turns is not None and turns.locked() and not entry.eligible

    def _own_request(
        self,
        request: JobRequest,
        options: Options,
        owner: str,
        workdir: Path,
        number: int,
        place: tuple[int, int] | None,
    ) -> JobRequest:
        """Give one job what is its own: files, variables and a copy of the script."""
        account = options.get("account", ACCOUNTS[0])
        variables = slurm_variables(self.site, request, account, owner, workdir, number)
        if place is not None and options.array is not None:
            variables |= array_variables(place, options.array.indices)
        output = normpath(workdir / expand(request.output, number, place, request, owner))
        error = normpath(workdir / expand(request.error, number, place, request, owner)) if request.error else ""
        return dataclasses.replace(
            request,
            output=output,
            error=error,
            variables={**request.variables, **variables},
            spool=self.site.directory / "spool" / f"job{number}" / "slurm_script",
        )

    def _enter(self, request: JobRequest, options: Options, owner: str, workdir: Path, number: int) -> Entry:
        async def prepare(job: Job) -> None:
            await self._wait(self._entries[job])

        async def nobody_told(_: Job) -> None:
            pass

        job = self.site.submit(
            request,
            owner=owner,
            directory=workdir,
            on_change=nobody_told,
            prepare=prepare,
            number=number,
        )
        job.at_start = lambda: self._open_files(job)
        if "hold" in options.given:
            job.hold, job.hold_reason = "QUEUED", "JobHeldUser"
        entry = Entry(
            job=job,
            name=request.name,
            account=options.get("account", ACCOUNTS[0]),
            limit=request.walltime,
            script=request.script,
            workdir=workdir,
            output=request.output,
            error=request.error or request.output,
            begin=options.begin,
            dependencies=options.dependencies,
            dies_without=options.get("kill-on-invalid-dep") == "yes",
            waits_for_ever=request.walltime > PARTITIONS[request.queue][0],
        )
        self._entries[job] = entry
        return entry

    async def _wait(self, entry: Entry) -> None:
        while unmet := self.unmet(entry):
            if unmet == "DependencyNeverSatisfied" and entry.dies_without:
                entry.job.killed, entry.job.killer, entry.job.ending = time.time(), "slurm", JobState.CANCELLED
                raise asyncio.CancelledError
            await asyncio.sleep(_TICK)
        if entry.group is not None and entry.group.turns is not None:
            await self._take_turn(entry, entry.group.turns)
        entry.eligible = True
        if entry.waits_for_ever:
            await asyncio.Event().wait()

    async def _take_turn(self, entry: Entry, turns: asyncio.Semaphore) -> None:
        if turns.locked():
            entry.kept_reason = "JobArrayTaskLimit"
        await turns.acquire()
        if entry.job.task is not None:
            entry.job.task.add_done_callback(lambda _: turns.release())

    def _met(self, entry: Entry, dependency: Dependency) -> bool:
        if dependency.kind == "singleton":
            mine = (entry.name, entry.job.owner)
            earlier = (other for other in self.all() if other.number < entry.number)
            return all(other.over for other in earlier if (other.name, other.job.owner) == mine)
        others = self.find(dependency.number)
        if dependency.kind == "after":
            return all(other.begun for other in others)
        if dependency.kind == "afterok":
            return all(other.job.state is JobState.COMPLETED for other in others)
        if dependency.kind == "afternotok":
            return all(other.over and other.job.state is not JobState.COMPLETED for other in others)
        return all(other.over for other in others)

    def _never(self, entry: Entry, dependency: Dependency) -> bool:
        wrong = {"afterok": True, "afternotok": False}.get(dependency.kind)
        if wrong is None:
            return False
        ended = (other for other in self.find(dependency.number) if other.over)
        return any((other.job.state is not JobState.COMPLETED) is wrong for other in ended)

    def _open_files(self, job: Job) -> None:
        """Make a job's working directory, and see whether its user may write there."""
        own = (self.site.home(job.owner), self.site.scratch(job.owner))
        workdir = job.directory
        if any(each == workdir or each in workdir.parents for each in own):
            workdir.mkdir(parents=True, exist_ok=True)
        self.site.check_quota(job.log)
        if not os.access(workdir, os.X_OK):
            raise PermissionError(f"{workdir}: Permission denied")
        for path in (workdir, Path(job.request.output), Path(job.request.error or job.request.output)):
            if self.site.directory in path.parents and not any(each == path or each in path.parents for each in own):
                raise PermissionError(f"{path}: Permission denied")

    def _take_over(self) -> None:
        """Put the jobs into the books that came by the platform."""
        new = self.site.jobs[self._seen :]
        self._seen += len(new)
        for job in new:
            if job in self._entries:
                continue
            self._entries[job] = Entry(
                job=job,
                name=job.request.name,
                account=ACCOUNTS[0],
                limit=job.request.walltime,
                script=job.request.script,
                workdir=job.directory,
                output=job.request.output,
                error=job.request.error or job.request.output,
                eligible=True,
            )
