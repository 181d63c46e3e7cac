"""A site's batch system: it queues jobs for its nodes and really runs them."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import itertools
import logging
import os
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import IO

from prefect_mantik.sandbox.errors import ApiError, firecrest_error, unicore_error
from prefect_mantik.sandbox.groups import end_group
from prefect_mantik.sandbox.jobs import Job, JobRequest, JobState, Listener, SiteKind
from prefect_mantik.sandbox.surroundings import Surroundings
from prefect_mantik.sandbox.watchdog import Watchdog

logger = logging.getLogger(__name__)

QUEUES = ("batch", "devel")


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
        self.refuse_logins = False
        self.passwords: dict[str, str] = {}
        self.jobs: list[Job] = []
        self.directory = directory
        self._free = slots
        self._numbers = itertools.count(100_000 + secrets.randbelow(900_000))
        self._waiting: deque[tuple[Job, asyncio.Future[None]]] = deque()
        self._delay = delay
        self._grace = grace
        self._surroundings = surroundings
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

    def submit(self, request: JobRequest, *, owner: str, directory: Path, on_change: Listener) -> Job:
        """Take a job into the queue.

        Args:
            request: What to run.
            owner: The site's user.
            directory: The job's run directory with its files.
            on_change: Awaited whenever the job starts or ends.
        """
        job = Job(
            site=self.name,
            kind=self.kind,
            owner=owner,
            number=next(self._numbers),
            request=request,
            directory=directory,
            on_change=on_change,
        )
        self.jobs.append(job)
        job.task = asyncio.create_task(self._supervise(job), name=f"job {job.id}")
        return job

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

    def set_maintenance(self, on: bool) -> None:
        """Close the site for logins and starts, or open it again."""
        self.maintenance = on
        self._dispatch()

    async def close(self) -> None:
        """Kill every job at once."""
        self._grace = 0.0
        live = [job for job in self.jobs if not job.state.ended]
        await asyncio.gather(*(self.end(job, JobState.VANISHED) for job in live))

    async def _supervise(self, job: Job) -> None:
        try:
            state = await self._live(job)
        except asyncio.CancelledError:
            state = job.ending or JobState.CANCELLED
            job.message = "Job aborted."
        except OSError as error:
            state, job.message = JobState.FAILED, str(error)
        job.ended = time.time()
        job.state = state
        logger.info("%s: job %s ended %s", self.name, job.id, state.value)
        if state is not JobState.VANISHED:
            await job.on_change(job)

    async def _live(self, job: Job) -> JobState:
        if job.request.before:
            code = await self._on_login_node(job, job.request.before, "precommand.log")
            if code != 0:
                job.exit_code, job.message = code, "User pre-command failed."
                return JobState.FAILED
        job.state = JobState.READY
        async with self._nodes(job):
            state = await self._run(job)
        if state is JobState.COMPLETED and job.request.after:
            job.state = JobState.STAGING_OUT
            if await self._on_login_node(job, job.request.after, "postcommand.log") != 0:
                job.message = "User post-command failed."
                return JobState.FAILED
        return state

    @contextlib.asynccontextmanager
    async def _nodes(self, job: Job) -> AsyncIterator[None]:
        job.state = JobState.QUEUED
        await asyncio.sleep(self._delay())
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
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
        while self._waiting and not self.maintenance and self._waiting[0][0].request.nodes <= self._free:
            job, turn = self._waiting.popleft()
            self._free -= job.request.nodes
            turn.set_result(None)

    async def _run(self, job: Job) -> JobState:
        job.started, job.state = time.time(), JobState.RUNNING
        # Told before the process starts, so that nobody says RUNNING after the job itself has said FINISHED.
        await job.on_change(job)
        with job.log.open("ab") as log:
            shell = ["bash", "-l"] if job.request.login_shell else ["bash"]
            process = await self._start(job, [*shell, str(_write_script(job, job.request.script))], log)
            job.pid = process.pid
            try:
                await asyncio.wait_for(process.wait(), job.request.walltime)
            except asyncio.TimeoutError:
                await end_group(process.pid, self._grace)
                job.message = "Job exceeded its time limit."
                return JobState.TIMEOUT
            except asyncio.CancelledError:
                await end_group(process.pid, self._grace)
                raise
            finally:
                job.exit_code = await self._clean_up(process)
        if job.exit_code:
            job.message = f"User application exited with non-zero exit code: {job.exit_code}."
        return JobState.FAILED if job.exit_code else JobState.COMPLETED

    async def _on_login_node(self, job: Job, command: str, log_name: str) -> int:
        with (job.directory / log_name).open("ab") as log:
            process = await self._start(job, ["bash", str(_write_script(job, command))], log)
            try:
                await process.wait()
            finally:
                code = await self._clean_up(process)
        return code

    async def _start(self, job: Job, command: list[str], log: IO[bytes]) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=job.directory,
            env=self._surroundings.environment(self.home(job.owner), job.owner) | {"SLURM_JOB_ID": str(job.number)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        self._watchdog.add(process.pid)
        return process

    async def _clean_up(self, process: asyncio.subprocess.Process) -> int:
        await end_group(process.pid, 0)  # whatever the job left in the background ends with it
        code = await process.wait()
        self._watchdog.remove(process.pid)
        return code if code >= 0 else 128 - code


def _write_script(job: Job, text: str) -> Path:
    # In the run directory, since scripts look for their neighbours; private, since it holds the job's token.
    path = job.directory / ("script.batch" if job.kind == "FirecREST" else "script.unicore")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    return path
