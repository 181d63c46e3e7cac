"""`TrainingJob`: what to train and where, as a block. `TrainingRun`: one run of it, which any process can pick up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect.blocks.abstract import JobBlock, JobRun
from pydantic import ConfigDict, Field, ValidationError, model_validator

from prefect_mantik.cancelling import advise_reaper
from prefect_mantik.credentials import DOCUMENTATION, LOGO, MantikProject
from prefect_mantik.documents import aload_block
from prefect_mantik.errors import (
    ConfigurationError,
    NotSupported,
    RunsFailed,
    ServiceUnavailable,
)
from prefect_mantik.holding import OnTimeout, ahold, hold, with_log
from prefect_mantik.ledger import FlowRunLedger, current_key, root_flow_run_id
from prefect_mantik.log import without_tokens
from prefect_mantik.loop import acall, call
from prefect_mantik.runs import (
    CodeDirectory,
    CodeRepository,
    DataRepository,
    GitCode,
    IfEnded,
    ParameterValue,
    RunHandle,
    RunResult,
    RunSpec,
    RunState,
    RunStatus,
    Scope,
)
from prefect_mantik.sites.opening import AnySite, remember, site_of

LOG_LIMIT = 16 * 2**20
"""Bytes of a log that are fetched at once: its end."""


class TrainingJob(JobBlock[RunResult]):
    """What to train and where: an entry point of an MLproject, its parameters, a project and a site.

    Example:
        Train, wait and look at the result:
        ```python
        from prefect_mantik import TrainingJob

        job = TrainingJob.load("BLOCK_NAME")
        run = job.trigger(key="train", parameters={"epochs": 20})
        run.wait_for_completion()
        print(run.fetch_result().status.state)
        ```
    """

    _block_type_name = "Training Job"
    _block_type_slug = "training-job"
    _documentation_url = DOCUMENTATION  # type: ignore[assignment]
    _logo_url = LOGO  # type: ignore[assignment]

    model_config = ConfigDict(hide_input_in_errors=True)

    project: MantikProject = Field(
        title="Mantik project", description="Project that tracks the run, gives the code and is charged."
    )
    site: AnySite = Field(title="Site", description="Site that the run is sent to.")
    entry_point: str = Field(default="main", title="Entry point", description="Entry point of the MLproject.")
    parameters: dict[str, Any] = Field(
        default_factory=dict, title="Parameters", description="Parameters of the entry point, as a JSON object."
    )
    mlproject_path: str = Field(
        default="MLproject",
        title="MLproject path",
        description="Path of the MLproject file, from the root of the code repository.",
    )
    branch: str = Field(default="main", title="Branch", description="Branch of the code repository.")
    commit: str = Field(
        default="", title="Commit", description="Commit of the code repository. It wins over the branch."
    )
    git_url: str = Field(
        default="",
        title="Git URL",
        description="Git repository with the code, instead of the project's code repository. For sites that are "
        "reached directly.",
    )
    directory: str = Field(
        default="",
        title="Directory",
        description="Directory with the code where the flow runs, instead of a repository. For sites that are reached "
        "directly.",
    )
    data_branch: str = Field(default="", title="Data branch", description="Branch of the data repository, if any.")
    data_commit: str = Field(default="", title="Data commit", description="Commit of the data repository, if any.")

    def spec(self, parameters: Mapping[str, ParameterValue] | None = None) -> RunSpec:
        """The complete description of a run.

        Args:
            parameters: Parameters that are added to those of the block, or replace them.

        Raises:
            ConfigurationError: A value has no place in a run's description.
        """
        project = self.project
        try:
            return RunSpec(
                entry_point=self.entry_point,
                parameters={**self.parameters, **(parameters or {})},
                mlproject_path=self.mlproject_path,
                code=self._code(),
                data=DataRepository(
                    repository_id=project.data_repository_id,
                    branch=self.data_branch or None,
                    commit=self.data_commit or None,
                )
                if project.data_repository_id
                else None,
                project_id=project.project_id,
                experiment_repository_id=project.experiment_repository_id,
                backend_config=self.site.whole_config,
                budget_account=project.compute_budget_account or None,
            )
        except ValidationError as error:
            findings = "; ".join(
                f"{'.'.join(str(part) for part in item['loc'][:2])}: {item['msg']}" for item in error.errors()
            )
            raise ConfigurationError(f"The training job cannot be submitted: {findings}.") from None

    def _code(self) -> CodeRepository | GitCode | CodeDirectory:
        if self.directory:
            return CodeDirectory(path=self.directory)
        if self.git_url:
            return GitCode(url=self.git_url, ref=self.commit or self.branch)
        return CodeRepository(
            repository_id=self.project.code_repository_id, branch=self.branch or None, commit=self.commit or None
        )

    @model_validator(mode="after")
    def _has_one_code(self) -> TrainingJob:
        if self.git_url and self.directory:
            raise ValueError("the code is either in a git repository or in a directory: leave one of the two empty")
        return self

    # Prefect declares `trigger` as a coroutine without arguments; a plain one beside its twin is today's convention.
    def trigger(  # type: ignore[override]
        self,
        *,
        key: str,
        parameters: Mapping[str, ParameterValue] | None = None,
        if_ended: IfEnded = "raise",
        scope: Scope = "flow",
        shared: bool = False,
    ) -> TrainingRun:
        """Submit a run, or pick up the one that exists under the key. Arguments and errors as for `submit_run`."""
        handle = call(submit, self, key=key, parameters=parameters, if_ended=if_ended, scope=scope, shared=shared)
        return TrainingRun(handle)

    async def atrigger(
        self,
        *,
        key: str,
        parameters: Mapping[str, ParameterValue] | None = None,
        if_ended: IfEnded = "raise",
        scope: Scope = "flow",
        shared: bool = False,
    ) -> TrainingRun:
        """As `trigger`, awaited."""
        handle = await acall(
            submit, self, key=key, parameters=parameters, if_ended=if_ended, scope=scope, shared=shared
        )
        return TrainingRun(handle)


class TrainingRun(JobRun[RunResult]):
    """One run, from its handle alone: works in another process, on another host, days later.

    Args:
        handle: Which run.
    """

    def __init__(self, handle: RunHandle) -> None:
        self.handle = handle

    def status(self) -> RunStatus:
        """Ask the site for the run's status now."""
        return call(status, self.handle)

    async def astatus(self) -> RunStatus:
        """As `status`, awaited."""
        return await acall(status, self.handle)

    def wait_for_completion(  # type: ignore[override]
        self, *, timeout: float | None = None, on_timeout: OnTimeout = "leave"
    ) -> None:
        """Wait until the run ended, well or not.

        Args:
            timeout: Seconds after which to stop waiting. None: no limit.
            on_timeout: What then becomes of the job: "leave" it alone, or "cancel" it.

        Raises:
            WaitTimeout: The time passed first.
        """
        hold([self.handle], timeout=timeout, on_timeout=on_timeout)

    async def await_for_completion(self, *, timeout: float | None = None, on_timeout: OnTimeout = "leave") -> None:
        """As `wait_for_completion`, awaited."""
        await ahold([self.handle], timeout=timeout, on_timeout=on_timeout)

    def fetch_result(self) -> RunResult:  # type: ignore[override]
        """The result of a run that ended.

        Raises:
            RunsFailed: It did not finish.
            NotSupported: It has not ended.
            ServiceUnavailable: The site cannot be asked now.
        """
        return call(_result, self.handle)

    async def afetch_result(self) -> RunResult:
        """As `fetch_result`, awaited."""
        return await acall(_result, self.handle)

    def cancel(self) -> None:
        """End the run. That it has ended already is success."""
        call(cancel, self.handle)

    async def acancel(self) -> None:
        """As `cancel`, awaited."""
        await acall(cancel, self.handle)

    def logs(self) -> str:
        """The run's log so far."""
        return call(log, self.handle)

    async def alogs(self) -> str:
        """As `logs`, awaited."""
        return await acall(log, self.handle)


