"""The artifact at the Prefect server: found again or made once, then changed in place."""

from __future__ import annotations

from http import HTTPStatus
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey

PROGRESS_KEY = "mantik-progress"
_DESCRIPTION = "Training runs of this flow run, renewed while it waits for them"


class ProgressArtifact:
    """The one artifact of a flow run under `PROGRESS_KEY`.

    Args:
        flow_run_id: Of the flow run.
    """

    def __init__(self, flow_run_id: UUID) -> None:
        self._flow_run_id = flow_run_id
        self._id: UUID | None = None

    async def save(self, markdown: str) -> None:
        """Write the text. A call that was cut short may be repeated."""
        async with get_client() as client:
            # An earlier process made one, or an earlier call of ours whose answer never came.
            self._id = self._id or await self._oldest(client)
            if self._id is None or not await self._update(client, self._id, markdown):
                self._id = await self._create(client, markdown)

    async def _update(self, client: PrefectClient, id: UUID, markdown: str) -> bool:
        """Whether there was one to update: people delete artifacts."""
        try:
            await client.update_artifact(id, ArtifactUpdate(data=markdown))
        except httpx.HTTPStatusError as error:
            if error.response.status_code != HTTPStatus.NOT_FOUND:
                raise
            self._id = None
            return False
        return True

    async def _create(self, client: PrefectClient, markdown: str) -> UUID:
        made = await client.create_artifact(
            ArtifactCreate(
                key=PROGRESS_KEY,
                type="markdown",
                description=_DESCRIPTION,
                data=markdown,
                flow_run_id=self._flow_run_id,
            )
        )
        oldest = await self._oldest(client)
        if oldest in (None, made.id):
            return made.id
        # Two processes of this flow run made one at the same moment: both keep the older.
        await client.delete_artifact(made.id)
        await client.update_artifact(oldest, ArtifactUpdate(data=markdown))
        return oldest

    async def _oldest(self, client: PrefectClient) -> UUID | None:
        found = await client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[self._flow_run_id]),
                key=ArtifactFilterKey(any_=[PROGRESS_KEY]),
            )
        )
        return min(found, key=lambda artifact: (str(artifact.created), artifact.id)).id if found else None
