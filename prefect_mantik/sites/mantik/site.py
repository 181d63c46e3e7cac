"""Sites reached through the Mantik platform: what talks.

What the platform is proven to do carries everything: it takes runs, and its MLflow server shows them. A run is found
again by its name, which holds the site key; its state is the MLflow run's. What no public source shows of the platform
(reading a log, cancelling) is tried where a user asks for it, and answered `NotSupported` where it is not there.
"""

from __future__ import annotations

import builtins
from collections.abc import Awaitable, Hashable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

from pydantic import ValidationError

from prefect_mantik.api import urgent
from prefect_mantik.backend_config import backend_kind, parse_backend_config, site_label, with_variables
from prefect_mantik.credentials import MantikCredentials, MantikProject
from prefect_mantik.documents import reference
from prefect_mantik.errors import ConfigurationError, KeyInUse, MantikError, NotFound, NotSupported, RequestFailed
from prefect_mantik.log import run_logger
from prefect_mantik.platform.schemas import submit_body
from prefect_mantik.runs import CodeRepository, RunHandle, RunKey, RunSpec, RunState, RunStatus, SiteKind
from prefect_mantik.sites.base import OUR_PREFIX, Capability, Finding, Pace, Site, not_found
from prefect_mantik.sites.behind import JobsBehind
from prefect_mantik.sites.diagnosis import Diagnosis
from prefect_mantik.sites.mlflow_runs import close_mlflow_run
from prefect_mantik.sites.tracked import (
    CANCELLED_TAG,
    KEY_TAG,
    RECORD_TAG,
    RECORDED,
    STATES,
    identity_of,
    run_name,
    run_status,
)
from prefect_mantik.tracking import TrackedRun, client

if TYPE_CHECKING:
    from prefect_mantik.sites.mantik.block import MantikSite

_REACH_IT = "the platform's web interface, or the site itself when it is used directly"


