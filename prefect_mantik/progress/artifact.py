"""The artifact at the Prefect server: found again or made once, then changed in place."""

from __future__ import annotations

from contextlib import suppress
from http import HTTPStatus
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.exceptions import ObjectNotFound

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
            if self._id and await self._update(client, self._id, markdown):
                return
            # An earlier process made one, or an earlier call of ours whose answer never came.
            self._id = await self._only(client)
            if self._id and await self._update(client, self._id, markdown):
                return
            await self._create(client, markdown)

    async def _update(self, client: PrefectClient, id: UUID, markdown: str) -> bool:
        """Whether there was one to update: people delete artifacts."""
        try:
            await client.update_artifact(id, ArtifactUpdate(data=markdown))
        except httpx.HTTPStatusError as error:
            if error.response.status_code != HTTPStatus.NOT_FOUND:
                raise
            return False
        return True

    async def _create(self, client: PrefectClient, markdown: str) -> None:
        made = await client.create_artifact(
            ArtifactCreate(
                key=PROGRESS_KEY,
                type="markdown",
                description=_DESCRIPTION,
                data=markdown,
                flow_run_id=self._flow_run_id,
            )
        )
        # Two processes of a flow run may make one at the same moment, and the one that is first to look may see its
        # own alone, though the other's bears an earlier time. So the id is not kept yet: the next save looks again.
        self._id = None
        oldest = await self._only(client)
        if oldest not in (None, made.id):
            await self._update(client, oldest, markdown)

    async def _only(self, client: PrefectClient) -> UUID | None:
        """The oldest; younger ones are deleted."""
        found = await client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[self._flow_run_id]),
                key=ArtifactFilterKey(any_=[PROGRESS_KEY]),
            )
        )
        found.sort(key=lambda artifact: (str(artifact.created), artifact.id))
        for younger in found[1:]:
            with suppress(ObjectNotFound):  # the other process was faster
                await client.delete_artifact(younger.id)
        return found[0].id if found else None
