"""Sites reached directly by UNICORE: the block and what talks.

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
from time import time as wall_clock
from typing import Any, ClassVar, NamedTuple

from prefect_mantik.backend_config import parse_backend_config, unicore_job
from prefect_mantik.credentials import MantikProject
from prefect_mantik.errors import (
    ConfigurationError,
    LoginRefused,
    MantikError,
    NotFound,
    RequestFailed,
    ServiceUnavailable,
    SubmitIncomplete,
)
from prefect_mantik.log import run_logger
from prefect_mantik.runs import RunHandle, RunKey, RunSpec, RunState, RunStatus, SiteKind
from prefect_mantik.sites import direct
from prefect_mantik.sites.base import OUR_PREFIX, Capability, Finding, Site, not_found
from prefect_mantik.sites.store import Store
from prefect_mantik.sites.unicore.jobs import UnicoreJobs, uspace
from prefect_mantik.sites.unicore.states import is_end
from prefect_mantik.sites.unicore.store import UnicoreStore
from prefect_mantik.sites.unicore.tags import handle_from, search_tag, tags_of
from prefect_mantik.staging import StagedCode, stage
from prefect_mantik.unicore import UnicoreClient

DIRECTORY_TIMEOUT = 60.0
"""Seconds in which a site makes the directory of a job that it took."""

UNSTARTED = ("CREATED", "STAGINGIN", "READY")
"""States of a job that may wait for its files: those that come with it may be on their way still."""

_PAUSE = 0.2


class Settings(NamedTuple):
    """What a site's block says, besides who logs in and where."""

    reference: str | None
    name: str
    queue: str
    compute_project: str
    storage: str
    settle: float


