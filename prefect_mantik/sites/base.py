"""The contract of a site: what every kind of site does, and what must hold.

A site block (what is saved) opens a `Site` (what talks). All kinds submit by the same rules, see `submission`.
"""

from __future__ import annotations

import builtins
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from datetime import datetime, timezone
from enum import Enum
from typing import Any, ClassVar, NamedTuple
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from prefect_mantik.errors import ConfigurationError, LoginRefused, NotSupported, RequestFailed
from prefect_mantik.runs import IfEnded, Reason, RunHandle, RunKey, RunSpec, RunState, RunStatus, SiteKind
from prefect_mantik.sites import submission
from prefect_mantik.sites.notes import Ledger
from prefect_mantik.sites.store import Store

OUR_PREFIX = "pm-"
"""What every site key begins with."""

FIRST_MINUTES = 300.0
"""Seconds in which a run that a site does not know may still be on its way."""


class Capability(str, Enum):
    """What a site may or may not be able to do."""

    FRESH_STATE = "fresh state"
    LOGS = "logs"
    CANCEL = "cancel"
    FILES = "files"


class Finding(BaseModel):
    """One line of a check: what was tried, whether it works, and what to do if not."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    what: str
    ok: bool
    message: str = ""


class Pace(NamedTuple):
    """How often a site may be asked.

    Attributes:
        shortest: Seconds between two polls of a run, at least; 0: what the settings say.
        longest: Seconds at most; 0: what the settings say.
    """

    shortest: float = 0.0
    longest: float = 0.0


def not_found(handle: RunHandle, words: str) -> RunStatus:
    """The status of a run of which the site says, asked by id, that it has none such: lost, but for a young one."""
    now = datetime.now(timezone.utc)
    young = handle.submitted_at is None or (now - handle.submitted_at).total_seconds() < FIRST_MINUTES
    if young:
        return not_told(words)
    return RunStatus(state=RunState.LOST, reason=Reason.LOST, site_word=words, observed_at=now)


def not_told(words: str) -> RunStatus:
    """The status of a run of which a site that answers has nothing to tell: that site can be asked for others."""
    now = datetime.now(timezone.utc)
    return RunStatus(state=RunState.UNKNOWN, reason=Reason.UNTOLD, site_word=words, observed_at=now)


def not_asked(error: Exception) -> RunStatus:
    """The status of a run that could not be asked: unknown, paused where the login is at fault, never an end."""
    login = isinstance(error, LoginRefused | ConfigurationError)
    return RunStatus(
        state=RunState.UNKNOWN,
        reason=Reason.PAUSED if login else None,
        site_word=str(error),
        observed_at=datetime.now(timezone.utc),
    )


class Site(ABC):
    """A place that runs runs.

    Attributes:
        reference: Of the saved block; None for a site made in code.
        project_id: Of the platform's project, where the site was opened for one.
        name: What to call it.
        kind: Which kind of site it is.
        road: How runs get there, in a person's words.
        capabilities: What it can do.
        ends_duplicates: Whether the younger of two live jobs under one key is cancelled; else we stop and ask.
        settle: Seconds of clean looks that prove the absence of a job after an ambiguous answer.
        silence_warning: Seconds without a sign of life of a running run after which a wait warns; 0: never.
        silence_limit: Seconds without a sign of life after which a wait stops and asks; 0: never.
        pace: How often it may be asked, as its block says.
        looks_every: Seconds for which the site itself goes on telling what it saw last: to ask sooner is no use.
        one_call: Whether one call asks for all runs of an account; else each run is a call.
    """

    kind: ClassVar[SiteKind]
    road: ClassVar[str]
    one_call: ClassVar[bool] = True
    looks_every: ClassVar[float] = 0.0

    reference: str | None
    project_id: UUID | None = None
    name: str
    capabilities: frozenset[Capability]
    ends_duplicates: bool = False
    settle: float
    silence_warning: float = 0.0
    silence_limit: float = 0.0
    pace: Pace = Pace()

    @property
    @abstractmethod
    def account(self) -> Hashable:
        """What is polled together: handles of sites with the same account may go into one `ask`."""

    @property
    def shared_account(self) -> str | None:
        """The account as other processes know it too, without a secret; None where each process asks for itself."""
        return None

    @property
    def quiet(self) -> float:
        """Seconds for which the account's server asked, with its last answers, not to be asked again; 0: not at all."""
        return 0.0

    async def submit(
        self, spec: RunSpec, key: RunKey, *, ledger: Ledger, if_ended: IfEnded = "raise", shared: bool = False
    ) -> RunHandle:
        """Submit a run, or return the one that exists under the key: look, announce, POST, look again.

        Args:
            spec: What to run.
            key: Names the run.
            ledger: Where the submit is announced.
            if_ended: What to do when the key's run ended without success.
            shared: Accept a run whose description is another one.

        Raises:
            SubmitRefused: The site said no; no job exists.
            SubmitUnknown: The site cannot tell; the next try under the same key resolves it.
            KeyInUse: The key's run has another description or site, or belongs to another flow run of the tree.
            RunEnded: The key's run ended without success and `if_ended` is "raise".
            DuplicateJobs: Two live jobs are under the key.
        """
        return await submission.submit(self, spec, key, ledger=ledger, if_ended=if_ended, shared=shared)

    @abstractmethod
    async def post(self, spec: RunSpec, key: RunKey, attempt: int) -> str:
        """Send one job, and return what the site calls it.

        Raises:
            TraceFound: Nothing was sent: there is, or was, a job under the key after all, and `find` now gives it.
            ServiceUnavailable: It is not known whether the site took it, unless its `sent` is False.
            RequestFailed: The site refused; no job exists.
        """

    def seniority(self, handle: RunHandle) -> Any:
        """What jobs under one key are sorted by, the oldest first: whoever sees two must keep the same one."""
        never = datetime.max.replace(tzinfo=timezone.utc)
        return handle.submitted_at or never, handle.remote_id

    async def complete(self, spec: RunSpec, handle: RunHandle, receipt: str | None = None) -> RunHandle:
        """Finish what an interrupted submit may have left undone, such as staging and starting; may be repeated.

        Args:
            spec: What is to run.
            handle: The job.
            receipt: What `post` returned, where it is certain that it was for this job.
        """
        return handle

    @abstractmethod
    async def find(self, key: RunKey) -> builtins.list[RunHandle]:
        """All jobs under a key, all attempts, from what the site knows: also from another host, after a crash."""

    @abstractmethod
    async def list(self, prefix: str = OUR_PREFIX) -> builtins.list[RunHandle]:
        """All our jobs whose site keys begin with a prefix: those of a flow run, of an origin, or of the account."""

    async def poll(self, handles: Sequence[RunHandle]) -> dict[RunHandle, RunStatus]:
        """The status of each run. What could not be asked is UNKNOWN (PAUSED where the login was refused): no end."""
        try:
            return await self.refine(await self.ask(handles))
        except (RequestFailed, ConfigurationError) as error:  # also what is being mended now, such as a token file
            return dict.fromkeys(handles, not_asked(error))

    @abstractmethod
    async def ask(self, handles: Sequence[RunHandle]) -> dict[RunHandle, RunStatus]:
        """Ask for runs of the account, in as few calls as it allows. A run that is missing from a list is not finished.

        Raises:
            RequestFailed: They cannot be asked now.
            ConfigurationError: Nor by another try with the same credentials.
        """

    async def refine(self, statuses: Mapping[RunHandle, RunStatus]) -> dict[RunHandle, RunStatus]:
        """What this site knows better than the account: of its own runs, by a way that other sites have not."""
        return dict(statuses)

    async def tend(self, statuses: Mapping[RunHandle, RunStatus]) -> float | None:
        """Help runs along that somebody waits for. Never needed: whoever only asks, or cancels, does not call it.

        Args:
            statuses: What was just asked.

        Returns:
            Seconds after which it should be called again; None: whenever they are asked next.
        """
        return None

    @abstractmethod
    async def cancel(self, handle: RunHandle) -> None:
        """End a run. That it has ended already is success."""

    @abstractmethod
    async def read_log(self, handle: RunHandle, offset: int = 0, limit: int | None = None) -> tuple[bytes, int]:
        """What is new in a run's log from an offset in bytes on, and the next offset. No log yet: nothing new.

        A log that ends before the offset was begun anew: nothing is given, and the next offset is its end.

        Args:
            handle: Which run.
            offset: Where to begin. A negative one asks for that many of the last bytes.
            limit: About how many bytes at most; who wants more asks again from the next offset.
        """

    def store(self, handle: RunHandle | None = None) -> Store:
        """The site's files; those of one run's directory where a run is given."""
        raise NotSupported(f"{self.name} shows no files: only sites reached directly by UNICORE or FirecREST do.")

    @abstractmethod
    async def check(self) -> builtins.list[Finding]:
        """Log in and try what a run will need, without submitting one."""
