"""The roads on which the contract is tested: every kind of site, in every position of what is not established of it."""

from __future__ import annotations

import asyncio
import ssl
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import httpx
import pytest

from prefect_mantik import FirecrestSite, MantikSite, TrainingJob, UnicoreSite
from prefect_mantik.loop import acall
from prefect_mantik.runs import IfEnded, RunHandle, RunKey, RunSpec, RunState, RunStatus
from prefect_mantik.sandbox.process import SandboxProcess
from prefect_mantik.sites.base import Capability, Site
from tests.sandbox_jobs import MemoryLedger, firecrest_site, mantik_site, training_job, unicore_site

if TYPE_CHECKING:
    from tests.unicore.server.real_unicore import RealUnicore

DEFAULTS: dict[str, Any] = {
    "run_name": "suffix",
    "run_appears": "at-once",
    "close_dead_runs": True,
    "all_endpoints": False,
    "queue_delay": 0.2,
    "unicore_list_lag": 0.0,
}
ALL = frozenset(Capability)
"""Of a site that is reached directly."""

BEHIND = frozenset({Capability.FRESH_STATE, Capability.LOGS, Capability.CANCEL})
"""Of a site behind the platform that is asked by the second way."""


@dataclass
class Road(ABC):
    """One kind of site, opened as a user would, with what it claims.

    Attributes:
        sandbox: Where the platform and the tracking server are.
        claims: What the site says that it can do.
        post: The request that makes a job, for fault rules.
    """

    sandbox: SandboxProcess
    claims: frozenset[Capability]
    post: ClassVar[dict[str, Any]]

    @abstractmethod
    def site(self, **fields: Any) -> MantikSite | UnicoreSite | FirecrestSite:
        """The site's block."""

    @abstractmethod
    def jobs(self, key: RunKey) -> list[dict[str, Any]]:
        """What the site really has under a key, by its own books: `id` and `live` of each job."""

    @abstractmethod
    def end_jobs(self) -> None:
        """Make room for the next test."""

    def job(self, **fields: Any) -> TrainingJob:
        """A training job at the site."""
        return training_job(self.sandbox, site=fields.pop("site", None) or self.site(), **fields)

    def open(self, **fields: Any) -> Site:
        """The site, from fresh blocks: as another process would."""
        job = self.job(**fields)
        return job.site.open(job.project)

    def spec(self, entry_point: str = "sleep", **parameters: Any) -> RunSpec:
        """A description; by default of a run that lasts longer than a test."""
        if entry_point == "sleep":
            parameters.setdefault("seconds", 60)
        return self.job(entry_point=entry_point).spec(parameters)

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
        """Ask once, and help along, as a wait does."""
        site = self.open()
        statuses = await acall(site.poll, [handle])
        await acall(site.tend, statuses)
        return statuses[handle]

    async def until(self, handle: RunHandle, *states: RunState, seconds: float = 60) -> RunStatus:
        """Ask until the run is in one of some states."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            status = await self.status(handle)
            if status.state in states:
                return status
            await asyncio.sleep(0.2)
        raise AssertionError(f"{handle.describe()} is not {states} after {seconds} s: {status}")

    async def until_ended(self, handle: RunHandle, seconds: float = 60) -> RunStatus:
        """Ask until the run ended."""
        return await self.until(handle, *(state for state in RunState if state.is_end), seconds=seconds)


@dataclass
class PlatformRoad(Road):
    """A site behind the platform, with or without the second way to it."""

    ask_site: bool = False
    place: str = "alder"
    post: ClassVar[dict[str, Any]] = {"method": "POST", "route": "/projects/{projectId}/runs"}

    def site(self, **fields: Any) -> MantikSite:
        return mantik_site(self.sandbox, self.place, ask_site=self.ask_site, **fields)

    def jobs(self, key: RunKey) -> list[dict[str, Any]]:
        return [job for job in self.sandbox.control.jobs() if (job["runKey"] or "").startswith(key.site_key)]

    def end_jobs(self) -> None:
        for job in self.sandbox.control.jobs(live=True):
            self.sandbox.control.end_job(job["id"])


@dataclass
class UnicoreRoad(Road):
    """A site reached by UNICORE, whose books are read past our client."""

    url: str = ""
    username: str = ""
    password: str = field(default="", repr=False)
    ca_file: str = ""
    variables: dict[str, str] = field(default_factory=dict)
    post: ClassVar[dict[str, Any]] = {"method": "POST", "route": "/{site}/rest/core/jobs"}

    def site(self, **fields: Any) -> UnicoreSite:
        return unicore_site(
            self.url,
            self.username,
            self.password,
            ca_certificates=self.ca_file,
            environment={"Variables": self.variables} if self.variables else {},
            **fields,
        )

    def jobs(self, key: RunKey) -> list[dict[str, Any]]:
        with self._http() as http:
            urls = http.get(f"{self.url}/jobs", params={"tags": key.site_key}).raise_for_status().json()["jobs"]
            jobs = {url: http.get(url).raise_for_status().json() for url in urls}
        return [
            {"id": url.rpartition("/")[2], "live": job["status"] not in ("SUCCESSFUL", "FAILED"), **job}
            for url, job in jobs.items()
        ]

    def end_jobs(self) -> None:
        with self._http() as http:
            for url in http.get(f"{self.url}/jobs").raise_for_status().json()["jobs"]:
                http.delete(url)

    def _http(self) -> httpx.Client:
        verify = ssl.create_default_context(cafile=self.ca_file) if self.ca_file else True
        headers = {"Accept": "application/json"}
        return httpx.Client(
            auth=(self.username, self.password), verify=verify, headers=headers, timeout=30, trust_env=False
        )


@dataclass
class FirecrestRoad(Road):
    """The sandbox's site cedar, reached by FirecREST in one of its two modes; its books are the sandbox's own."""

    system: str = "cedar"
    post: ClassVar[dict[str, Any]] = {"method": "POST", "route": "/firecrest/v2/compute/{system}/jobs"}

    def site(self, **fields: Any) -> FirecrestSite:
        return firecrest_site(self.sandbox, fields.pop("system", self.system), **fields)

    def jobs(self, key: RunKey) -> list[dict[str, Any]]:
        found = [job for job in self.sandbox.control.jobs() if job["jobName"].startswith(key.site_key)]
        return [{**job, "uuid": job["id"], "id": str(job["number"])} for job in found]

    def end_jobs(self) -> None:
        for job in self.sandbox.control.jobs(live=True):
            self.sandbox.control.end_job(job["id"])


def sandbox_firecrest(sandbox: SandboxProcess, system: str = "cedar") -> FirecrestRoad:
    """The sandbox's site cedar, reached by FirecREST."""
    return FirecrestRoad(sandbox, ALL, system=system)


