"""What the runs on a card logged last: one `runs/search` for each tracking account. Never needed: never an error."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from prefect_mantik.log import run_logger
from prefect_mantik.progress.logged import Logged, last_logged
from prefect_mantik.runs import RunHandle, RunState, RunStatus
from prefect_mantik.sites.opening import tracking_of
from prefect_mantik.tracking import TrackingClient

DEADLINE = 8.0
"""Seconds for all questions of one update: the last one has half a minute for everything."""


class LastLogged:
    """What is known of what runs logged; asked again only of runs that may have logged since."""

    def __init__(self) -> None:
        self._known: dict[RunHandle, Logged] = {}
        self._final: set[RunHandle] = set()
        self._clients: dict[str, TrackingClient] = {}
        self._trouble = ""

    def of(self, handle: RunHandle) -> Logged | None:
        """What a run logged last, as far as that is known."""
        return self._known.get(handle)

    def forget(self, handles: Sequence[RunHandle]) -> None:
        """Let go of runs that are not shown any more."""
        for handle in handles:
            self._known.pop(handle, None)
            self._final.discard(handle)

    async def refresh(self, runs: Mapping[RunHandle, RunStatus | None]) -> None:
        """Ask for what runs logged. What cannot be asked stays as it was."""
        asked = {
            handle: status
            for handle, status in runs.items()
            if status and status.state is not RunState.SCHEDULED and handle.mlflow_run_id and handle not in self._final
        }
        if not asked:
            return
        try:
            await asyncio.wait_for(self._ask(asked), DEADLINE)
        except (asyncio.TimeoutError, TimeoutError):
            self._say(f"no answer within {DEADLINE:.0f} s")

    async def _ask(self, asked: Mapping[RunHandle, RunStatus]) -> None:
        accounts: dict[TrackingClient, list[RunHandle]] = {}
        troubles = []
        for handle in asked:
            try:
                accounts.setdefault(await self._client(handle), []).append(handle)
            except Exception as error:  # noqa: BLE001  # no credentials, a damaged block, Prefect away: no metrics
                troubles.append(str(error))
        outcomes = await asyncio.gather(
            *(self._ask_account(client, handles, asked) for client, handles in accounts.items()), return_exceptions=True
        )
        self._say("; ".join(dict.fromkeys([*troubles, *(str(error) for error in outcomes if error is not None)])))

    async def _ask_account(
        self, client: TrackingClient, handles: Sequence[RunHandle], asked: Mapping[RunHandle, RunStatus]
    ) -> None:
        try:
            found = await client.runs_by_id(
                [handle.mlflow_run_id for handle in handles if handle.mlflow_run_id],
                [handle.mlflow_experiment_id for handle in handles if handle.mlflow_experiment_id],
                timeout=DEADLINE,
            )
        except Exception:
            self._clients.clear()  # the next update loads the credentials that are saved then
            raise
        for handle in handles:
            run = found.get(handle.mlflow_run_id or "")
            if run is not None:
                self._known[handle] = last_logged(run)
            if asked[handle].state.is_end:
                self._final.add(handle)

    async def _client(self, handle: RunHandle) -> TrackingClient:
        """Loading the block of an account takes calls of Prefect: it is done once, not for each run and update."""
        if handle.account is None:
            return await tracking_of(handle)
        if handle.account not in self._clients:
            self._clients[handle.account] = await tracking_of(handle)
        return self._clients[handle.account]

    def _say(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            run_logger().debug("The card of progress shows no new metrics: %s", trouble)
        self._trouble = trouble
