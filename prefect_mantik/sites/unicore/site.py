"""Sites reached directly by UNICORE: what talks.

A job bears tags: those of the package, of the origin, of the flow run and of the key, by which it is found from
anywhere, and what a handle needs. (Its name cannot serve: a server tells it only after a while.) It is submitted with
`haveClientStageIn`, gets its code and its token, and is started last: a job whose submit was cut short waits, costs
nothing, and is completed by the next try.
"""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Hashable, Sequence
from contextlib import AsyncExitStack
from datetime import datetime, timezone
from typing import Any, ClassVar, NamedTuple

from prefect_mantik.api import urgent
from prefect_mantik.backend_config import parse_backend_config, unicore_job
from prefect_mantik.credentials import MantikProject
from prefect_mantik.errors import (
    ConfigurationError,
    KeyInUse,
    LoginRefused,
    MantikError,
    NotFound,
    RequestFailed,
    ServiceUnavailable,
    SubmitIncomplete,
    SubmitUnknown,
)
from prefect_mantik.runs import IfEnded, RunHandle, RunKey, RunSpec, RunState, RunStatus, SiteKind
from prefect_mantik.sites import direct
from prefect_mantik.sites.base import OUR_PREFIX, Finding, Pace, not_found
from prefect_mantik.sites.direct_site import DirectSite, Prepared
from prefect_mantik.sites.notes import Ledger
from prefect_mantik.sites.store import Store
from prefect_mantik.sites.unicore.checks import check_site
from prefect_mantik.sites.unicore.directory import RunDirectory
from prefect_mantik.sites.unicore.jobs import UnicoreJobs, uspace
from prefect_mantik.sites.unicore.states import is_end
from prefect_mantik.sites.unicore.store import UnicoreStore
from prefect_mantik.sites.unicore.tags import commit_of, handle_from, search_tag, tags_of
from prefect_mantik.staging import StagedCode
from prefect_mantik.unicore import UnicoreClient

UNSTARTED = ("CREATED", "STAGINGIN", "READY")
"""States of a job that may wait for its files: those that come with it may be on their way still."""


class Settings(NamedTuple):
    """What a site's block says, besides who logs in and where."""

    reference: str | None
    name: str
    queue: str
    compute_project: str
    gpu_resource: str
    storage: str
    settle: float
    pace: Pace = Pace()


class _Staged(NamedTuple):
    site_key: str
    code: StagedCode
    stack: AsyncExitStack