class PlatformSite(Site):
    """A site behind the platform.

    Args:
        block: The site.
        project: Whose experiment is searched and written. None: all experiments that the account sees are searched.

    Raises:
        ConfigurationError: The Connection and the project belong to different accounts.
    """

    kind: ClassVar[SiteKind] = "mantik"
    road: ClassVar[str] = "through the platform"

    def __init__(self, block: MantikSite, project: MantikProject | None = None) -> None:
        self._block, self._project = block, project
        self._credentials = project.credentials if project else block.connection.credentials
        self._refuse_foreign_connection()
        self.reference, self.project_id = reference(block), project.project_id if project else None
        self.name = (self.reference or f"/{site_label(block.backend_config)} (not saved)").partition("/")[2]
        self.settle = block.settle
        self.silence_warning, self.silence_limit = block.silence_warning, block.silence_limit
        self.pace = Pace(block.poll_shortest, block.poll_longest)
        self.capabilities = frozenset[Capability]()
        self._platform = self._credentials.get_client()
        self._tracking = self._credentials.tracking_client()
        self._diagnosis = Diagnosis(self._platform, block.connection)
        self._behind = self._jobs_behind()
        if self._behind:
            self.capabilities = frozenset({Capability.FRESH_STATE, Capability.LOGS, Capability.CANCEL})

    @property
    def account(self) -> Hashable:
        """One MLflow search serves all runs of one tracking account."""
        return self._tracking

    @property
    def shared_account(self) -> str:
        """See `Site.shared_account`."""
        return f"mlflow {self._credentials.username} {self._tracking.uri}"

    def _jobs_behind(self) -> JobsBehind | None:
        config, connection = self._block.backend_config, self._block.connection
        if not self._block.ask_site:
            return None
        if backend_kind(config) == "unicore":
            from prefect_mantik.sites.unicore.behind import UnicoreBehind

            return JobsBehind(UnicoreBehind(str(config["UnicoreApiUrl"]), connection, self.name), self.name)
        if where := parse_backend_config(config).firecrest:
            from prefect_mantik.sites.firecrest.behind import FirecrestBehind

            return JobsBehind(FirecrestBehind(where, connection), self.name)
        return None

    async def post(self, spec: RunSpec, key: RunKey, attempt: int) -> str:
        """Submit one run, with the key in its name and in its variables. See `Site.post`."""
        variables = {
            "MANTIK_RUN_KEY": f"{key.site_key}-{attempt}",
            "MANTIK_RUN_KEY_DIGEST": key.digest,
            "MANTIK_RUN_SPEC_DIGEST": spec.digest,
        }
        body = submit_body(
            spec,
            _repository(spec),
            name=run_name(key, attempt, spec),
            connection_id=self._block.connection.id,
            backend_config=with_variables(spec.backend_config, variables),
        )
        try:
            return str((await self._platform.submit_run(spec.project_id, body)).run_id)
        except RequestFailed as error:
            if error.status in (400, 403, 404, 422):
                await self._diagnosis.name_what_is_wrong(spec, _repository(spec), error)
            raise

    async def complete(self, spec: RunSpec, handle: RunHandle, receipt: str | None = None) -> RunHandle:
        """Leave a record with the MLflow run: whoever finds it then knows its site, and can ask the platform for it.

        A help, not a need: the run is found by its name. With the tag it is also found when somebody renamed it.
        """
        if receipt is None or handle.platform_run_id:
            return handle
        ids = {"platform_project_id": spec.project_id, "platform_run_id": UUID(receipt)}
        known = handle.model_copy(update={**ids, "site": self.reference, "site_name": self.name})
        try:
            await self._tracking.set_tags(
                handle.remote_id,
                {KEY_TAG: known.site_key, RECORD_TAG: known.model_dump_json(include=RECORDED, exclude_none=True)},
            )
        except RequestFailed as error:
            run_logger().debug("No record was left with %s: %s", handle.describe(), error)
        return known

    async def find(self, key: RunKey) -> builtins.list[RunHandle]:
        """Search the experiment for runs with the key in the name, or in the tag. See `Site.find`."""
        experiments = await self._experiment_ids()
        runs = await self._tracking.runs_named_like(key.site_key, experiments)
        runs = runs or await self._tracking.runs_tagged(KEY_TAG, key.site_key, experiments)
        self._refuse_direct(key, runs)
        return [handle.model_copy(update={"key": key, "name": key.name}) for handle in self._handles(runs)]

    async def list(self, prefix: str = OUR_PREFIX) -> builtins.list[RunHandle]:
        """Search by run name. Runs of which no record tells the site may be another's. See `Site.list`."""
        runs = await self._tracking.runs_named_like(prefix, await self._experiment_ids())
        return [handle for handle in self._handles(runs) if handle.site == self.reference]

    async def ask(self, handles: Sequence[RunHandle]) -> dict[RunHandle, RunStatus]:
        """One search for all. See `Site.ask`."""
        experiments = [handle.mlflow_experiment_id for handle in handles if handle.mlflow_experiment_id]
        ids = [handle.remote_id for handle in handles]
        runs = await self._tracking.runs_by_id(ids, experiments, timeout=client.POLL_TIMEOUT)
        now = self._tracking.now()
        return {
            handle: run_status(runs[handle.remote_id], now)
            if handle.remote_id in runs
            else await self._missing(handle, now)
            for handle in handles
        }

    async def refine(self, statuses: Mapping[RunHandle, RunStatus]) -> dict[RunHandle, RunStatus]:
        """What the site itself says counts more, where it can be asked. See `Site.refine`."""
        return await self._behind.freshened(statuses) if self._behind else dict(statuses)

    async def tend(self, statuses: Mapping[RunHandle, RunStatus]) -> float | None:
        """Close the MLflow run of a job that the site says has ended. See `Site.tend`."""
        if self._behind:
            for handle, status in statuses.items():
                await close_mlflow_run(self._tracking, handle, status)
        return None

    @urgent
    async def cancel(self, handle: RunHandle) -> None:
        """Cancel at the site itself, or through the platform where it has a path for that. See `Site.cancel`."""
        if (await self.poll([handle]))[handle].state.is_end:
            return
        await self._mark_cancelled(handle, "true")
        if self._behind and await self._behind.cancel(handle):
            return
        try:
            project_id, run_id = await self._platform_ids(handle)
            await self._platform.cancel_run(project_id, run_id)
        except NotSupported as error:
            await self._mark_cancelled(handle, "")
            raise NotSupported(
                f"{handle.describe()} was not cancelled. {error}{self._why_not_there()} What can cancel it: "
                f"{_REACH_IT}."
            ) from None
        except MantikError:
            await self._mark_cancelled(handle, "")
            raise

    def _why_not_there(self) -> str:
        return f" Nor at the site itself: {self._behind.trouble}" if self._behind and self._behind.trouble else ""

    async def _mark_cancelled(self, handle: RunHandle, value: str) -> None:
        """Say in a tag that it was us: a run that we cancelled is never submitted again. Cancelling goes on without."""
        try:
            await self._tracking.set_tags(handle.remote_id, {CANCELLED_TAG: value})
        except RequestFailed as error:
            run_logger().warning("%s is not marked as cancelled by us: %s", handle.describe(), error)

    async def read_log(self, handle: RunHandle, offset: int = 0, limit: int | None = None) -> tuple[bytes, int]:
        """Read the log at the site itself, or through the platform where it has a path. See `Site.read_log`."""
        if self._behind and (found := await self._behind.read_log(handle, offset, limit)):
            return found
        project_id, run_id = await self._platform_ids(handle)
        try:
            text = (await self._platform.run_logs(project_id, run_id)).encode()
        except NotSupported as error:
            raise NotSupported(
                f"The log of {handle.describe()} was not read. {error}{self._why_not_there()} "
                f"What shows it: {_REACH_IT}."
            ) from None
        if not text:  # the run has not begun, or the platform tells nothing of it now
            return b"", max(offset, 0)
        at = max(0, len(text) + offset) if offset < 0 else min(offset, len(text))
        part = text[at:] if limit is None else text[at : at + limit]
        return part, at + len(part)

    async def check(self) -> builtins.list[Finding]:
        """Log in, get the Connection, search the experiment. See `Site.check`."""
        steps: dict[str, Awaitable[Any]] = {
            "log in to the platform": self._platform.tokens.login(),
            "get the Connection": self._diagnosis.check_connection(),
            "search the experiment": self.list(),
        }
        if self._behind:
            steps["log in at the site itself, for fresh states, logs and cancelling"] = self._behind.log_in()
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

    def _refuse_direct(self, key: RunKey, runs: Sequence[TrackedRun]) -> None:
        """A key that was used for a run sent to a site directly would otherwise be submitted twice."""
        for run in runs:
            told = identity_of(run)
            if told.get("kind", self.kind) != self.kind and run.status not in ("FAILED", "KILLED"):
                raise KeyInUse(
                    f"Key '{key.name}' belongs to a run that was sent to {told.get('site_name')} directly "
                    f"({self._tracking.run_link(run.experiment_id, run.run_id)}). Use another key."
                )

    def _handles(self, runs: Sequence[TrackedRun]) -> builtins.list[RunHandle]:
        return [handle for run in runs if (handle := self._handle(run))]

    def _handle(self, run: TrackedRun) -> RunHandle | None:
        told = identity_of(run)
        if told.get("kind", self.kind) != self.kind:
            return None
        try:
            return RunHandle.model_validate(
                {
                    "site": self.reference,
                    "site_name": self.name,
                    **told,
                    "kind": self.kind,
                    "remote_id": run.run_id,
                    "account": reference(self._credentials),
                    "mlflow_run_id": run.run_id,
                    "mlflow_experiment_id": run.experiment_id,
                    "submitted_at": run.start_time,
                    "links": {"MLflow": self._tracking.run_link(run.experiment_id, run.run_id)},
                }
            )
        except ValidationError:
            return None  # none of ours, or its tag was edited by hand and its name changed

    async def _missing(self, handle: RunHandle, now: datetime) -> RunStatus:
        """A run that a search omits is asked for by id: only then is it lost."""
        try:
            answer = await self._tracking.call("GET", "runs/get", params={"run_id": handle.remote_id})
        except NotFound as error:
            if handle.remote_id not in error.detail:  # a gateway's 404, not MLflow's word on this run
                return RunStatus(state=RunState.UNKNOWN, site_word=str(error), observed_at=now)
            return not_found(handle, error.detail)
        word = str(answer.get("run", {}).get("info", {}).get("status", ""))
        state, reason = STATES.get(word, (RunState.UNKNOWN, None))
        return RunStatus(state=state, reason=reason, site_word=word, observed_at=now)

    async def _platform_ids(self, handle: RunHandle) -> tuple[UUID, UUID]:
        project_id = handle.platform_project_id or self.project_id
        if project_id is None:
            raise NotSupported(
                f"The platform's project of {handle.describe()} is not known here. What can reach it: {_REACH_IT}."
            )
        if handle.platform_run_id:
            return project_id, handle.platform_run_id
        try:
            return project_id, await self._platform.find_run(
                project_id, handle.remote_id, f"{handle.site_key}-{handle.attempt}-"
            )
        except (NotSupported, NotFound) as error:
            raise NotSupported(
                f"The platform's own id of {handle.describe()} is not known. {error} What can reach it: {_REACH_IT}."
            ) from None

    def _refuse_foreign_connection(self) -> None:
        theirs, ours = self._block.connection.credentials, self._credentials
        if _account(theirs) != _account(ours):
            raise ConfigurationError(
                f"The Connection belongs to {_account(theirs)}, the project is used as {_account(ours)}: the platform "
                "gives a Connection to its owner only."
            )


def _repository(spec: RunSpec) -> CodeRepository:
    if isinstance(spec.code, CodeRepository):
        return spec.code
    raise ConfigurationError(
        "The platform takes code from a code repository of the project. Code from a git URL or a directory can be sent "
        "to a site that is reached directly, such as a UnicoreSite."
    )


def _account(credentials: MantikCredentials) -> str:
    return f"{credentials.username!r} at {credentials.api_url}, tracking {credentials.tracking_uri}"
