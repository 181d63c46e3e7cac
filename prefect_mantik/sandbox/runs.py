"""Runs as the platform keeps them, and what becomes of their MLflow runs."""

from __future__ import annotations

import asyncio
import itertools
import logging
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import httpx
from pydantic import BaseModel, Field

from prefect_mantik.sandbox import mlproject, rendering
from prefect_mantik.sandbox.accounts import Accounts, Connection, User
from prefect_mantik.sandbox.backend_config import BackendConfig, parse_backend_config
from prefect_mantik.sandbox.catalogue import Catalogue
from prefect_mantik.sandbox.errors import ApiError, configuration_error
from prefect_mantik.sandbox.incarnation import from_slurm, from_unicore
from prefect_mantik.sandbox.jobs import Job, JobState, timestamp
from prefect_mantik.sandbox.mlflow_server import ENDED, MlflowServer
from prefect_mantik.sandbox.repositories import Git, remove_excluded
from prefect_mantik.sandbox.scheduler import Site
from prefect_mantik.sandbox.settings import Switches

logger = logging.getLogger(__name__)


class LocalRun(BaseModel):
    """A run that somebody executes and only reports to the platform."""

    name: str
    experimentRepositoryId: UUID  # noqa: N815 (the API's own spelling, here and below)
    codeRepositoryId: UUID | None = None  # noqa: N815
    branch: str | None = None
    commit: str | None = None
    dataRepositoryId: UUID | None = None  # noqa: N815
    dataBranch: str | None = None  # noqa: N815
    dataCommit: str | None = None  # noqa: N815
    mlflowMlprojectFilePath: str | None = None  # noqa: N815
    entryPoint: str | None = None  # noqa: N815
    mlflowParameters: dict[str, Any] | None = None  # noqa: N815
    backendConfig: dict[str, Any] = Field(default_factory=dict)  # noqa: N815
    mlflowRunId: str  # noqa: N815


class RemoteRun(BaseModel):
    """A run that the platform is to submit to a site."""

    name: str
    experimentRepositoryId: UUID  # noqa: N815
    codeRepositoryId: UUID  # noqa: N815
    branch: str | None = None
    commit: str | None = None
    dataRepositoryId: UUID | None = None  # noqa: N815
    dataBranch: str | None = None  # noqa: N815
    dataCommit: str | None = None  # noqa: N815
    connectionId: UUID  # noqa: N815
    computeBudgetAccount: str | None = None  # noqa: N815
    mlflowMlprojectFilePath: str  # noqa: N815
    entryPoint: str  # noqa: N815
    mlflowParameters: dict[str, Any] = Field(default_factory=dict)  # noqa: N815
    backendConfig: dict[str, Any]  # noqa: N815


@dataclass(kw_only=True)
class PlatformRun:
    """A run in the platform's books."""

    name: str
    owner: str
    experiment_id: UUID
    mlflow_run_id: str | None
    mlflow_name: str | None = None
    job: Job | None = None
    status: str = "SCHEDULED"
    log: str | None = None
    cancelled: bool = False
    details: dict[str, Any] = field(default_factory=dict)
    id: UUID = field(default_factory=uuid4)
    created: float = field(default_factory=time.time)

    def describe(self) -> dict[str, Any]:
        """Describe the run for the API."""
        return {
            "runId": str(self.id),
            "name": self.name,
            "status": self.status,
            "mlflowRunId": self.mlflow_run_id,
            "experimentRepositoryId": str(self.experiment_id),
            "createdAt": timestamp(self.created),
            "startTime": timestamp(self.job.started if self.job else None),
            "endTime": timestamp(self.job.ended if self.job else None),
        }


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """A submission that was found good, with its files at hand."""

    run: PlatformRun
    request: RemoteRun
    config: BackendConfig
    site: Site
    connection: Connection
    command: str
    files: Path
    reference: str
    token: str