class DirectUnicoreSite(Site):
    """A site reached by UNICORE.

    Args:
        settings: What the site's block says.
        client: The site's operations.
        project: Whose experiment tracks the runs, and whose repository holds their code. Needed to submit.
    """

    kind: ClassVar[SiteKind] = "unicore"
    ends_duplicates = True

    def __init__(self, settings: Settings, client: UnicoreClient, project: MantikProject | None = None) -> None:
        self._settings, self._client, self._project = settings, client, project
        self.reference, self.project_id = settings.reference, project.project_id if project else None
        self.name, self.settle = settings.name, settings.settle
        self.capabilities = frozenset(Capability)
        self._jobs = UnicoreJobs(client)
        self._found: dict[str, RunHandle] = {}
        self._by_our_clock: set[str] = set()
        self._staged: dict[str, tuple[StagedCode, AsyncExitStack]] = {}
        self._refresh_at: dict[RunHandle, float] = {}

    @property
    def account(self) -> Hashable:
        """Jobs are asked for one by one, over the connections of one account."""
        return self._client

    # --- Submit -----------------------------------------------------------------------------------------------------

    async def post(self, spec: RunSpec, key: RunKey, attempt: int) -> str:
        """Pack the code, make the MLflow run, submit a job that waits for its files. See `Site.post`."""
        project = self._needed_project()
        async with AsyncExitStack() as stack:
            staged = await self._stage(spec, stack)
            command = direct.command_of(spec, staged)
            try:
                run = await direct.open_mlflow_run(project, spec, key, attempt, self)
            except ServiceUnavailable as error:
                error.sent = False  # to the site: an MLflow run that was made all the same is found by its tag
                raise
            tags = tags_of(spec, key, attempt, run, project)
            description = unicore_job(
                parse_backend_config(spec.backend_config),
                command=command,
                variables=direct.variables_of(spec, key, attempt, run, project.credentials.tracking_uri),
                account=self._settings.compute_project or spec.budget_account,
                before=direct.first_lines(),
            )
            # Last: when it is there, so are the scripts; and what is written into it keeps its mode.
            description["Imports"].append({"To": direct.TOKEN_FILE, "Data": "-", "Permissions": "rw-------"})
            names = {"Name": f"{key.slug}-{key.site_key}-{attempt}", "Tags": tags, "Umask": "0077"}
            job = await self._submit({**description, **names}, key)
            self._staged[job] = staged, stack.pop_all()
        if made := self._handle(job, tags, datetime.now(timezone.utc)):
            self._found[job] = made
            self._by_our_clock.add(job)
        return job

    async def _submit(self, description: dict[str, Any], key: RunKey) -> str:
        try:
            return await self._client.submit(description)
        except RequestFailed as error:
            if isinstance(error, ServiceUnavailable) or error.status not in (500, 503):
                raise
            # UNICORE says 500 to nearly every request that it cannot serve: with words and without a job, it refused.
            if set(await self._client.jobs(key.site_key)) <= set(self._found):
                raise
            raise ServiceUnavailable(
                str(error), method=error.method, path=error.path, status=error.status, detail=error.detail
            ) from error

    async def complete(self, spec: RunSpec, handle: RunHandle, receipt: str | None = None) -> RunHandle:
        """Give a job its code and its token, and start it. See `Site.complete`.

        Raises:
            SubmitIncomplete: The site took the job and not its files. It waits for them.
        """
        try:
            async with AsyncExitStack() as stack:
                if kept := self._staged.pop(handle.remote_id, None):
                    staged = kept[0]
                    stack.push_async_exit(kept[1])
                elif (await self._client.job(handle.remote_id, "status")).status not in UNSTARTED:
                    return handle
                else:
                    staged = await self._stage(spec, stack)
                await self._fill(handle, staged)
                await self._client.act("start", handle.remote_id)
        except (RequestFailed, ConfigurationError) as error:
            if await self._has_ended(handle.remote_id):  # refused before it got a directory: its status tells why
                return handle
            raise SubmitIncomplete(
                f"{handle.describe()} was taken by the site, and waits there for its files: nothing runs, nothing is "
                f"charged. {error} Submit again under the same key to go on, or cancel it."
            ) from error
        return handle

    async def _has_ended(self, job: str) -> bool:
        try:
            return is_end(await self._client.job(job, "status"))
        except RequestFailed:
            return False

    async def _fill(self, handle: RunHandle, staged: StagedCode) -> None:
        """Send what the job needs. The code gets its name when it is whole: another submitter may be as far."""
        place = uspace(handle.remote_id)
        known = await self._directory(handle.remote_id)
        if f"/{direct.CODE}" not in known:
            part = f"{direct.CODE}.{wall_clock():.6f}"
            await self._client.write(place, part, staged.archive)
            await self._client.rename(place, part, direct.CODE)
        if staged.image and f"/{staged.image.name}" not in known:
            await self._client.write(place, staged.image.name, staged.image)
        await self._write_token(handle)

    async def _directory(self, job: str) -> builtins.set[str]:
        """What a job's directory holds, once the files that came with the job are there."""
        began = wall_clock()
        deadline, ask_at = began + DIRECTORY_TIMEOUT, began + 1
        while True:
            try:
                names = set((await self._client.stat(uspace(job), "/")).content)
                if f"/{direct.TOKEN_FILE}" in names or wall_clock() > deadline:
                    return names
            except NotFound:
                if wall_clock() > deadline or (wall_clock() > ask_at and await self._has_ended(job)):
                    raise
            await asyncio.sleep(_PAUSE)

    async def _write_token(self, handle: RunHandle) -> None:
        tracking = await direct.tracking_of(handle, self._project)
        if tracking is None:
            return
        token = await tracking.lasting_token()
        place = uspace(handle.remote_id)
        written = await self._client.write(place, direct.TOKEN_FILE, direct.token_file(token))
        if written.permissions[3:].strip("-"):
            await self._client.set_permissions(place, direct.TOKEN_FILE, "rw-------")
        self._refresh_at[handle] = token.refresh_at

    async def _stage(self, spec: RunSpec, stack: AsyncExitStack) -> StagedCode:
        """Pack the code, for as long as the stack lives."""
        code, token = await direct.resolve_code(spec, self._needed_project())
        config = parse_backend_config(spec.backend_config)
        return await stack.enter_async_context(
            stage(
                code,
                mlproject_path=spec.mlproject_path,
                exclude=config.exclude,
                image=direct.local_image(config),
                token=token,
            )
        )

    def _needed_project(self) -> MantikProject:
        if self._project is None:
            raise ConfigurationError(
                f"{self.name} was opened without a Mantik project, so that nothing can be tracked."
            )
        return self._project

    # --- Find -------------------------------------------------------------------------------------------------------

    async def find(self, key: RunKey) -> builtins.list[RunHandle]:
        """Search by the key's tag. See `Site.find`."""
        found = await self._handles(await self._client.jobs(key.site_key))
        return [handle.model_copy(update={"key": key, "name": key.name}) for handle in found]

    async def list(self, prefix: str = OUR_PREFIX) -> builtins.list[RunHandle]:
        """Search by the tag of the package, of the origin or of the flow run. See `Site.list`."""
        found = await self._handles(await self._client.jobs(search_tag(prefix)))
        return [handle for handle in found if handle.site_key.startswith(prefix)]

    async def _handles(self, jobs: Sequence[str]) -> builtins.list[RunHandle]:
        """What is known of jobs. A job's tags do not change, and are asked for once."""
        new = [job for job in jobs if job not in self._found]
        if len(jobs) > 1:  # who is older counts, and only the site's clock tells
            new += [job for job in jobs if job in self._by_our_clock]
        for job, found in zip(new, await asyncio.gather(*(self._identity(job) for job in new)), strict=True):
            if found:
                self._found[job] = found
                self._by_our_clock.discard(job)
        return [self._found[job] for job in jobs if job in self._found]

    async def _identity(self, job: str) -> RunHandle | None:
        try:
            found = await self._client.job(job, "tags", "submissionTime")
        except NotFound:
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

    async def _ask(self, handles: Sequence[RunHandle]) -> dict[RunHandle, RunStatus]:
        statuses = dict(zip(handles, await asyncio.gather(*map(self._ask_one, handles)), strict=True))
        await asyncio.gather(*(self._tend(handle, status) for handle, status in statuses.items()))
        return statuses

    async def _ask_one(self, handle: RunHandle) -> RunStatus:
        try:
            return await self._jobs.status(handle.remote_id)
        except LoginRefused:
            raise
        except NotFound as error:
            return not_found(handle, f"{self.name} has no job {handle.remote_id} ({error.detail})")
        except RequestFailed as error:
            return RunStatus(state=RunState.UNKNOWN, site_word=str(error), observed_at=datetime.now(timezone.utc))

    async def _tend(self, handle: RunHandle, status: RunStatus) -> None:
        """Keep the token of a waiting job fresh, and close the MLflow run of one that ended. Helps, not needs."""
        try:
            if status.state is RunState.SCHEDULED and wall_clock() >= self._refresh_at.get(handle, 0.0):
                await self._write_token(handle)
            elif status.state.is_end:
                await self._close_mlflow_run(handle, status)
        except MantikError as error:
            run_logger().debug("%s: %s", handle.describe(), error)

    async def _close_mlflow_run(self, handle: RunHandle, status: RunStatus) -> None:
        """Close it, unless an older job has the same one: two submitters at the same instant may find one run."""
        sharing = [other for other in self._found.values() if other.mlflow_run_id == handle.mlflow_run_id]
        never = datetime.max.replace(tzinfo=timezone.utc)
        oldest = min(sharing, key=lambda other: (other.submitted_at or never, other.remote_id), default=handle)
        if oldest.remote_id == handle.remote_id and (tracking := await direct.tracking_of(handle, self._project)):
            await direct.close_mlflow_run(tracking, handle, status)

    async def cancel(self, handle: RunHandle) -> None:
        """Abort the job, and close its MLflow run. See `Site.cancel`."""
        await self._jobs.cancel(handle.remote_id)
        await self._ask([handle])

    async def read_log(self, handle: RunHandle, offset: int = 0) -> tuple[bytes, int]:
        """Read the log in the job's directory. See `Site.read_log`."""
        return await self._jobs.read_log(handle.remote_id, offset)

    def store(self, handle: RunHandle | None = None) -> Store:
        """The user's home, or the directory of a run. See `Site.store`."""
        return UnicoreStore(self._client, uspace(handle.remote_id) if handle else self._settings.storage, self.name)

    # --- Check ------------------------------------------------------------------------------------------------------

    async def check(self) -> builtins.list[Finding]:
        """Log in, submit a job that never starts, write into its directory. See `Site.check`."""
        findings = [await self._check_login()]
        if findings[0].ok:
            findings += [await self._check_queue(), await self._check_job()]
        return findings

    async def _check_login(self) -> Finding:
        what = "log in"
        try:
            who = await self._client.who()
        except (RequestFailed, ConfigurationError) as error:
            return Finding(what=what, ok=False, message=str(error))
        if who.closed:
            return Finding(what=what, ok=False, message=f"{self.name} takes no jobs now: {who.closed}")
        return Finding(what=what, ok=True, message=f"as {who.uid or who.dn}")

    async def _check_queue(self) -> Finding:
        what = "find the queue"
        wanted = self._settings.queue
        queues = await self._client.queues()
        if queues and wanted not in queues:
            return Finding(what=what, ok=False, message=f"{self.name} has no queue {wanted}, only {', '.join(queues)}")
        return Finding(what=what, ok=True, message=wanted if queues else f"{wanted}; the site does not list queues")

    async def _check_job(self) -> Finding:
        what = "submit a job that never starts, and write into its directory"
        try:
            job = await self._client.submit(
                {
                    "Name": "prefect-mantik check",
                    "haveClientStageIn": "true",
                    "Umask": "077",
                    "Imports": [{"To": direct.TOKEN_FILE, "Data": "-"}],
                }
            )
            try:
                await self._directory(job)
                await self._client.write(uspace(job), "check", b"written by prefect-mantik\n")
            finally:
                await self._client.delete_job(job)
        except RequestFailed as error:
            return Finding(what=what, ok=False, message=str(error))
        return Finding(what=what, ok=True)
