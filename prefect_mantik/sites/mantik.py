"""Sites reached through the Mantik platform: the block and what talks.

What the platform is proven to do carries everything: it takes runs, and its MLflow server shows them. A run is found
again by its name, which holds the site key; its state is the MLflow run's. What no public source shows of the platform
(reading a log, cancelling) is tried where a user asks for it, and answered `NotSupported` where it is not there.
"""

from __future__ import annotations

import builtins
import json
import re
from collections.abc import Hashable, Sequence
from datetime import datetime, timezone
from typing import Any, ClassVar
from uuid import UUID

from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, field_validator

from prefect_mantik.backend_config import check_backend_config, site_label, with_variables
from prefect_mantik.credentials import DOCUMENTATION, LOGO, MantikConnection, MantikProject, reference
from prefect_mantik.errors import ConfigurationError, NotFound, NotSupported, RequestFailed
from prefect_mantik.log import run_logger
from prefect_mantik.platform.schemas import submit_body
from prefect_mantik.runs import Reason, RunHandle, RunKey, RunSpec, RunState, RunStatus, SiteKind
from prefect_mantik.sites.base import OUR_PREFIX, Capability, Finding, Site
from prefect_mantik.tracking import TrackedRun

SETTLE = 120.0
"""Seconds of clean looks after which the platform has no run: not established for the platform, so generous."""

FIRST_MINUTES = 300.0
"""Seconds in which a run that the tracking server does not know may still be on its way."""

RECORD_TAG = "prefect_mantik.run"
CANCELLED_TAG = "prefect_mantik.cancelled"

STATES: dict[str, tuple[RunState, Reason | None]] = {
    "SCHEDULED": (RunState.SCHEDULED, None),
    "RUNNING": (RunState.RUNNING, None),
    "FINISHED": (RunState.FINISHED, None),
    "FAILED": (RunState.FAILED, Reason.UNTOLD),
    "KILLED": (RunState.KILLED, Reason.UNTOLD),
}
"""MLflow's words (RunStatus). A word that is not here is not an end."""

_RUN_NAME = re.compile(
    r"^(?P<name>.*?)-?(?P<site_key>pm-[a-z2-7]{8}-[a-z2-7]{26}-[a-z2-7]{16})-(?P<attempt>\d+)-(?P<digest>[0-9a-f]{8})"
)
_DIGEST = 8
_REACH_IT = "the platform's web interface, or the site itself when it is used directly"


