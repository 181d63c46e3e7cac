"""A site's batch system: it queues jobs for its nodes and really runs them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hmac
import itertools
import logging
import secrets
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import IO
from uuid import UUID, uuid4

from prefect_mantik.sandbox.errors import ApiError, firecrest_error, unicore_error
from prefect_mantik.sandbox.groups import end_group
from prefect_mantik.sandbox.jobs import Hold, Job, JobFailed, JobRequest, JobState, Listener, SiteKind
from prefect_mantik.sandbox.scripts import exit_code, no_exit_code, note_pid, write_private, write_scripts
from prefect_mantik.sandbox.surroundings import Surroundings
from prefect_mantik.sandbox.watchdog import Watchdog, kill_group

logger = logging.getLogger(__name__)

QUEUES = ("batch", "devel")
_FIRST_UID = 2001
# What Slurm says of a job whose directory or output file it could not open.
_NO_FILES = 53

# How long a job that has run is seen at its end.
_STAGE_OUT = 0.05

Preparation = Callable[[Job], Awaitable[None]]


class Site:
    """One site: accounts, queues, nodes and jobs."""

    def __init__(
        self,
        *,
        name: str,
        kind: SiteKind,
        url: str,
        directory: Path,
        slots: int,
        delay: Callable[[], float],
        grace: float,
        surroundings: Surroundings,
        watchdog: Watchdog,
    ) -> None:
        self.name = name
        self.kind = kind
        self.url = url
        self.slots = slots
        self.maintenance = False
        self.maintenance_message = ""
        self.refuse_logins = False
        self.entitled = True
        self.quota_full = False
        self.queue_reason = ""
        self.unhealthy = False
        self.accounting_down = False
        self.passwords: dict[str, str] = {}
        self.jobs: list[Job] = []
        self.directory = directory
        self._free = slots
        self._numbers = itertools.count(100_000 + secrets.randbelow(900_000))
        self._waiting: deque[tuple[Job, asyncio.Future[None]]] = deque()
        self._delay = delay
        self._grace = grace
        self.surroundings = surroundings
        self._watchdog = watchdog

    def check_login(self, login: str, password: str) -> None:
        """Refuse who may not in, and everybody during maintenance."""
        if self.maintenance:
            raise self.refusal(f"{self.url} is down for maintenance")
        known = self.passwords.get(login)
        if self.refuse_logins or known is None or not hmac.compare_digest(known.encode(), password.encode()):
            raise self.refusal(f"Failed to connect to {self.url} -- check if user and password are correct")

    def check_request(self, *, queue: str, nodes: int) -> None:
        """Refuse what the site does not have."""
        if queue not in QUEUES:
            raise self.refusal(f"no queue {queue!r} at {self.name}, only {', '.join(QUEUES)}")
        if not 1 <= nodes <= self.slots:
            raise self.refusal(f"{nodes} nodes asked for, {self.name} has 1 to {self.slots}")

    def refusal(self, cause: str) -> ApiError:
        """Word a refusal as the platform passes it on from a site of this kind."""
        return unicore_error(cause) if self.kind == "UNICORE" else firecrest_error(cause)

    def home(self, login: str) -> Path:
        """Give (and make) the home directory of a user of the site."""
        home = self.directory / "home" / login
        home.mkdir(parents=True, exist_ok=True)
        return home

    def scratch(self, login: str) -> Path:
        """Give (and make) the scratch directory of a user of the site."""
        scratch = self.directory / "scratch" / login
        scratch.mkdir(parents=True, exist_ok=True)
        return scratch

    def uid(self, login: str) -> int:
        """Give the number of a user of the site."""
        return _FIRST_UID + list(self.passwords).index(login) if login in self.passwords else 0

    def next_number(self) -> int:
        """Give the number for a new job."""
        return next(self._numbers)

    def check_quota(self, path: Path) -> None:
        """Refuse to write when the site was told that the disk is full."""
        if self.quota_full:
            raise OSError(errno.EDQUOT, "Disk quota exceeded", str(path))

    def submit(
        self,
        request: JobRequest,
        *,
        owner: str,
        directory: Path,
        on_change: Listener,
        prepare: Preparation | None = None,
        job_id: UUID | None = None,
        number: int | None = None,
    ) -> Job:
        """Take a job into the queue.

        Args:
            request: What to run.
            owner: The site's user.
            directory: The job's run directory with its files.
            on_change: Awaited whenever the job starts or ends.
            prepare: Awaited before anything else: stages files in and waits for the start.
            job_id: Its id, if it has one already.
            number: Its number, if it has one already.
        """
        job = Job(
            site=self.name,
            kind=self.kind,
            owner=owner,
            number=self.next_number() if number is None else number,
            request=request,
            directory=directory,
            on_change=on_change,
            state=JobState.STAGING_IN if prepare is None else JobState.CREATED,
            id=job_id or uuid4(),
        )
        self.jobs.append(job)
        job.task = asyncio.create_task(self._supervise(job, prepare), name=f"job {job.id}")
        return job

    def set_hold(self, job: Job, hold: Hold, reason: str = "") -> None:
        """Hold a job where it is, or let it go on.

        Args:
            job: One of the site's jobs.
            hold: How the hold looks: as a state nobody can name, or as a job that waits; empty ends it.
            reason: What the job's log says.
        """
        job.hold, job.hold_reason = hold, reason
        if reason:
            job.note(reason)
        if job.state is JobState.RUNNING and hold and job.held is None:
            job.held = time.time()
        elif not hold and job.held is not None:
            job.suspended, job.held = job.suspended + time.time() - job.held, None
        if job.pid is not None and not job.state.ended:
            kill_group(job.pid, signal.SIGSTOP if hold else signal.SIGCONT)
        self._dispatch()

    def set_queue_reason(self, reason: str) -> None:
        """Let no queued job start, for a reason that their logs give; empty ends it."""
        self.queue_reason = reason
        for job, _ in self._waiting if reason else ():
            job.note(reason)
        self._dispatch()

    async def end(self, job: Job, state: JobState = JobState.CANCELLED) -> None:
        """End a job from outside and wait until it is gone.

        Args:
            job: One of the site's jobs.
            state: What the job is said to have died of.
        """
        if job.task is None or job.state.ended:
            return
        if job.ending is None:
            job.ending = state
            job.task.cancel()
        await asyncio.wait([job.task])

    def requeue(self, job: Job, seconds: float) -> None:
        """Have the node of a running job fail; the job is queued again if it may be.

        Args:
            job: One of the site's jobs.
            seconds: When it may start again.
        """
        if job.task is not None and job.state is JobState.RUNNING and job.ending is None:
            job.ending, job.put_off = JobState.NODE_FAIL, seconds if job.request.requeue else None
            job.task.cancel()

    async def run_beside(self, job: Job, command: str) -> int:
        """Run a command where a job runs, wait for it and give its exit code.

        Args:
            job: A running job.
            command: A command of the shell.
        """
        return await self._finish(await self._start(job, ["bash", "-c", command]))

    def place_in_queue(self, job: Job) -> int | None:
        """Tell how many jobs are before one that waits for nodes; None for one that does not."""
        return next((place for place, (other, _) in enumerate(self._waiting) if other is job), None)

    def set_maintenance(self, on: bool) -> None:
        """Close the site for logins and starts, or open it again."""
        self.maintenance = on
        self._dispatch()

    async def close(self) -> None:
        """Kill every job at once."""
        self._grace = 0.0
        live = [job for job in self.jobs if not job.state.ended]
        await asyncio.gather(*(self.end(job, JobState.VANISHED) for job in live))

    async def _supervise(self, job: Job, prepare: Preparation | None) -> None:
        try:
            state = await self._live(job, prepare)
        except asyncio.CancelledError:
            if job.put_off is not None and job.killed is None:
                self._queue_again(job, job.put_off)
                return
            state = job.ending or JobState.CANCELLED
            job.message = "Job aborted."
        except (OSError, JobFailed) as error:
            state, job.message = JobState.FAILED, str(error)
            if job.started is not None and job.pid is None:
                job.signal = _NO_FILES
        job.ended = time.time()
        job.enter(state)
        logger.info("%s: job %s ended %s", self.name, job.id, state.value)
        if state is not JobState.VANISHED:
            await job.on_change(job)

    def _queue_again(self, job: Job, seconds: float) -> None:
        job.attempts.append((job.started or job.submitted, time.time()))
        job.not_before = time.time() + seconds
        job.started = job.pid = job.exit_code = job.signal = job.ending = job.put_off = None
        job.suspended, job.held = 0.0, None
        job.enter(JobState.READY)
        job.task = asyncio.create_task(self._supervise(job, None), name=f"job {job.id}")

    async def _live(self, job: Job, prepare: Preparation | None) -> JobState:
        request = job.request
        if prepare is not None:
            await prepare(job)
        if not request.script and not request.before and not request.after:
            return JobState.COMPLETED  # nothing to do
        if request.before:
            code = await self._on_login_node(job, request.before, "precommand.log")
            if code != 0 and not request.before_may_fail:
                job.exit_code, job.message = code, "User pre-command failed."
                return JobState.FAILED
        if job.state is not JobState.READY:
            job.enter(JobState.READY)
        async with contextlib.nullcontext() if request.on_login_node else self._nodes(job):
            state = await self._run(job)
        if state in (JobState.COMPLETED, JobState.FAILED):
            job.enter(JobState.STAGING_OUT)
            await asyncio.sleep(_STAGE_OUT)
        if state is JobState.COMPLETED and request.after:
            code = await self._on_login_node(job, request.after, "postcommand.log")
            if code != 0 and not request.after_may_fail:
                job.message = "User post-command failed."
                return JobState.FAILED
        return state

    @contextlib.asynccontextmanager
    async def _nodes(self, job: Job) -> AsyncIterator[None]:
        job.enter(JobState.QUEUED)
        await asyncio.sleep(max(self._delay(), max(job.request.not_before, job.not_before) - time.time()))
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.queue_reason:
            job.note(self.queue_reason)
        self._waiting.append((job, turn))
        self._dispatch()
        try:
            await turn
            yield
        finally:
            if turn.cancelled():
                self._waiting.remove((job, turn))
            else:
                self._free += job.request.nodes
            self._dispatch()

    def _dispatch(self) -> None:
        while (entry := self._next()) is not None:
            self._waiting.remove(entry)
            job, turn = entry
            self._free -= job.request.nodes
            turn.set_result(None)

    def _next(self) -> tuple[Job, asyncio.Future[None]] | None:
        if self.maintenance or self.queue_reason:
            return None
        free = (entry for entry in self._waiting if not entry[0].hold)
        first = next(free, None)
        return first if first is not None and first[0].request.nodes <= self._free else None

    async def _run(self, job: Job) -> JobState:
        request = job.request
        if job.at_start is None:
            self.check_quota(job.log)
        job.started = time.time()
        job.enter(JobState.RUNNING)
        # Told before the process starts, so that nobody says RUNNING after the job itself has said FINISHED.
        await job.on_change(job)
        if job.at_start is not None:
            job.at_start()
        with contextlib.ExitStack() as files:
            how = "ab" if request.append or job.attempts else "wb"
            log = files.enter_context(job.log.open(how))
            own_error = request.error and request.error != request.output
            error = files.enter_context((job.directory / request.error).open(how)) if own_error else log
            given = files.enter_context((job.directory / request.input).open("rb"))
            shell = request.interpreter or (("bash", "-l") if request.login_shell else ("bash",))
            process = await self._start(job, [*shell, str(write_scripts(job))], log, error, given)
            job.pid = process.pid
            note_pid(job, process.pid)
            killed = True
            try:
                await asyncio.wait_for(process.wait(), request.walltime)
                killed = False
            except asyncio.TimeoutError:
                await end_group(process.pid, self._grace)
                job.message = "Job exceeded its time limit."
                return JobState.TIMEOUT
            except asyncio.CancelledError:
                await end_group(process.pid, self._grace)
                raise
            finally:
                job.exit_code = exit_code(job, await self._clean_up(process), killed=killed)
                job.signal = -min(process.returncode or 0, 0) or None
        if job.exit_code is None:
            job.message = no_exit_code(request)
            return JobState.FAILED
        if job.exit_code and not request.ignore_exit_code:
            job.message = f"User application exited with non-zero exit code: {job.exit_code}."
            return JobState.FAILED
        return JobState.COMPLETED

    async def _on_login_node(self, job: Job, command: str, log_name: str) -> int:
        with (job.directory / log_name).open("ab") as log:
            script = job.directory / f"{log_name.partition('.')[0]}.sh"
            write_private(script, command)
            return await self._finish(await self._start(job, ["bash", str(script)], log, log))

    async def _finish(self, process: asyncio.subprocess.Process) -> int:
        try:
            await process.wait()
        finally:
            code = await self._clean_up(process)
        return code

    async def _start(
        self,
        job: Job,
        command: list[str],
        output: IO[bytes] | int = asyncio.subprocess.DEVNULL,
        error: IO[bytes] | int = asyncio.subprocess.DEVNULL,
        given: IO[bytes] | int = asyncio.subprocess.DEVNULL,
    ) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=job.directory,
            env=self.surroundings.of_job(job, self.home(job.owner), self.scratch(job.owner)),
            stdin=given,
            stdout=output,
            stderr=error,
            start_new_session=True,
            umask=job.request.umask,
        )
        self._watchdog.add(process.pid)
        return process

    async def _clean_up(self, process: asyncio.subprocess.Process) -> int:
        await end_group(process.pid, 0)  # whatever the job left in the background ends with it
        code = await process.wait()
        self._watchdog.remove(process.pid)
        return code if code >= 0 else 128 - code