class DirectUnicoreSite(DirectSite):
    """A site reached by UNICORE.

    Args:
        settings: What the site's block says.
        client: The site's operations.
        project: Whose experiment tracks the runs, and whose repository holds their code. Needed to submit.
    """

    kind: ClassVar[SiteKind] = "unicore"
    road: ClassVar[str] = "directly by UNICORE"
    one_call: ClassVar[bool] = False
    looks_every: ClassVar[float] = 20.0  # CLASSICTSI.statusupdate.interval: 10 s by default, 30 s in the core bundle

    def __init__(self, settings: Settings, client: UnicoreClient, project: MantikProject | None = None) -> None:
        super().__init__(settings.name, settings.reference, settings.settle, project)
        self.pace = settings.pace
        self._settings, self._client = settings, client
        self._jobs = UnicoreJobs(client)
        self._by_our_clock: set[str] = set()
        self._staged: dict[str, _Staged] = {}

    @property
    def account(self) -> Hashable:
        """Jobs are asked for one by one, over the connections of one account."""
        return self._client

    @property
    def shared_account(self) -> str:
        """See `Site.shared_account`."""
        return f"unicore {self._client.username} {self._client.api_url}"

    @property
    def quiet(self) -> float:
        """See `Site.quiet`."""
        return self._client.quiet

    # --- Submit -----------------------------------------------------------------------------------------------------

    async def submit(
        self, spec: RunSpec, key: RunKey, *, ledger: Ledger, if_ended: IfEnded = "raise", shared: bool = False
    ) -> RunHandle:
        """See `Site.submit`. However it ends, no packed code stays on this machine."""
        try:
            return await super().submit(spec, key, ledger=ledger, if_ended=if_ended, shared=shared)
        finally:
            for job in [job for job, staged in self._staged.items() if staged.site_key == key.site_key]:
                await self._staged.pop(job).stack.aclose()

    async def post(self, spec: RunSpec, key: RunKey, attempt: int) -> str:
        """Pack the code, make the MLflow run, submit a job that waits for its files. See `Site.post`."""
        async with AsyncExitStack() as stack:
            prepared = await self._prepare(spec, key, attempt, stack)
            description = self._description(spec, key, attempt, prepared)
            try:
                job = await self._submit(description, key)
            except RequestFailed as error:
                await self._free_the_key(prepared, error)
                raise
            self._staged[job] = _Staged(key.site_key, prepared.code, stack.pop_all())
        if made := self._handle(job, description["Tags"], datetime.now(timezone.utc)):
            self._found[job] = made
            self._by_our_clock.add(job)
        return job

    def _description(self, spec: RunSpec, key: RunKey, attempt: int, prepared: Prepared) -> dict[str, Any]:
        project, run = self._needed_project(), prepared.run
        description = unicore_job(
            parse_backend_config(spec.backend_config),
            command=prepared.command,
            variables=direct.variables_of(spec, key, attempt, run, project.credentials.tracking_uri),
            account=self._settings.compute_project or spec.budget_account,
            before=direct.first_lines(),
            gpu_resource=self._settings.gpu_resource,
        )
        # Last: when it is there, so are the scripts; and what is written into it keeps its mode.
        description["Imports"].append({"To": direct.TOKEN_FILE, "Data": "-", "Permissions": "rw-------"})
        names = {"Name": f"{key.slug}-{key.site_key}-{attempt}", "Umask": "0077"}
        return {**description, **names, "Tags": tags_of(spec, key, attempt, run, project, prepared.code.commit)}

    async def _submit(self, description: dict[str, Any], key: RunKey) -> str:
        try:
            return await self._client.submit(description)
        except RequestFailed as error:
            if isinstance(error, ServiceUnavailable) or error.status not in (500, 503):
                raise
            refusal = error
        # UNICORE says 500 to nearly every request that it cannot serve: with words and without a job, it refused.
        try:
            unclear = not set(await self._client.jobs(key.site_key)) <= set(self._found)
        except MantikError:
            unclear = True
        if not unclear:
            raise refusal
        raise ServiceUnavailable(
            str(refusal), method=refusal.method, path=refusal.path, status=refusal.status, detail=refusal.detail
        ) from refusal

    async def complete(self, spec: RunSpec, handle: RunHandle, receipt: str | None = None) -> RunHandle:
        """Give a job its code and its token, and start it. See `Site.complete`.

        Raises:
            SubmitIncomplete: The site took the job and not its files. It waits for them.
            SubmitUnknown: It cannot be asked whether the job has started.
            KeyInUse: The job waits for the files of another description.
        """
        kept = self._staged.get(handle.remote_id)
        try:
            if kept:
                await self._directory(handle).fill(kept.code)
            elif not await self._fill_again(spec, handle):
                return handle
            await self._write_token(handle)
        except (RequestFailed, ConfigurationError) as error:
            if await self._ended_or_unstarted(handle, error):  # refused before it got a directory: its status tells
                return handle
            raise SubmitIncomplete(
                f"{handle.describe()} was taken by the site, and waits there for its files: nothing runs, nothing is "
                f"charged. {error} Submit again under the same key to go on, or cancel it."
            ) from error
        try:
            await self._client.act("start", handle.remote_id)
        except RequestFailed as error:
            raise _not_known(handle, error) from error
        return handle

    async def _fill_again(self, spec: RunSpec, handle: RunHandle) -> bool:
        """Give a job of an earlier submit what it lacks yet; False for one that waits for nothing."""
        try:
            found = await self._client.job(handle.remote_id, "status", "tags")
        except NotFound as error:
            if (await self._ask_one(handle)).state.is_end:  # forgotten by the site, and known from MLflow
                return False
            raise _not_known(handle, error) from error
        except RequestFailed as error:
            raise _not_known(handle, error) from error
        if found.status not in UNSTARTED:
            return False
        if f"/{direct.CODE}" in await self._directory(handle).names():
            return True
        if handle.spec_digest and not spec.digest.startswith(handle.spec_digest):
            raise KeyInUse(
                f"{handle.describe()} waits there for the files of another description ({handle.spec_digest}, yours is "
                f"{spec.digest[: len(handle.spec_digest)]}): submit that one again, or cancel the job."
            )
        async with AsyncExitStack() as stack:
            await self._directory(handle).fill(await self._stage(spec, stack, commit_of(found.tags)))
        return True

    async def _ended_or_unstarted(self, handle: RunHandle, error: MantikError) -> bool:
        """Whether a job that could not be completed has ended; False where it waits."""
        try:
            found = await self._client.job(handle.remote_id, "status")
        except RequestFailed:
            raise _not_known(handle, error) from error
        if found.status not in UNSTARTED and not is_end(found):
            raise _not_known(handle, error) from error
        return is_end(found)

    def _directory(self, handle: RunHandle) -> RunDirectory:
        return RunDirectory(self._client, handle.remote_id)

    async def _put_token(self, handle: RunHandle, content: bytes) -> None:
        await self._directory(handle).write_token(content)

    # --- Find -------------------------------------------------------------------------------------------------------

    async def find(self, key: RunKey) -> builtins.list[RunHandle]:
        """Search by the key's tag; what the site has forgotten is known from MLflow. See `Site.find`."""
        listed = await self._handles(await self._client.jobs(key.site_key), key.site_key)
        # The key is compared: a server that leaves the tags out of account lists everybody's.
        found = [handle for handle in listed if handle.site_key == key.site_key]
        found = found or await self._forgotten(key)
        return [handle.model_copy(update={"key": key, "name": key.name}) for handle in found]

    async def list(self, prefix: str = OUR_PREFIX) -> builtins.list[RunHandle]:
        """Search by the tag of the package, of the origin or of the flow run. See `Site.list`."""
        found = await self._handles(await self._client.jobs(search_tag(prefix)))
        return [handle for handle in found if handle.site_key.startswith(prefix)]

    async def _handles(self, jobs: Sequence[str], tag: str = "") -> builtins.list[RunHandle]:
        """What is known of jobs. A job's tags do not change, and are asked for once.

        Args:
            jobs: What the site listed.
            tag: By which it did, where none of them may be overlooked.
        """
        new = [job for job in jobs if job not in self._found]
        if len(jobs) > 1:  # who is older counts, and only the site's clock tells
            new += [job for job in jobs if job in self._by_our_clock]
        for job, found in zip(new, await asyncio.gather(*(self._identity(job, tag) for job in new)), strict=True):
            if found:
                self._found[job] = found
                self._by_our_clock.discard(job)
        return [self._found[job] for job in jobs if job in self._found]

    async def _identity(self, job: str, tag: str) -> RunHandle | None:
        try:
            found = await self._client.job(job, "tags", "submissionTime")
        except NotFound:
            if tag and job in await self._client.jobs(tag):  # not gone meanwhile: it may be live
                raise self._unreadable(job) from None
            return None
        return self._handle(job, found.tags, found.submission_time)

    def _handle(self, job: str, tags: Sequence[str], submitted_at: datetime | None) -> RunHandle | None:
        return handle_from(
            tags,
            {
                "site": self.reference,
                "site_name": self.name,
                "kind": self.kind,
                "remote_id": job,
                "submitted_at": submitted_at,
                "links": {"UNICORE": f"{self._client.api_url}/jobs/{job}"},
            },
            self._project,
        )

    # --- Ask --------------------------------------------------------------------------------------------------------

    async def ask(self, handles: Sequence[RunHandle]) -> dict[RunHandle, RunStatus]:
        """One small request for each job. See `Site.ask`."""
        return dict(zip(handles, await asyncio.gather(*map(self._ask_one, handles)), strict=True))

    async def _ask_one(self, handle: RunHandle) -> RunStatus:
        try:
            try:
                return await self._jobs.status(handle.remote_id)
            except NotFound:
                return await self._without_job(handle)
        except LoginRefused:
            raise
        except RequestFailed as error:
            return RunStatus(state=RunState.UNKNOWN, site_word=str(error), observed_at=self._client.now())

    async def _without_job(self, handle: RunHandle) -> RunStatus:
        """The status of a run whose job the site does not know by id: it forgets jobs after some time, or lost it."""
        if handle.remote_id in await self._client.jobs(handle.site_key):
            raise self._unreadable(handle.remote_id)
        return await self._by_mlflow(handle) or not_found(handle, f"{self.name} has no job {handle.remote_id}")

    def _unreadable(self, job: str) -> ServiceUnavailable:
        return ServiceUnavailable(f"{self.name} lists job {job}, and knows no job of this id.")

    @urgent
    async def cancel(self, handle: RunHandle) -> None:
        """Abort the job, and close its MLflow run. See `Site.cancel`."""
        try:
            aborted = await self._jobs.cancel(handle.remote_id)
        except NotFound:
            if handle.remote_id in await self._client.jobs(handle.site_key):
                raise
            return
        await (self._close_as_killed(handle) if aborted else self._close_as_ended(handle))

    async def read_log(self, handle: RunHandle, offset: int = 0, limit: int | None = None) -> tuple[bytes, int]:
        """Read the log in the job's directory. See `Site.read_log`."""
        return await self._jobs.read_log(handle.remote_id, offset, limit)

    def store(self, handle: RunHandle | None = None) -> Store:
        """The user's home, or the directory of a run. See `Site.store`."""
        return UnicoreStore(self._client, uspace(handle.remote_id) if handle else self._settings.storage, self.name)

    async def check(self) -> builtins.list[Finding]:
        """Log in, submit a job that never starts, write into its directory, reach the tracking server."""
        return await check_site(self._client, self.name, self._settings.queue, self._project)


def _not_known(handle: RunHandle, error: MantikError) -> SubmitUnknown:
    return SubmitUnknown(
        f"{handle.describe()} is there, and whether it has started is not known. {error} Submit again under the same "
        "key when the site answers: that asks first."
    )
