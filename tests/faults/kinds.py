"""The kinds of site, as saved blocks at one sandbox, and what a fault has to know of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prefect_mantik import FirecrestSite, MantikSite, TrainingJob, UnicoreSite
from prefect_mantik.sandbox.process import SandboxControl, SandboxProcess
from tests.faults.project import BRANCH
from tests.sandbox_jobs import credentials, firecrest_site, mantik_site, project, unicore_site

SCALE = 30.0
"""A settle time and the lateness of a job are divided by this, for a matrix that ends the same day."""

QUICK_SETTLE = 1.5
"""Where nothing is late."""

PLATFORM, ASKED, UNICORE, FIRECREST, REST = (
    "platform",
    "platform, site asked",
    "UNICORE",
    "FirecREST",
    "FirecREST, REST mode",
)


@dataclass(frozen=True)
class Kind:
    """One kind of site.

    Attributes:
        name: As rows have it.
        slug: Begins the names of its blocks.
        place: The sandbox's site.
        jobs: Route of fault rules that takes jobs.
        settle: How long its blocks look by default, in seconds.
    """

    name: str
    slug: str
    place: str
    jobs: str
    settle: float

    @property
    def direct(self) -> bool:
        """Whether we send the files, and open and close MLflow runs."""
        return self.name not in (PLATFORM, ASKED)

    @property
    def post_route(self) -> str:
        """The request that makes a job, as victims count it."""
        system = "cedar-rest" if self.name == REST else "cedar"
        told = self.jobs.replace("{projectId}", "{id}").replace("{site}", self.place.upper())
        return told.replace("{system}", system)

    @property
    def scaled_settle(self) -> float:
        """Its settle time in a matrix that ends the same day."""
        return self.settle / SCALE

    def expire_logins(self, control: SandboxControl) -> None:
        """Make every token and session of the road an expired one."""
        control.expire_tokens()
        control.expire_unicore_sessions()
        control.expire_firecrest_tokens()


def _default(block: type[MantikSite | UnicoreSite | FirecrestSite]) -> float:
    return float(block.model_fields["settle"].default)


_PROJECT_RUNS = "/projects/{projectId}/runs"
_LIST = "/firecrest/v2/compute/{system}/jobs"
KINDS = {
    kind.name: kind
    for kind in (
        Kind(PLATFORM, "platform", "alder", _PROJECT_RUNS, _default(MantikSite)),
        Kind(ASKED, "asked", "alder", _PROJECT_RUNS, _default(MantikSite)),
        Kind(UNICORE, "unicore", "birch", "/{site}/rest/core/jobs", _default(UnicoreSite)),
        Kind(FIRECREST, "firecrest", "cedar", _LIST, _default(FirecrestSite)),
        Kind(REST, "firecrest-rest", "cedar", _LIST, _default(FirecrestSite)),
    )
}


def save_blocks(sandbox: SandboxProcess, prefix: str) -> None:
    """Save a training job of each kind, with all that it holds; one account and one project for all."""
    who = credentials(sandbox)
    who.save(prefix, overwrite=True)
    where = project(sandbox, credentials=who)
    where.save(prefix, overwrite=True)
    makers: dict[str, Callable[[], MantikSite | UnicoreSite | FirecrestSite]] = {
        PLATFORM: lambda: mantik_site(sandbox, credentials=who, ask_site=False, settle=QUICK_SETTLE),
        ASKED: lambda: mantik_site(sandbox, credentials=who, settle=QUICK_SETTLE),
        UNICORE: lambda: unicore_site(
            sandbox.env["MANTIK_SANDBOX_BIRCH_URL"],
            sandbox.env["MANTIK_UNICORE_USERNAME"],
            sandbox.env["MANTIK_UNICORE_PASSWORD"],
            settle=QUICK_SETTLE,
        ),
        FIRECREST: lambda: firecrest_site(sandbox, settle=QUICK_SETTLE),
        REST: lambda: firecrest_site(sandbox, "cedar-rest", settle=QUICK_SETTLE),
    }
    for kind in KINDS.values():
        name, site = f"{prefix}-{kind.slug}", makers[kind.name]()
        (site.connection if isinstance(site, MantikSite) else site.login).save(name, overwrite=True)
        site.save(name, overwrite=True)
        TrainingJob(project=where, site=site, branch=BRANCH, entry_point="quick").save(name, overwrite=True)