async def submit(
    job: TrainingJob | str,
    *,
    key: str,
    parameters: Mapping[str, ParameterValue] | None = None,
    if_ended: IfEnded = "raise",
    scope: Scope = "flow",
    shared: bool = False,
) -> RunHandle:
    """Submit a run of a job, on the background loop. See `tasks.submit_run`."""
    from prefect_mantik.kept import execution_of

    loaded = await aload_block(TrainingJob, job) if isinstance(job, str) else job
    spec, site = loaded.spec(parameters), loaded.site.open(loaded.project)
    root = await root_flow_run_id()
    if root:
        await advise_reaper()
    run_key, execution = await current_key(key, root, scope), await execution_of(root)
    handle = execution.given(run_key, spec, site, shared) if execution else None
    if handle is None:
        handle = await site.submit(spec, run_key, ledger=FlowRunLedger(root), if_ended=if_ended, shared=shared)
        if execution:
            execution.give(run_key, handle)
    remember(handle, site, loaded.project)
    return handle


async def status(handle: RunHandle) -> RunStatus:
    """Ask for the status of one run."""
    return (await (await site_of(handle)).poll([handle]))[handle]


async def cancel(handle: RunHandle) -> None:
    """End a run."""
    await (await site_of(handle)).cancel(handle)


async def log(handle: RunHandle) -> str:
    """The log of a run so far, or its end where it is very long."""
    data, end = await (await site_of(handle)).read_log(handle, -LOG_LIMIT)
    cut = f"[the first {end - len(data)} bytes are left out]\n" if end > len(data) else ""
    return cut + without_tokens(data.decode(errors="replace"), is_cut=bool(cut))


async def _result(handle: RunHandle) -> RunResult:
    site = await site_of(handle)
    now = (await site.poll([handle]))[handle]
    if now.state is RunState.UNKNOWN:
        raise ServiceUnavailable(f"{handle.describe()} cannot be asked now. {now.site_word}")
    if not now.state.is_end:
        raise NotSupported(f"{handle.describe()} has no result yet: it is {now.describe()}. Wait for it first.")
    result = await with_log(site, handle, now)
    if not result.finished:
        raise RunsFailed([result])
    return result


def as_handle(run: RunHandle | RunResult | TrainingRun) -> RunHandle:
    """The handle of anything that stands for a run."""
    return run if isinstance(run, RunHandle) else run.handle
