"""After the platform refused a run: which of the things that it names is wrong, its repositories or its Connection?"""

from __future__ import annotations

from uuid import UUID

from prefect_mantik.credentials import MantikConnection
from prefect_mantik.documents import reference
from prefect_mantik.errors import ConfigurationError, NotFound, RequestFailed
from prefect_mantik.log import run_logger
from prefect_mantik.platform import PlatformClient
from prefect_mantik.runs import CodeRepository, RunSpec


class Diagnosis:
    """Looks for what a run names.

    Args:
        platform: Where.
        connection: Which Connection runs are sent with.
    """

    def __init__(self, platform: PlatformClient, connection: MantikConnection) -> None:
        self._platform, self._connection = platform, connection

    async def name_what_is_wrong(self, spec: RunSpec, code: CodeRepository, refusal: RequestFailed) -> None:
        """After a refusal: ask for each thing that the run names, so that the error can say which one is wrong."""
        project = {"projectId": spec.project_id}
        steps = [self._check_repository("code", {**project, "codeRepositoryId": code.repository_id})]
        if spec.data:
            steps.append(self._check_repository("data", {**project, "dataRepositoryId": spec.data.repository_id}))
        wrong = []
        for step in (*steps, self.check_connection()):
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

    async def check_connection(self) -> None:
        """Look for the Connection; raises `ConfigurationError` where it is not there, or for something else."""
        block = self._connection
        name = reference(block) or "the MantikConnection"
        try:
            found = await self._platform.connection(block.id)
        except RequestFailed as error:
            if error.status not in (403, 404):
                raise
            raise ConfigurationError(
                f"the Connection ID in {name} is none of {block.credentials.username!r}'s ({error.detail}): copy it "
                "from Settings > Connections in Mantik"
            ) from None
        wanted = block.provider
        if wanted and found.connection_provider and wanted.lower() != found.connection_provider.lower():
            raise ConfigurationError(
                f"the Connection in {name} is for {found.connection_provider}, the block says {wanted}"
            )