class MantikSite(Block):
    """Supercomputing site that runs are sent to through the Mantik platform.

    Example:
        ```python
        from prefect_mantik import MantikSite

        site = MantikSite.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "Mantik Site"
    _block_type_slug = "mantik-site"
    _documentation_url = DOCUMENTATION  # type: ignore[assignment]
    _logo_url = LOGO  # type: ignore[assignment]

    model_config = ConfigDict(hide_input_in_errors=True)

    connection: MantikConnection = Field(
        title="Connection", description="Connection with the login for the site, kept by the platform."
    )
    backend_config: dict[str, Any] = Field(
        title="Compute backend config",
        description="Mantik's compute backend config as a JSON object: the site's URL, resources and environment.",
    )
    settle: float = Field(
        default=SETTLE,
        title="Settle time",
        description="Seconds without a trace of a run that prove its absence after an unclear answer.",
        ge=0,
    )
    silence_warning: float = Field(
        default=1800,
        title="Silence warning",
        description="Seconds without a sign of life of a running run after which a wait warns. 0 for never.",
        ge=0,
    )
    silence_limit: float = Field(
        default=0,
        title="Silence limit",
        description="Seconds without a sign of life after which a wait stops and asks. 0 for never.",
        ge=0,
    )

    @field_validator("backend_config")
    @classmethod
    def _is_a_backend_config(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            check_backend_config(value)
        except ConfigurationError as error:
            raise ValueError(str(error)) from None
        return value

    def open(self, project: MantikProject | None = None) -> PlatformSite:
        """Give what talks to the site. `project` is needed to submit."""
        return PlatformSite(self, project)


class PlatformSite(Site):
    """A site behind the platform.

    Args:
        block: The site.
        project: Whose experiment is searched and written. None: all experiments that the account sees are searched.

    Raises:
        ConfigurationError: The Connection and the project belong to different accounts.
    """

    kind: ClassVar[SiteKind] = "mantik"

    def __init__(self, block: MantikSite, project: MantikProject | None = None) -> None:
        self._block, self._project = block, project
        self._credentials = project.credentials if project else block.connection.credentials
        self._refuse_foreign_connection()
        self.reference = reference(block)
        self.name = (self.reference or f"/{site_label(block.backend_config)} (not saved)").partition("/")[2]
        self.settle = block.settle
        self.silence_warning, self.silence_limit = block.silence_warning, block.silence_limit
        self.capabilities = frozenset[Capability]()
        self._platform = self._credentials.get_client()
        self._tracking = self._credentials.tracking_client()
        self._submitted: dict[str, UUID] = {}

    @property
    def account(self) -> Hashable:
        """One MLflow search serves all runs of one tracking account."""
        return self._tracking

    async def post(self, spec: RunSpec, key: RunKey, attempt: int) -> None:
        """Submit one run, with the key in its name and in its variables. See `Site.post`."""
        name = run_name(key, attempt, spec)
        variables = {
            "MANTIK_RUN_KEY": f"{key.site_key}-{attempt}",
            "MANTIK_RUN_KEY_DIGEST": key.digest,
            "MANTIK_RUN_SPEC_DIGEST": spec.digest,
        }
        body = submit_body(
            spec,
            name=name,
            connection_id=self._block.connection.id,
            backend_config=with_variables(spec.backend_config, variables),
        )
        try:
            submitted = await self._platform.submit_run(spec.project_id, body)
        except RequestFailed as error:
            if error.status in (400, 403, 404, 422):
                await self._name_what_is_wrong(spec, error)
            raise
        self._submitted[name] = submitted.run_id

    async def complete(self, spec: RunSpec, handle: RunHandle) -> RunHandle:
        """Leave the platform's ids with the MLflow run: whoever finds the run can then ask the platform for it.

        A convenience: the run is found by its name, with or without it.
        """
        key = handle.key
        run_id = self._submitted.pop(run_name(key, handle.attempt, spec), None) if key else None
        if key is None or run_id is None:
            return handle
        ids = {"platform_project_id": spec.project_id, "platform_run_id": run_id}
        record = {**{name: str(value) for name, value in ids.items()}, "name": key.name[:200], "key": key.digest}
        try:
            await self._tracking.set_tag(handle.remote_id, RECORD_TAG, json.dumps(record))
        except RequestFailed as error:
            run_logger().debug("The platform's ids were not left with %s: %s", handle.describe(), error)
        return handle.model_copy(update=ids)

    async def find(self, key: RunKey) -> builtins.list[RunHandle]:
        """Search the experiment for runs whose name holds the key. See `Site.find`."""
        return [handle.model_copy(update={"key": key, "name": key.name}) for handle in await self.list(key.site_key)]

    async def list(self, prefix: str = OUR_PREFIX) -> builtins.list[RunHandle]:
        """Search by run name. See `Site.list`."""
        runs = await self._tracking.runs_named_like(prefix, await self._experiment_ids())
        return [handle for run in runs if (handle := self._handle(run))]

    async def _ask(self, handles: Sequence[RunHandle]) -> dict[RunHandle, RunStatus]:
        experiments = [handle.mlflow_experiment_id for handle in handles if handle.mlflow_experiment_id]
        runs = await self._tracking.runs_by_id([handle.remote_id for handle in handles], experiments)
        now = datetime.now(timezone.utc)
        return {
            handle: run_status(runs[handle.remote_id], now)
            if handle.remote_id in runs
            else await self._missing(handle, now)
            for handle in handles
        }

    async def cancel(self, handle: RunHandle) -> None:
        """Cancel through the platform, where it has a path for that. See `Site.cancel`."""
        if (await self.poll([handle]))[handle].state.is_end:
            return
        project_id, run_id = await self._platform_ids(handle)
        await self._tracking.set_tag(handle.remote_id, CANCELLED_TAG, "true")
        try:
            await self._platform.cancel_run(project_id, run_id)
        except NotSupported as error:
            await self._tracking.set_tag(handle.remote_id, CANCELLED_TAG, "")
            raise NotSupported(
                f"{handle.describe()} was not cancelled. {error} What can cancel it: {_REACH_IT}."
            ) from None

    async def read_log(self, handle: RunHandle, offset: int = 0) -> tuple[bytes, int]:
        """Read the log through the platform, where it has a path for that. See `Site.read_log`."""
        project_id, run_id = await self._platform_ids(handle)
        try:
            text = (await self._platform.run_logs(project_id, run_id)).encode()
        except NotSupported as error:
            raise NotSupported(
                f"The log of {handle.describe()} was not read. {error} What shows it: {_REACH_IT}."
            ) from None
        return text[offset:], max(offset, len(text))

    async def check(self) -> builtins.list[Finding]:
        """Log in, get the Connection, search the experiment. See `Site.check`."""
        steps = {
            "log in to the platform": self._platform.tokens.login(),
            "get the Connection": self._check_connection(),
            "search the experiment": self.list(),
        }
        findings = []
        for what, step in steps.items():
            try:
                await step
                findings.append(Finding(what=what, ok=True))
            except (RequestFailed, ConfigurationError) as error:
                findings.append(Finding(what=what, ok=False, message=str(error)))
        return findings

    async def _experiment_ids(self) -> builtins.list[str]:
        if self._project is None:
            return await self._tracking.experiment_ids()
        project_id, experiment_id = self._project.project_id, self._project.experiment_repository_id
        try:
            return [(await self._platform.experiment(project_id, experiment_id)).mlflow_experiment_id]
        except NotFound as error:
            raise NotFound(
                f"The platform has no project {project_id} with an experiment repository {experiment_id} for "
                f"{self._credentials.username!r} ({error.detail}). Check both ids in the MantikProject block.",
                method=error.method,
                path=error.path,
                status=error.status,
                detail=error.detail,
            ) from None

    async def _name_what_is_wrong(self, spec: RunSpec, refusal: RequestFailed) -> None:
        """After a refusal: ask for each thing that the run names, so that the error can say which one is wrong."""
        project = {"projectId": spec.project_id}
        steps = [self._check_repository("code", {**project, "codeRepositoryId": spec.code.repository_id})]
        if spec.data:
            steps.append(self._check_repository("data", {**project, "dataRepositoryId": spec.data.repository_id}))
        wrong = []
        for step in (*steps, self._check_connection()):
            try:
                await step
            except ConfigurationError as error:
                wrong.append(str(error))
            except RequestFailed as error:
                run_logger().debug("Looking for the cause of a refusal: %s", error)
        if wrong:
            raise RequestFailed(
                f"The platform refused the run ({refusal.detail}): {'; '.join(wrong)}.",
                method=refusal.method,
                path=refusal.path,
                status=refusal.status,
                detail=refusal.detail,
            ) from None

    async def _check_repository(self, what: str, values: dict[str, UUID]) -> None:
        try:
            await self._platform.check_exists(f"{what}_repository", **values)
        except NotFound:
            raise ConfigurationError(
                f"project {values['projectId']} has no {what} repository {values[f'{what}RepositoryId']}"
            ) from None

    async def _check_connection(self) -> None:
        block = self._block.connection
        name = reference(block) or "the MantikConnection"
        try:
            found = await self._platform.connection(block.id)
        except RequestFailed as error:
            if error.status not in (403, 404):
                raise
            raise ConfigurationError(
                f"the Connection ID in {name} is none of {self._credentials.username!r}'s ({error.detail}): copy it "
                "from Settings > Connections in Mantik"
            ) from None
        wanted = block.provider
        if wanted and found.connection_provider and wanted.lower() != found.connection_provider.lower():
            raise ConfigurationError(
                f"the Connection in {name} is for {found.connection_provider}, the block says {wanted}"
            )

    def _handle(self, run: TrackedRun) -> RunHandle | None:
        match = _RUN_NAME.match(run.name)
        if not match:
            return None
        record = _recorded(run)
        return RunHandle(
            site=self.reference,
            site_name=self.name,
            kind=self.kind,
            remote_id=run.run_id,
            site_key=match["site_key"],
            attempt=int(match["attempt"]),
            name=record.get("name") or match["name"],
            spec_digest=match["digest"],
            account=reference(self._credentials),
            mlflow_run_id=run.run_id,
            mlflow_experiment_id=run.experiment_id,
            platform_project_id=record.get("platform_project_id"),
            platform_run_id=record.get("platform_run_id"),
            submitted_at=run.start_time,
            links={"MLflow": self._tracking.run_link(run.experiment_id, run.run_id)},
        )

    async def _missing(self, handle: RunHandle, now: datetime) -> RunStatus:
        """A run that a search omits is asked for by id: only then is it lost."""
        try:
            answer = await self._tracking.call("GET", "runs/get", params={"run_id": handle.remote_id})
        except NotFound as error:
            young = handle.submitted_at is None or (now - handle.submitted_at).total_seconds() < FIRST_MINUTES
            state = RunState.UNKNOWN if young else RunState.LOST
            reason = None if young else Reason.LOST
            return RunStatus(state=state, reason=reason, site_word=error.detail, observed_at=now)
        word = str(answer.get("run", {}).get("info", {}).get("status", ""))
        state, reason = STATES.get(word, (RunState.UNKNOWN, None))
        return RunStatus(state=state, reason=reason, site_word=word, observed_at=now)

    async def _platform_ids(self, handle: RunHandle) -> tuple[UUID, UUID]:
        project_id = handle.platform_project_id or (self._project.project_id if self._project else None)
        if project_id is None:
            raise NotSupported(
                f"The platform's project of {handle.describe()} is not known here. What can reach it: {_REACH_IT}."
            )
        if handle.platform_run_id:
            return project_id, handle.platform_run_id
        try:
            return project_id, await self._platform.find_run(project_id, handle.remote_id, handle.name)
        except (NotSupported, NotFound) as error:
            raise NotSupported(
                f"The platform's own id of {handle.describe()} is not known. {error} What can reach it: {_REACH_IT}."
            ) from None

    def _refuse_foreign_connection(self) -> None:
        theirs, ours = self._block.connection.credentials, self._credentials
        if (theirs.username, theirs.api_url) != (ours.username, ours.api_url):
            raise ConfigurationError(
                f"The Connection belongs to {theirs.username!r} at {theirs.api_url}, the project is used as "
                f"{ours.username!r} at {ours.api_url}: the platform gives a Connection to its owner only."
            )


def run_name(key: RunKey, attempt: int, spec: RunSpec) -> str:
    """The name that a run gets: readable first, then the site key, the attempt and the start of the spec's digest.

    The digest also ends the number of the attempt, whatever the platform appends to the name.
    """
    return f"{key.slug}-{key.site_key}-{attempt}-{spec.digest[:_DIGEST]}"


def run_status(run: TrackedRun, now: datetime) -> RunStatus:
    """What an MLflow run tells of the state of its job."""
    state, reason = STATES.get(run.status, (RunState.UNKNOWN, None))
    if state is RunState.KILLED and run.tags.get(CANCELLED_TAG) == "true":
        reason = Reason.CANCELLED_BY_US
    traces = [run.start_time, run.end_time, *(metric.time for metric in run.metrics.values())]
    return RunStatus(
        state=state,
        reason=reason,
        site_word=f"{run.status}, deleted" if run.deleted else run.status,
        queued_at=run.start_time,
        ended_at=run.end_time if state.is_end else None,
        observed_at=now,
        life_at=max((trace for trace in traces if trace), default=None),
    )


def _recorded(run: TrackedRun) -> dict[str, Any]:
    try:
        record = json.loads(run.tags.get(RECORD_TAG, "{}"))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
