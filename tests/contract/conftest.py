"""The roads on which the contract is tested: every kind of site, in every position of what is not established of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from prefect_mantik.loop import acall
from prefect_mantik.runs import IfEnded, RunHandle, RunKey, RunSpec, RunStatus
from prefect_mantik.sandbox.process import SandboxProcess
from prefect_mantik.sites.base import Capability, Site
from tests.sandbox_jobs import MemoryLedger, training_job

DEFAULTS: dict[str, Any] = {
    "run_name": "suffix",
    "run_appears": "at-once",
    "close_dead_runs": True,
    "all_endpoints": False,
    "queue_delay": 0.2,
}

ROADS: dict[str, tuple[dict[str, Any], set[Capability]]] = {
    "platform": ({}, set()),
    "platform, runs appear later": ({"run_appears": "later", "run_appears_after": 0.5}, set()),
    "platform, names unchanged, all endpoints": (
        {"run_name": "unchanged", "all_endpoints": True},
        {Capability.LOGS, Capability.CANCEL},
    ),
}


@dataclass
class Road:
    """One kind of site, opened as a user would, with what it claims."""

    sandbox: SandboxProcess
    claims: set[Capability]
    site_name: str = "alder"
    fields: dict[str, Any] = field(default_factory=dict)

    def open(self, **fields: Any) -> Site:
        """The site, from fresh blocks: as another process would."""
        job = training_job(self.sandbox, self.site_name, **fields)
        return job.site.open(job.project)

    def spec(self, entry_point: str = "sleep", **parameters: Any) -> RunSpec:
        """A description; by default of a run that lasts longer than a test."""
        if entry_point == "sleep":
            parameters.setdefault("seconds", 60)
        return training_job(self.sandbox, self.site_name, entry_point=entry_point).spec(parameters)

    async def submit(
        self,
        key: RunKey,
        spec: RunSpec | None = None,
        *,
        site: Site | None = None,
        ledger: MemoryLedger | None = None,
        if_ended: IfEnded = "raise",
        shared: bool = False,
    ) -> RunHandle:
        """Submit on the background loop."""
        return await acall(
            (site or self.open()).submit,
            spec or self.spec(),
            key,
            ledger=ledger or MemoryLedger(),
            if_ended=if_ended,
            shared=shared,
        )

    async def status(self, handle: RunHandle) -> RunStatus:
        """Ask once."""
        return (await acall(self.open().poll, [handle]))[handle]

    async def until_ended(self, handle: RunHandle, seconds: float = 60) -> RunStatus:
        """Ask until the run ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            status = await self.status(handle)
            if status.state.is_end:
                return status
            await asyncio.sleep(0.2)
        raise AssertionError(f"{handle.describe()} has not ended after {seconds} s: {status}")

    def jobs(self, key: RunKey) -> list[dict[str, Any]]:
        """What the site really has under a key, by its own books."""
        return [job for job in self.sandbox.control.jobs() if (job["runKey"] or "").startswith(key.site_key)]

    def end_jobs(self) -> None:
        """Make room for the next test."""
        for job in self.sandbox.control.jobs(live=True):
            self.sandbox.control.end_job(job["id"])


@pytest.fixture(params=list(ROADS))
def road(request: pytest.FixtureRequest, mantik_sandbox: SandboxProcess) -> Iterator[Road]:
    """Every road, one after another."""
    yield from _opened(request.param, mantik_sandbox)


@pytest.fixture
def platform_road(mantik_sandbox: SandboxProcess) -> Iterator[Road]:
    """The platform as it is proven to be."""
    yield from _opened("platform", mantik_sandbox)


@pytest.fixture(params=["platform", "platform, runs appear later"])
def faulty_road(request: pytest.FixtureRequest, mantik_sandbox: SandboxProcess) -> Iterator[Road]:
    """The roads on which an answer that is lost makes a difference."""
    yield from _opened(request.param, mantik_sandbox)


def _opened(name: str, sandbox: SandboxProcess) -> Iterator[Road]:
    switches, claims = ROADS[name]
    sandbox.control.switch(**{**DEFAULTS, **switches})
    opened = Road(sandbox, claims)
    yield opened
    sandbox.control.clear_faults()
    opened.end_jobs()
    sandbox.control.switch(**DEFAULTS)
