"""The labels of one flow run, written and read by many of a process at once: those who wait share a request.

Each read of a flow run holds all its labels, and each write makes Prefect read and write them all. A thousand submits
of a flow that asked one by one would hold Prefect's database up for minutes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun

from prefect_mantik.loop import per_process, start_apart


class _Asked(NamedTuple):
    labels: Mapping[str, str]
    answer: asyncio.Future[FlowRun]


class FlowRunLabels:
    """One flow run at the Prefect server. Use `labels_of`.

    Args:
        flow_run_id: Which.
    """

    def __init__(self, flow_run_id: UUID) -> None:
        self._id = flow_run_id
        self._asked: list[_Asked] = []
        self._task: asyncio.Task[None] | None = None

    async def exchange(self, labels: Mapping[str, str]) -> FlowRun:
        """Write labels, if any, and read the flow run after that. What the server merged in between may be lost."""
        asked = _Asked(labels, asyncio.get_running_loop().create_future())
        self._asked.append(asked)
        if self._task is None:
            self._task = start_apart(self._serve())
        return await asked.answer

    async def _serve(self) -> None:
        while self._asked:
            try:
                async with get_client() as client:  # one for all who wait: making one takes 30 ms
                    while self._asked:
                        asked, self._asked = self._asked, []
                        await self._answer(client, asked)
            except Exception as error:  # noqa: BLE001  # for those who asked, as below
                asked, self._asked = self._asked, []
                _fail(asked, error)
        self._task = None

    async def _answer(self, client: PrefectClient, asked: Sequence[_Asked]) -> None:
        try:
            found = await self._exchanged(client, {name: text for one in asked for name, text in one.labels.items()})
        except Exception as error:  # noqa: BLE001  # for those who asked, not for whoever came first
            _fail(asked, error)
        else:
            for one in asked:
                if not one.answer.done():
                    one.answer.set_result(found)

    async def _exchanged(self, client: PrefectClient, labels: dict[str, str]) -> FlowRun:
        if labels:
            await client.update_flow_run_labels(self._id, dict(labels))
        return await client.read_flow_run(self._id)


def _fail(asked: Sequence[_Asked], error: Exception) -> None:
    for one in asked:
        if not one.answer.done():
            one.answer.set_exception(error)


@per_process
def labels_of(flow_run_id: UUID) -> FlowRunLabels:
    """The one way of this process to the labels of a flow run."""
    return FlowRunLabels(flow_run_id)
