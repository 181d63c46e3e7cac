"""Sites reached directly by FirecREST: what talks.

A job bears the site key and the attempt in its name, and runs in a directory whose path is made of the same, so that
it is found from anywhere: by one list of our jobs, or, when it ended too long ago to be listed, by what it left in its
directory. The files go first: FirecREST starts a job as soon as it takes it.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import functools
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import datetime, timezone
from time import monotonic
from typing import Any, ClassVar

from prefect_mantik.api import urgent
from prefect_mantik.backend_config import parse_backend_config, refuse_unsendable, slurm_fields, slurm_script
from prefect_mantik.credentials import MantikProject
from prefect_mantik.documents import reference
from prefect_mantik.errors import LoginRefused, MantikError, NotFound, RequestFailed
from prefect_mantik.firecrest import FirecrestClient, Job, System
from prefect_mantik.log import run_logger
from prefect_mantik.runs import Reason, RunHandle, RunKey, RunSpec, RunState, RunStatus, SiteKind
from prefect_mantik.sites import direct, mlflow_runs
from prefect_mantik.sites.base import OUR_PREFIX, Finding, not_found
from prefect_mantik.sites.direct_site import DirectSite, Prepared
from prefect_mantik.sites.firecrest import directory as places
from prefect_mantik.sites.firecrest.checks import check_root, check_site
from prefect_mantik.sites.firecrest.directory import RunDirectory
from prefect_mantik.sites.firecrest.jobs import WIDEST, FirecrestJobs
from prefect_mantik.sites.firecrest.settings import Settings
from prefect_mantik.sites.firecrest.states import REQUEUED_AFTER, word
from prefect_mantik.sites.firecrest.store import FirecrestStore
from prefect_mantik.sites.store import Store
from prefect_mantik.sites.submission import TraceFound

_JOB_NAME = re.compile(r"(?P<site_key>pm-[a-z2-7]{8}-[a-z2-7]{26}-[a-z2-7]{16})-(?P<attempt>[1-9][0-9]{0,6})")


STUCK_FOR = 120.0
"""Seconds after which a job that will not start by itself is cancelled, where that is wanted: causes come and go."""

_RECORDS_TIMEOUT = 8.0
"""Seconds for what the directories of jobs tell, for whoever only lists them."""


class DirectFirecrestSite(DirectSite):
    """A system reached by FirecREST.

    Args:
        settings: What the site's block says.
        client: The system's operations.
        project: Whose experiment tracks the runs, and whose repository holds their code. Needed to submit.
    """

    kind: ClassVar[SiteKind] = "firecrest"
    road: ClassVar[str] = "directly by FirecREST"

    def __init__(self, settings: Settings, client: FirecrestClient, project: MantikProject | None = None) -> None:
        super().__init__(settings.name, settings.reference, settings.settle, project)
        self.pace = settings.pace
        self._settings, self._client = settings, client
        self._jobs = FirecrestJobs(client)
        self._directories: dict[str, str] = {}
        self._traced: dict[tuple[str, int], builtins.list[places.Trace]] = {}
        self._stuck_since: dict[RunHandle, float] = {}

    @property
    def account(self) -> Hashable:
        """One list of jobs serves all of an account at a system."""
        return self._client

    @property
    def shared_account(self) -> str:
        """See `Site.shared_account`."""
        return f"firecrest {self._client.username} {self._client.api_url} {self._client.system}"

    @property
    def quiet(self) -> float:
        """See `Site.quiet`."""
        return self._client.quiet

    def seniority(self, handle: RunHandle) -> Any:
        """A batch system counts: the lower id is older. See `Site.seniority`."""
        return int(handle.remote_id) if handle.remote_id.isdigit() else 0

    # --- Submit -----------------------------------------------------------------------------------------------------

    async def post(self, spec: RunSpec, key: RunKey, attempt: int) -> str:
        """Pack the code, make the MLflow run, send the files, submit the job. See `Site.post`."""
        async with AsyncExitStack() as stack:
            try:
                system = await self._usable(spec)
                there = await self._look_for_traces(key, attempt)
                await self._end_earlier_attempts(key, attempt, system)
            except RequestFailed as error:
                raise self._not_prepared(key, error) from error
            prepared = await self._prepare(spec, key, attempt, stack)
            made = self._handle_of(spec, key, attempt, prepared)
            place = self._directory(places.run_path(self._settings.root, made), system)
            try:
                token = await self._needed_project().credentials.tracking_client().tokens.lasting()
                joining = await place.fill(prepared.code, is_new=prepared.run.run_id not in there)
                await place.write_record(made)
                await place.write_token(direct.token_file(token))
                await place.verify()
            except RequestFailed as error:
                await self._free_the_key(prepared)
                raise self._not_prepared(key, error) from error
        script, fields = self._description(spec, key, attempt, prepared, place.path, joining, system)
        try:
            job = await self._client.submit(script, place.path, fields)
        except RequestFailed as error:
            await self._free_the_key(prepared, error)
            raise
        known = self._with_job(made, job)
        self._found[job], self._directories[job] = known, place.path
        self._refresh_at[known] = token.refresh_at
        return job

    async def _usable(self, spec: RunSpec) -> System:
        """The system, if it can run what the spec asks for."""
        system = await self._client.about()
        check_root(system, self._settings.root)
        if not system.reads_directives:
            refuse_unsendable(parse_backend_config(spec.backend_config))
        return system

    async def _look_for_traces(self, key: RunKey, attempt: int) -> builtins.list[str]:
        """Look for jobs that the site does not list any more; return the directories of the attempt."""
        path = places.attempt_path(self._settings.root, key.site_key, attempt)
        there = await places.listed(self._client, path)
        if found := await places.traces(self._client, path, there, self._found):
            self._traced[key.site_key, attempt] = found
            raise TraceFound
        return there

    async def _end_earlier_attempts(self, key: RunKey, attempt: int, system: System) -> None:
        """Slurm's REST API shows how a job's first start ended, though the job may be back in the queue."""
        if attempt > 1 and not system.reads_directives:
            earlier = [handle for handle in self._found.values() if handle.site_key == key.site_key]
            await asyncio.gather(*(self._client.cancel(handle.remote_id) for handle in earlier))

    def _description(
        self,
        spec: RunSpec,
        key: RunKey,
        attempt: int,
        prepared: Prepared,
        path: str,
        joining: Sequence[str],
        system: System,
    ) -> tuple[str, dict[str, Any]]:
        """The batch script, and what the server is told beside it."""
        config, project = parse_backend_config(spec.backend_config), self._needed_project()
        job_name = f"{key.site_key}-{attempt}"
        account = self._settings.account or spec.budget_account
        script = slurm_script(
            config,
            job_name=job_name,
            directory=path,
            command=prepared.command,
            variables=direct.variables_of(spec, key, attempt, prepared.run, project.credentials.tracking_uri),
            account=account,
            before=[places.TAKE, *joining, direct.TRACK],
        )
        fields = slurm_fields(
            config,
            job_name=job_name,
            directory=path,
            account=account,
            reads_directives=system.reads_directives,
        )
        return script, fields

    def _handle_of(self, spec: RunSpec, key: RunKey, attempt: int, prepared: Prepared) -> RunHandle:
        """The handle of a job that the site has not taken yet."""
        project, run = self._needed_project(), prepared.run
        return RunHandle(
            site=self.reference,
            site_name=self.name,
            kind=self.kind,
            remote_id="",
            site_key=key.site_key,
            attempt=attempt,
            name=key.slug,
            spec_digest=spec.digest[:8],
            account=reference(project.credentials),
            mlflow_run_id=run.run_id,
            mlflow_experiment_id=run.experiment_id,
            platform_project_id=spec.project_id,
            submitted_at=datetime.now(timezone.utc),
        )

    def _with_job(self, handle: RunHandle, job: str) -> RunHandle:
        links = {"FirecREST": f"{self._client.api_url}/compute/{self._client.system}/jobs/{job}"}
        run, experiment = handle.mlflow_run_id, handle.mlflow_experiment_id
        if self._project and run and experiment:
            tracking = self._project.credentials.tracking_client()
            links = {"MLflow": tracking.run_link(experiment, run), **links}
        return handle.model_copy(update={"remote_id": job, "links": links})

    def _directory(self, path: str, system: System) -> RunDirectory:
        return RunDirectory(self._client, path, system.largest_upload)

    # --- Find -------------------------------------------------------------------------------------------------------

    async def find(self, key: RunKey) -> builtins.list[RunHandle]:
        """List our jobs and take those named after the key; older ones are known by their traces. See `Site.find`."""
        found = await self._listed(key)
        for (site_key, attempt), traces in self._traced.items():
            if site_key == key.site_key:
                found += [await self._traced_handle(attempt, key, trace) for trace in traces]
        found = list({handle.remote_id: handle for handle in found}.values())
        attempts = {handle.attempt for handle in found}
        # Lists leave out what was cancelled before it could start, and what ended long ago.
        found += [handle for handle in await self._forgotten(key) if handle.attempt not in attempts]
        found = await asyncio.gather(*map(self._with_tracking, found))
        return [handle.model_copy(update={"key": key, "name": key.name}) for handle in found]

    async def _with_tracking(self, handle: RunHandle) -> RunHandle:
        """A handle whose record is gone with its directory: MLflow tells where its run is."""
        if self._project is None or handle.mlflow_run_id is None or handle.mlflow_experiment_id:
            return handle
        run = await self._project.credentials.tracking_client().run(handle.mlflow_run_id)
        if run is None:
            return handle
        known = {"account": reference(self._project.credentials), "mlflow_experiment_id": run.experiment_id}
        return self._with_job(handle.model_copy(update=known), handle.remote_id)

    async def _listed(self, key: RunKey) -> builtins.list[RunHandle]:
        from prefect_mantik.firecrest.requests import Unreadable

        await self._client.about()  # names the systems that there are, where ours is none of them
        try:
            jobs = await self._client.jobs(WIDEST, patient=True)
        except Unreadable:
            jobs = await self._by_name(key)
        return await self._handles(jobs, key.site_key)

    async def _by_name(self, key: RunKey) -> builtins.list[Job]:
        """Ask for each attempt by name: another job's name with a | in it breaks the list, and not this."""
        latest = await mlflow_runs.latest_attempt(self._project, key, self) if self._project else 0
        names = [f"{key.site_key}-{attempt}" for attempt in range(1, latest + 2)]
        found = await asyncio.gather(*(self._client.jobs(WIDEST, name=name, patient=True) for name in names))
        return [job for name, jobs in zip(names, found, strict=True) for job in jobs if job.name == name]

    async def list(self, prefix: str = OUR_PREFIX) -> builtins.list[RunHandle]:
        """Filter the list of our jobs by their names. See `Site.list`.

        What is in a job's directory is told where it is read at once: who cancels does not wait for a file system.
        """
        jobs = await self._client.jobs(WIDEST)
        try:
            return await asyncio.wait_for(self._handles(jobs, prefix), _RECORDS_TIMEOUT)
        except (asyncio.TimeoutError, TimeoutError, RequestFailed):
            return [self._found.get(job.job_id) or self._minimal(job, named) for job, named in _ours(jobs, prefix)]

    async def _handles(self, jobs: Sequence[Job], prefix: str) -> builtins.list[RunHandle]:
        """The handles of jobs. What a job's directory tells of it does not change, and is read once."""
        return builtins.list(await asyncio.gather(*(self._handle(job, named) for job, named in _ours(jobs, prefix))))

    async def _handle(self, job: Job, named: re.Match[str]) -> RunHandle:
        known = self._found.get(job.job_id)
        if known is None or not _is_of(known, job):
            self._directories[job.job_id] = job.working_directory
            told = await self._told(job.working_directory, named["site_key"], int(named["attempt"]))
            self._found[job.job_id] = self._with_job(told, job.job_id)
        return self._found[job.job_id]

    def _minimal(self, job: Job, named: re.Match[str]) -> RunHandle:
        self._directories[job.job_id] = job.working_directory
        told = self._merged({}, job.working_directory, named["site_key"], int(named["attempt"]))
        return self._with_job(told, job.job_id)

    async def _traced_handle(self, attempt: int, key: RunKey, trace: places.Trace) -> RunHandle:
        """The handle of a job of which only its directory tells: it began long enough ago to be lost."""
        told = await self._told(trace.directory, key.site_key, attempt)
        self._directories[trace.job] = trace.directory
        long_ago = told.submitted_at or datetime.fromtimestamp(0, timezone.utc)
        return self._with_job(told.model_copy(update={"submitted_at": long_ago}), trace.job)

    async def _told(self, directory: str, site_key: str, attempt: int) -> RunHandle:
        """What the record in a job's directory tells of its handle; where there is none, what its path does."""
        return self._merged(await places.read_record(self._client, directory), directory, site_key, attempt)

    def _merged(self, record: Mapping[str, Any], directory: str, site_key: str, attempt: int) -> RunHandle:
        place = places.place_of(directory)
        run = {"mlflow_run_id": place.mlflow_run_id} if place else {}
        given = {"site": self.reference, "site_name": self.name, "kind": self.kind, "site_key": site_key}
        named = {"name": site_key, **record, **run, **given, "attempt": attempt, "remote_id": ""}
        return RunHandle.model_validate(named)

    # --- Ask --------------------------------------------------------------------------------------------------------

    async def ask(self, handles: Sequence[RunHandle]) -> dict[RunHandle, RunStatus]:
        """One list for all, and each job that is not in it by its id. See `Site.ask`."""
        answers = await self._jobs.look_up({handle.remote_id: handle.submitted_at for handle in handles})
        statuses = await asyncio.gather(*(self._status(handle, answers[handle.remote_id]) for handle in handles))
        return dict(zip(handles, statuses, strict=True))

    async def _status(self, handle: RunHandle, answer: Job | MantikError) -> RunStatus:
        try:
            if isinstance(answer, NotFound) or (isinstance(answer, Job) and not _is_of(handle, answer)):
                words = f"{self.name} has no job {handle.remote_id} of this run"
                return await self._by_mlflow(handle) or not_found(handle, words)
            if isinstance(answer, Job):
                self._directories[answer.job_id] = answer.working_directory
                status = (await self._jobs.status(answer)).model_copy(update={"queued_at": handle.submitted_at})
                return await self._certain(handle, answer, status)
        except LoginRefused:
            raise
        except RequestFailed as error:
            answer = error
        return RunStatus(state=RunState.UNKNOWN, site_word=str(answer), observed_at=self._client.now())

    async def _certain(self, handle: RunHandle, job: Job, status: RunStatus) -> RunStatus:
        """A status that may be relied on: where the site cannot tell that a job has ended, we see to it."""
        is_untold = status.reason is Reason.UNTOLD and status.state is RunState.KILLED
        if not is_untold and (word(job) not in REQUEUED_AFTER or (await self._client.about()).reads_directives):
            return status
        told = await self._by_mlflow(handle)
        if told and told.state is RunState.UNKNOWN:
            return told
        if is_untold:
            return status.model_copy(update={"reason": told.reason}) if told and told.state is status.state else status
        # Slurm's REST API goes on showing how the first start ended, though the job may have been started again.
        if told and told.state is RunState.FINISHED:
            return told.model_copy(update={"message": f"{status.site_word} is of its first start; MLflow tells this"})
        await self._client.cancel(handle.remote_id)
        return status

    async def _directory_of(self, handle: RunHandle) -> str:
        """The working directory of a run's job; where the site has forgotten the job, where it must have been."""
        if handle.remote_id not in self._directories:
            path = ""
            if handle.remote_id.isalnum():
                with contextlib.suppress(NotFound):
                    job = await self._client.job(handle.remote_id)
                    path = job.working_directory if _is_of(handle, job) else ""
            self._directories[handle.remote_id] = path or places.run_path(self._settings.root, handle)
        return self._directories[handle.remote_id]

    async def tend(self, statuses: Mapping[RunHandle, RunStatus]) -> float | None:
        """Also end what waits for ever, where that is wanted. See `Site.tend`."""
        again = await super().tend(statuses)
        for handle, status in statuses.items():
            if status.reason is not Reason.STUCK:
                self._stuck_since.pop(handle, None)
            elif (
                self._settings.fail_if_stuck
                and monotonic() - self._stuck_since.setdefault(handle, monotonic()) >= STUCK_FOR
            ):
                run_logger().error(
                    "%s is cancelled, for it will not start by itself: %s", handle.describe(), status.message
                )
                await self.cancel(handle)
        return again

    async def _put_token(self, handle: RunHandle, content: bytes) -> None:
        path = await self._directory_of(handle)
        await self._directory(path, await self._client.about()).write_token(content)

    @urgent
    async def cancel(self, handle: RunHandle) -> None:
        """Cancel the job, leave a mark that it was us, and close its MLflow run. See `Site.cancel`."""
        job = handle.remote_id
        directory = self._directories.get(job) or (
            handle.mlflow_run_id and places.run_path(self._settings.root, handle)
        )
        if not job.isalnum():
            return
        cancelled = await self._jobs.cancel(job, directory or "", lambda found: _is_of(handle, found))
        await (self._close_as_killed(handle) if cancelled else self._close_as_ended(handle))

    async def read_log(self, handle: RunHandle, offset: int = 0, limit: int | None = None) -> tuple[bytes, int]:
        """Read the log in the job's directory. See `Site.read_log`."""
        return await self._jobs.read_log(places.log_path(await self._directory_of(handle)), offset, limit)

    def store(self, handle: RunHandle | None = None) -> Store:
        """The working root, or the directory of a run. See `Site.store`."""
        root = functools.partial(self._directory_of, handle) if handle else self._settings.root
        return FirecrestStore(self._client, root, self.name)

    async def check(self) -> builtins.list[Finding]:
        """Log in, look for the partition and the account, write below the root, reach the tracking server."""
        return await check_site(self._client, self._settings, self._project)


def _ours(jobs: Iterable[Job], prefix: str) -> builtins.list[tuple[Job, re.Match[str]]]:
    """The jobs that are named after a key with a prefix."""
    named = ((job, _JOB_NAME.fullmatch(job.name)) for job in jobs if job.name.startswith(prefix))
    return [(job, match) for job, match in named if match]


def _is_of(handle: RunHandle, job: Job) -> bool:
    """Whether a job is the one that a handle means: batch systems may begin to count anew."""
    place = places.place_of(job.working_directory)
    return job.name == f"{handle.site_key}-{handle.attempt}" or (
        place is not None and (place.site_key, place.attempt) == (handle.site_key, handle.attempt)
    )
