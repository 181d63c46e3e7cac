"""What comes back from a wait when the sites of failed runs do not answer any more."""

from __future__ import annotations

import asyncio
from datetime import datetime, timezone
from time import monotonic
from typing import Any

import pytest

from prefect_mantik import holding
from prefect_mantik.errors import ConfigurationError
from prefect_mantik.runs import RunState, RunStatus
from tests.polled_site import PolledSite, run
from tests.virtual_clock import VirtualClock

FAILED = RunStatus(state=RunState.FAILED, observed_at=datetime(2026, 1, 1, tzinfo=timezone.utc))


class Hangs(PolledSite):
    """A site that went down with its runs."""

    async def read_log(self, *_: Any) -> tuple[bytes, int]:
        await asyncio.sleep(1000)
        raise AssertionError


class Refuses(PolledSite):
    async def read_log(self, *_: Any) -> tuple[bytes, int]:
        raise ConfigurationError("the token's file cannot be read")


@pytest.mark.parametrize("kind", [Hangs, Refuses])
async def test_results_come_without_the_logs_that_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, kind: type[PolledSite]
) -> None:
    monkeypatch.setattr(holding, "LOGS_WITHIN", 1.0)
    site, began = kind(VirtualClock(), lambda *_: FAILED), monotonic()
    results = await holding._with_logs([(site, run(number), FAILED) for number in range(30)])
    assert monotonic() - began < 10
    assert [(result.handle.remote_id, result.log_tail) for result in results] == [(str(n), "") for n in range(30)]