def sandbox_unicore(sandbox: SandboxProcess) -> UnicoreRoad:
    """The sandbox's site alder, reached by UNICORE."""
    env = sandbox.env
    return UnicoreRoad(
        sandbox,
        ALL,
        url=env["MANTIK_SANDBOX_ALDER_URL"],
        username=env["MANTIK_UNICORE_USERNAME"],
        password=env["MANTIK_UNICORE_PASSWORD"],
    )


def real_unicore(sandbox: SandboxProcess, server: RealUnicore) -> UnicoreRoad:
    """A real UNICORE server, whose jobs track at the sandbox."""
    python = f"{Path(sys.executable).parent}:$PATH"
    return UnicoreRoad(
        sandbox,
        ALL,
        url=server.url,
        username="demouser",
        password=server.users["demouser"],
        ca_file=str(server.ca_file),
        variables={"PATH": python},
    )


ROADS: dict[str, tuple[dict[str, Any], Callable[[SandboxProcess], Road]]] = {
    "platform": ({}, lambda sandbox: PlatformRoad(sandbox, frozenset())),
    "platform, runs appear later": (
        {"run_appears": "later", "run_appears_after": 0.5},
        lambda sandbox: PlatformRoad(sandbox, frozenset()),
    ),
    "platform, names unchanged, all endpoints": (
        {"run_name": "unchanged", "all_endpoints": True},
        lambda sandbox: PlatformRoad(sandbox, frozenset({Capability.LOGS, Capability.CANCEL})),
    ),
    "platform and the UNICORE site behind it": (
        {"close_dead_runs": False},
        lambda sandbox: PlatformRoad(sandbox, BEHIND, ask_site=True),
    ),
    "platform and the FirecREST site behind it": (
        {"close_dead_runs": False},
        lambda sandbox: PlatformRoad(sandbox, BEHIND, ask_site=True, place="cedar"),
    ),
    "UNICORE": ({}, sandbox_unicore),
    "FirecREST": ({}, sandbox_firecrest),
    "FirecREST, REST mode": ({}, lambda sandbox: sandbox_firecrest(sandbox, "cedar-rest")),
}
REAL = pytest.param("real UNICORE", marks=[pytest.mark.slow, pytest.mark.unicore])