class Runs:
    """Takes runs, hands their jobs to the sites and keeps their MLflow runs up to date."""

    def __init__(
        self,
        *,
        accounts: Accounts,
        catalogue: Catalogue,
        sites: list[Site],
        mlflow: MlflowServer,
        git: Git,
        switches: Switches,
        directory: Path,
        tracking_uri: str,
    ) -> None:
        self.runs: dict[UUID, PlatformRun] = {}
        self._accounts = accounts
        self._catalogue = catalogue
        self._sites = sites
        self._mlflow = mlflow
        self._git = git
        self._switches = switches
        self._directory = directory
        self._tracking_uri = tracking_uri
        self._names: set[str] = set()
        self._later: set[asyncio.Task[None]] = set()

    def get(self, run_id: UUID) -> PlatformRun:
        """Give a run by the platform's own id."""
        try:
            return self.runs[run_id]
        except KeyError:
            raise ApiError(404, f"Run {run_id} not found") from None

    def unique_name(self, name: str) -> str:
        """Give a run name that the experiment does not have yet."""
        return next(f"{name}-{n}" for n in itertools.count(1) if f"{name}-{n}" not in self._names)

    def add_local(self, request: LocalRun, user: User) -> PlatformRun:
        """Put a run into the books that is executed elsewhere."""
        self._catalogue.check_experiment(request.experimentRepositoryId)
        self._check_repositories(request)
        run = PlatformRun(
            name=request.name,
            owner=user.name,
            experiment_id=request.experimentRepositoryId,
            mlflow_run_id=request.mlflowRunId,
            mlflow_name=request.name,
        )
        self.runs[run.id] = run
        return run

    async def submit(self, request: RemoteRun, user: User, token: str) -> PlatformRun:
        """Check a submission completely, then make the MLflow run and the job.

        Args:
            request: The body of the submission.
            user: Who submits.
            token: Their access token, which the job will use.
        """
        plan = await self._check(request, user, token)
        if self._switches.run_appears == "at-once":
            await self._carry_out(plan)
            self.runs[plan.run.id] = plan.run
        else:
            self.runs[plan.run.id] = plan.run
            later = asyncio.create_task(self._carry_out_later(plan, self._switches.run_appears_after))
            self._later.add(later)
            later.add_done_callback(self._later.discard)
        return plan.run

    async def cancel(self, run: PlatformRun) -> None:
        """End a run's job and its MLflow run."""
        run.cancelled = True
        if run.job is not None:
            await self._site(run.job.site).end(run.job)
        await self._set_status(run, "KILLED")

    def read_log(self, run: PlatformRun) -> str:
        """Give what a run has written so far."""
        if run.job is not None and run.job.log.exists():
            return run.job.log.read_text(errors="replace")
        return run.log or ""

    def find_job(self, job_id: UUID) -> tuple[Site, Job]:
        """Give a job and its site."""
        for site in self._sites:
            for job in site.jobs:
                if job.id == job_id:
                    return site, job
        raise ApiError(404, f"Job {job_id} not found")

    async def close(self) -> None:
        """Forget what was to appear later."""
        for task in self._later:
            task.cancel()
        await asyncio.gather(*self._later, return_exceptions=True)

    async def _check(self, request: RemoteRun, user: User, token: str) -> _Plan:
        self._catalogue.check_experiment(request.experimentRepositoryId)
        self._check_repositories(request)
        connection = self._accounts.connection(user, request.connectionId)
        config = parse_backend_config(request.backendConfig)
        site = self._find_site(config)
        if connection.provider != site.kind:
            raise site.refusal(f"the connection is one for {connection.provider}, {site.name} is a {site.kind} site")
        site.check_login(connection.login, connection.password)
        site.check_request(queue=config.resources["Queue"], nodes=config.resources.get("Nodes", 1))
        if not request.computeBudgetAccount:
            raise configuration_error("Environment variable 'MANTIK_COMPUTE_BUDGET_ACCOUNT' not set")
        reference = request.commit or request.branch
        if not reference:
            raise configuration_error("A branch or a commit of the code repository is needed")
        run = PlatformRun(
            name=request.name,
            owner=user.name,
            experiment_id=request.experimentRepositoryId,
            mlflow_run_id=None,
        )
        files = self._directory / str(run.id)
        try:
            run.details["commit"] = await self._git.export(self._catalogue.code_uri, reference, files)
            found = mlproject.locate(files, request.mlflowMlprojectFilePath)
            command = mlproject.command(found, request.entryPoint, request.mlflowParameters)
            image = config.apptainer
            if image is not None and not image.remote and not (found.parent / image.path).is_file():
                raise configuration_error(f"No Apptainer image at {image.path!r}")
            remove_excluded(found.parent, config.exclude)
        except ApiError:
            shutil.rmtree(files, ignore_errors=True)
            raise
        return _Plan(
            run=run,
            request=request,
            config=config,
            site=site,
            connection=connection,
            command=command,
            files=found.parent,
            reference=reference,
            token=token,
        )

    def _check_repositories(self, request: RemoteRun | LocalRun) -> None:
        if request.codeRepositoryId is not None:
            self._catalogue.check_code(request.codeRepositoryId)
        if request.dataRepositoryId is not None:
            self._catalogue.check_data(request.dataRepositoryId)

    def _find_site(self, config: BackendConfig) -> Site:
        wanted = config.unicore_url or config.firecrest_url or ""
        kind = "UNICORE" if config.unicore_url else "FirecREST"
        for site in self._sites:
            named = config.machine in (None, site.name)
            if site.kind == kind and named and _same_url(site.url, wanted):
                return site
        where = wanted if config.machine is None else f"{wanted} with the machine {config.machine!r}"
        known = ", ".join(f"{site.name} ({site.url})" for site in self._sites if site.kind == kind)
        raise configuration_error(f"No {kind} site at {where}; the sandbox has {known}")

    def _site(self, name: str) -> Site:
        return next(site for site in self._sites if site.name == name)

    async def _carry_out_later(self, plan: _Plan, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if plan.run.cancelled:
            return
        try:
            await self._carry_out(plan)
        except ApiError as error:  # the POST was answered long ago
            plan.run.status = "FAILED"
            logger.warning("Run %s could not be carried out: %s", plan.run.id, error)

    async def _carry_out(self, plan: _Plan) -> None:
        run, request = plan.run, plan.request
        run.mlflow_name = self.unique_name(run.name) if self._switches.run_name == "suffix" else run.name
        self._names.add(run.mlflow_name)
        tags = {
            "mlflow.user": run.owner,
            "mlflow.source.type": "PROJECT",
            "mlflow.source.name": self._catalogue.code_uri,
            "mlflow.source.git.commit": run.details["commit"],
            "mlflow.project.entryPoint": request.entryPoint,
        }
        try:
            run.mlflow_run_id = await self._mlflow.create_run(
                self._catalogue.mlflow_experiment_id, run.mlflow_name, run.owner, tags
            )
        except httpx.HTTPError as error:
            raise ApiError(500, f"The MLflow run could not be made: {error}") from error
        environment = {
            "MANTIK_GIT_REF": plan.reference,
            "MLFLOW_EXPERIMENT_ID": self._catalogue.mlflow_experiment_id,
            "MLFLOW_RUN_ID": run.mlflow_run_id,
            "MLFLOW_RUN_NAME": run.mlflow_name,
            "MLFLOW_TRACKING_TOKEN": plan.token,
            "MLFLOW_TRACKING_URI": self._tracking_uri,
        }
        self._hand_over(plan, environment)

    def _hand_over(self, plan: _Plan, environment: dict[str, str]) -> None:
        config, run, site, login = plan.config, plan.run, plan.site, plan.connection.login
        if site.kind == "UNICORE":
            directory = site.directory / "workdirs" / str(run.id)
            job = from_unicore(
                rendering.unicore_job(config, account=plan.request.computeBudgetAccount, environment=environment)
            )
        else:
            directory = site.directory / "scratch" / login / "mantik" / str(run.mlflow_run_id)
            job = from_slurm(
                rendering.slurm_script(
                    config, plan.command, run_id=str(run.mlflow_run_id), directory=directory, environment=environment
                )
            )
        directory.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(plan.files, directory)
        shutil.rmtree(self._directory / str(run.id), ignore_errors=True)
        if site.kind == "UNICORE":
            (directory / rendering.SCRIPT_NAME).write_text(rendering.mantik_script(config, plan.command))
        run.job = site.submit(job, owner=login, directory=directory, on_change=lambda job: self._follow(run, job))

    async def _follow(self, run: PlatformRun, job: Job) -> None:
        if job.state is JobState.RUNNING:
            await self._set_status(run, "RUNNING")
            return
        status = {JobState.COMPLETED: "FINISHED", JobState.CANCELLED: "KILLED"}.get(job.state, "FAILED")
        if job.kind == "UNICORE" and status == "KILLED":
            status = "FAILED"  # UNICORE has no word for it
        if run.cancelled:
            status = "KILLED"
        run.status = status
        if self._switches.close_dead_runs:
            await self._set_status(run, status)

    async def _set_status(self, run: PlatformRun, status: str) -> None:
        run.status = status
        if run.mlflow_run_id is None:
            return
        try:
            if await self._mlflow.get_status(run.mlflow_run_id) not in ENDED:
                await self._mlflow.set_status(run.mlflow_run_id, status)
        except (httpx.HTTPError, RuntimeError) as error:  # RuntimeError: the client was closed, we are shutting down
            logger.warning("Run %s is %s, but MLflow could not be told: %s", run.id, status, error)


def _same_url(one: str, other: str) -> bool:
    parts = [urlsplit(url.rstrip("/").replace("localhost", "127.0.0.1")) for url in (one, other)]
    return parts[0] == parts[1]
