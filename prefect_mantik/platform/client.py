"""The platform's operations, called as one account."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

from pydantic import BaseModel, SecretStr, ValidationError

from prefect_mantik.api import TOTAL_TIMEOUT, BearerLogin, Call, JsonApi
from prefect_mantik.errors import NotFound, NotSupported, RequestFailed, ServiceUnavailable
from prefect_mantik.loop import per_process
from prefect_mantik.platform.endpoints import endpoints
from prefect_mantik.platform.schemas import (
    CodeRepositoryAnswer,
    ConnectionAnswer,
    Experiment,
    PlatformRun,
    SubmittedRun,
)
from prefect_mantik.platform.tokens import PlatformTokens

SUBMIT_TIMEOUT = 300.0
"""Seconds for `POST runs`: the platform fetches the code and stages it to the site before it answers."""

M = TypeVar("M", bound=BaseModel)


class PlatformClient:
    """The platform as one account sees it. Use `platform_client`, which shares one for each account.

    Args:
        api_url: Base URL of the API.
        username: User name.
        password: Password.
        overrides: Endpoints that are somewhere else, see `endpoints`.
    """

    def __init__(
        self, api_url: str, username: str, password: SecretStr, overrides: Mapping[str, str] | None = None
    ) -> None:
        self._table = endpoints(overrides)
        self.tokens = PlatformTokens(
            JsonApi("the Mantik platform", api_url, username),
            password,
            create=self._table["create_token"],
            refresh=self._table["refresh_token"],
        )
        self._api = JsonApi("the Mantik platform", api_url, username, BearerLogin(self.tokens))
        self._experiments: dict[tuple[UUID, UUID], Experiment] = {}

    async def submit_run(self, project_id: UUID, body: Mapping[str, Any]) -> SubmittedRun:
        """Submit a run. Not repeatable: `ServiceUnavailable` with `sent` leaves open whether a job exists."""
        answer = await self._call(
            "submit_run",
            {"projectId": project_id},
            json=dict(body),
            timeout=SUBMIT_TIMEOUT,
            hide=[str(body["connectionId"])],
        )
        return self._read(SubmittedRun, "submit_run", answer)

    async def experiment(self, project_id: UUID, experiment_repository_id: UUID) -> Experiment:
        """Get an experiment repository, once a process: its MLflow experiment never changes."""
        known = self._experiments.get((project_id, experiment_repository_id))
        if known is None:
            values = {"projectId": project_id, "experimentRepositoryId": experiment_repository_id}
            known = self._read(Experiment, "experiment", await self._call("experiment", values))
            self._experiments[(project_id, experiment_repository_id)] = known
        return known

    async def connection(self, connection_id: UUID) -> ConnectionAnswer:
        """Get a Connection of the user, with its secrets."""
        user_id = (await self.tokens.login()).user_id
        values = {"userId": user_id or self._api.username, "connectionId": connection_id}
        answer = await self._call("connection", values, hide=[str(connection_id)])
        return self._read(ConnectionAnswer, "connection", answer)

    async def code_repository(self, project_id: UUID, code_repository_id: UUID) -> CodeRepositoryAnswer:
        """Get a code repository."""
        values = {"projectId": project_id, "codeRepositoryId": code_repository_id}
        return self._read(CodeRepositoryAnswer, "code_repository", await self._call("code_repository", values))

    async def check_exists(self, what: str, **values: UUID) -> None:
        """Ask for one thing of a project ("code_repository", …); raises `NotFound` where there is none."""
        await self._call(what, values)

    async def find_run(self, project_id: UUID, mlflow_run_id: str, name_part: str) -> UUID:
        """The platform's own id of a run, from its list of runs (of which it may show the first page only).

        Args:
            project_id: Where to look.
            mlflow_run_id: The MLflow run that belongs to it.
            name_part: What its name holds, and no other's.

        Raises:
            NotSupported: The platform does not list runs there.
            NotFound: It lists runs, but not this one.
        """
        answer = await self._unproven("runs", {"projectId": project_id})
        runs = answer.get("runs", []) if isinstance(answer, dict) else []
        for run in (self._read(PlatformRun, "runs", item) for item in runs):
            if run.mlflow_run_id == mlflow_run_id or (not run.mlflow_run_id and name_part in run.name):
                return run.run_id
        raise NotFound(f"The platform lists no run '{name_part}…' in project {project_id}.")

    async def run_logs(self, project_id: UUID, run_id: UUID) -> str:
        """The log of a run so far. Raises `NotSupported` where the platform has no such path."""
        answer = await self._unproven("run_logs", {"projectId": project_id, "runId": run_id})
        return answer if isinstance(answer, str) else ""

    async def cancel_run(self, project_id: UUID, run_id: UUID) -> None:
        """Cancel a run. Raises `NotSupported` where the platform has no such path."""
        await self._unproven("cancel_run", {"projectId": project_id, "runId": run_id})

    async def _unproven(self, name: str, values: Mapping[str, object]) -> Any:
        endpoint = self._table[name]
        try:
            return await self._call(name, values)
        except RequestFailed as error:
            if error.status not in (404, 405, 501):
                raise
            raise NotSupported(
                f"{self._api.base_url} does not answer {endpoint.method} {endpoint.path} ({error.detail}): no public "
                "source shows this path of the platform. If yours has it elsewhere, set it under `endpoints` of the "
                "MantikCredentials block."
            ) from error

    async def _call(
        self,
        name: str,
        values: Mapping[str, object],
        *,
        json: Any = None,
        timeout: float = TOTAL_TIMEOUT,
        hide: Sequence[str] = (),
    ) -> Any:
        endpoint = self._table[name]
        return await self._api.call(
            Call(
                endpoint.method,
                endpoint.path,
                values=values,
                json=json,
                repeatable=endpoint.repeatable,
                timeout=timeout,
                hide=hide,
            )
        )

    def _read(self, kind: type[M], name: str, answer: Any) -> M:
        try:
            return kind.model_validate(answer)
        except ValidationError as error:
            endpoint = self._table[name]
            missing = ", ".join(sorted({".".join(str(part) for part in item["loc"]) for item in error.errors()}))
            raise ServiceUnavailable(
                f"{endpoint.method} {endpoint.path}: the platform's answer lacks {missing or 'its fields'}. "
                f"Is {self._api.base_url} the platform's API URL?",
                method=endpoint.method,
                path=endpoint.path,
            ) from None


@per_process
def platform_client(
    api_url: str, username: str, password: SecretStr, overrides: tuple[tuple[str, str], ...] = ()
) -> PlatformClient:
    """The client of one account, shared by all who use that account in this process."""
    return PlatformClient(api_url, username, password, dict(overrides))