@pytest.fixture(params=[*ROADS, REAL])
def road(request: pytest.FixtureRequest, mantik_sandbox: SandboxProcess) -> Iterator[Road]:
    """Every road, one after another."""
    if request.param not in ROADS:
        yield from _ready(real_unicore(mantik_sandbox, request.getfixturevalue("unicore_server")), {})
        return
    yield from _opened(request.param, mantik_sandbox)


@pytest.fixture(params=["UNICORE", REAL])
def unicore_road(request: pytest.FixtureRequest, mantik_sandbox: SandboxProcess) -> Iterator[UnicoreRoad]:
    """UNICORE, ours and the real one."""
    made = (
        sandbox_unicore(mantik_sandbox)
        if request.param == "UNICORE"
        else real_unicore(mantik_sandbox, request.getfixturevalue("unicore_server"))
    )
    yield from _ready(made, {})


@pytest.fixture
def sandbox_unicore_road(mantik_sandbox: SandboxProcess) -> Iterator[UnicoreRoad]:
    """The sandbox's UNICORE, for what has to be scripted."""
    yield from _ready(sandbox_unicore(mantik_sandbox), {})


@pytest.fixture(params=["FirecREST", "FirecREST, REST mode"])
def firecrest_road(request: pytest.FixtureRequest, mantik_sandbox: SandboxProcess) -> Iterator[FirecrestRoad]:
    """FirecREST in both of its modes."""
    yield from _opened(request.param, mantik_sandbox)


@pytest.fixture
def ssh_road(mantik_sandbox: SandboxProcess) -> Iterator[FirecrestRoad]:
    """FirecREST where it runs Slurm's commands."""
    yield from _opened("FirecREST", mantik_sandbox)


@pytest.fixture
def rest_road(mantik_sandbox: SandboxProcess) -> Iterator[FirecrestRoad]:
    """FirecREST where it asks Slurm's REST API."""
    yield from _opened("FirecREST, REST mode", mantik_sandbox)


@pytest.fixture
def platform_road(mantik_sandbox: SandboxProcess) -> Iterator[PlatformRoad]:
    """The platform as it is proven to be."""
    yield from _opened("platform", mantik_sandbox)


UNICORE_BEHIND, FIRECREST_BEHIND = (f"platform and the {kind} site behind it" for kind in ("UNICORE", "FirecREST"))


@pytest.fixture(params=[UNICORE_BEHIND, FIRECREST_BEHIND], ids=["UNICORE", "FirecREST"])
def behind_road(request: pytest.FixtureRequest, mantik_sandbox: SandboxProcess) -> Iterator[PlatformRoad]:
    """The platform, with the site behind it asked by the second way."""
    yield from _opened(request.param, mantik_sandbox)


@pytest.fixture
def unicore_behind_road(mantik_sandbox: SandboxProcess) -> Iterator[PlatformRoad]:
    """The platform, with the UNICORE site behind it asked by the second way."""
    yield from _opened(UNICORE_BEHIND, mantik_sandbox)


@pytest.fixture
def firecrest_behind_road(mantik_sandbox: SandboxProcess) -> Iterator[PlatformRoad]:
    """The platform, with the FirecREST site behind it asked by the second way."""
    yield from _opened(FIRECREST_BEHIND, mantik_sandbox)


@pytest.fixture(params=["platform", "platform, runs appear later", "UNICORE", "FirecREST", "FirecREST, REST mode"])
def faulty_road(request: pytest.FixtureRequest, mantik_sandbox: SandboxProcess) -> Iterator[Road]:
    """The roads on which an answer that is lost makes a difference."""
    yield from _opened(request.param, mantik_sandbox)


@pytest.fixture(scope="session")
def unicore_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealUnicore]:
    """A real UNICORE server, where Java and Maven Central are there."""
    from tests.unicore.server import real_unicore

    if reason := real_unicore.missing():
        pytest.skip(f"no real UNICORE server: {reason}")
    with real_unicore.start(tmp_path_factory.mktemp("unicore")) as server:
        yield server


def _opened(name: str, sandbox: SandboxProcess) -> Iterator[Any]:
    switches, make = ROADS[name]
    yield from _ready(make(sandbox), switches)


def _ready(made: Road, switches: dict[str, Any]) -> Iterator[Any]:
    control = made.sandbox.control
    control.switch(**{**DEFAULTS, **switches})
    yield made
    control.clear_faults()
    made.end_jobs()
    control.switch(**DEFAULTS)
