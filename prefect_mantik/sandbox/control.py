"""The control API under `/_sandbox/`: how tests and benchmarks look inside and make trouble."""

from __future__ import annotations

import dataclasses
import hmac
import os
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from prefect_mantik.sandbox.accounts import Accounts
from prefect_mantik.sandbox.errors import ApiError, parse
from prefect_mantik.sandbox.faults import Faults, Rule
from prefect_mantik.sandbox.firecrest.routes import Firecrest
from prefect_mantik.sandbox.http import Handler, path_id, read_body
from prefect_mantik.sandbox.jobs import Hold, Job, JobState, timestamp
from prefect_mantik.sandbox.runs import Runs
from prefect_mantik.sandbox.scheduler import Site
from prefect_mantik.sandbox.settings import SandboxSettings, Switches
from prefect_mantik.sandbox.unicore.routes import Unicore

TOKEN_HEADER = "X-Sandbox-Token"  # noqa: S105 (a name)


class _Password(BaseModel):
    username: str
    password: str | None = None
    revoke: bool = True


class _SiteChange(BaseModel):
    model_config = ConfigDict(extra="forbid")
    maintenance: bool | None = None
    message: str | None = None
    refuse_logins: bool | None = None
    entitled: bool | None = None
    quota_full: bool | None = None
    queue_reason: str | None = None
    unhealthy: bool | None = None
    accounting_down: bool | None = None


class _JobEnd(BaseModel):
    state: Literal["FAILED", "TIMEOUT", "CANCELLED", "OUT_OF_MEMORY", "NODE_FAIL", "PREEMPTED", "VANISHED"]


class _JobHold(BaseModel):
    hold: Hold
    reason: str = ""


class _JobRequeue(BaseModel):
    seconds: float = Field(120.0, ge=0)


class _JobAge(BaseModel):
    seconds: float


class _FirecrestToken(BaseModel):
    client: str
    lifetime: float = 300.0


class _UnicoreToken(BaseModel):
    username: str
    lifetime: float = 3600.0


class Control:
    """Serves the control API."""

    def __init__(
        self,
        *,
        accounts: Accounts,
        runs: Runs,
        sites: list[Site],
        faults: Faults,
        switches: Switches,
        login_link: Callable[[], str],
        unicore: Unicore,
        firecrest: Firecrest,
    ) -> None:
        self.token = secrets.token_urlsafe(32)
        self._accounts = accounts
        self._runs = runs
        self._sites = {site.name: site for site in sites}
        self._faults = faults
        self._switches = switches
        self._login_link = login_link
        self._unicore = unicore
        self._firecrest = firecrest

    def routes(self) -> list[Route]:
        """Give all endpoints."""
        table: list[tuple[str, str, Callable[[Request], Awaitable[Any]]]] = [
            ("GET", "/faults", self._list_faults),
            ("POST", "/faults", self._add_fault),
            ("DELETE", "/faults", self._clear_faults),
            ("GET", "/requests", self._requests),
            ("DELETE", "/requests", self._reset_requests),
            ("GET", "/requests/log", self._request_log),
            ("GET", "/switches", self._get_switches),
            ("PATCH", "/switches", self._set_switches),
            ("POST", "/tokens/expire", self._expire_tokens),
            ("POST", "/tokens/revoke-refresh", self._revoke_refresh),
            ("POST", "/password", self._password),
            ("GET", "/accounts", self._list_accounts),
            ("GET", "/sites", self._list_sites),
            ("PATCH", "/sites/{name}", self._change_site),
            ("GET", "/jobs", self._jobs),
            ("POST", "/jobs/{jobId}/end", self._end_job),
            ("POST", "/jobs/{jobId}/hold", self._hold_job),
            ("POST", "/jobs/{jobId}/requeue", self._requeue_job),
            ("POST", "/jobs/{jobId}/age", self._age_job),
            ("POST", "/firecrest/tokens", self._firecrest_token),
            ("POST", "/firecrest/tokens/expire", self._expire_firecrest_tokens),
            ("POST", "/unicore/tokens", self._unicore_token),
            ("POST", "/unicore/sessions/expire", self._expire_sessions),
            ("POST", "/login", self._login),
        ]
        return [Route(f"/_sandbox{path}", self._guarded(handler), methods=[method]) for method, path, handler in table]

    def _guarded(self, handler: Callable[[Request], Awaitable[Any]]) -> Handler:
        async def handle(request: Request) -> Response:
            given = request.headers.get(TOKEN_HEADER, "")
            if not hmac.compare_digest(given.encode(), self.token.encode()):
                raise ApiError(403, f"The header {TOKEN_HEADER} does not hold this sandbox's control token")
            return JSONResponse(await handler(request))

        return handle

    async def _list_faults(self, _: Request) -> list[dict[str, Any]]:
        return [rule.model_dump() for rule in self._faults.rules]

    async def _add_fault(self, request: Request) -> dict[str, Any]:
        rule = await read_body(request, Rule)
        self._faults.rules.append(rule)
        return rule.model_dump()

    async def _clear_faults(self, _: Request) -> None:
        self._faults.rules.clear()

    async def _requests(self, _: Request) -> list[dict[str, Any]]:
        keys = ("method", "route", "account", "status")
        return [
            {**dict(zip(keys, key, strict=True)), "count": count} for key, count in sorted(self._faults.counts.items())
        ]

    async def _request_log(self, _: Request) -> list[dict[str, Any]]:
        return [{**seen._asdict(), "at": timestamp(seen.at)} for seen in self._faults.log]

    async def _reset_requests(self, _: Request) -> None:
        self._faults.counts.clear()

    async def _get_switches(self, _: Request) -> dict[str, Any]:
        return dataclasses.asdict(self._switches)

    async def _set_switches(self, request: Request) -> dict[str, Any]:
        changes = await read_body(request, dict[str, Any])
        known = dataclasses.asdict(self._switches)
        if unknown := changes.keys() - known.keys():
            raise ApiError(422, f"No such switch: {', '.join(sorted(unknown))}")
        checked = parse(SandboxSettings, changes, ("body",))
        for name in changes:
            setattr(self._switches, name, getattr(checked, name))
        return dataclasses.asdict(self._switches)

    async def _expire_tokens(self, _: Request) -> None:
        self._accounts.expire_access_tokens()

    async def _revoke_refresh(self, _: Request) -> None:
        self._accounts.revoke_refresh_tokens()

    async def _password(self, request: Request) -> dict[str, str]:
        change = await read_body(request, _Password)
        user = self._accounts.users.get(change.username)
        if user is None:
            raise ApiError(404, f"User {change.username} not found")
        user.password = change.password or secrets.token_urlsafe(18)
        if change.revoke:
            self._accounts.revoke_refresh_tokens()
        return {"username": user.name, "password": user.password}

    async def _list_accounts(self, _: Request) -> list[dict[str, Any]]:
        return [
            {
                "username": user.name,
                "password": user.password,
                "userId": str(user.id),
                "connections": {connection.name: str(connection.id) for connection in user.connections.values()},
            }
            for user in self._accounts.users.values()
        ]

    async def _list_sites(self, _: Request) -> list[dict[str, Any]]:
        changeable = ("maintenance", "refuse_logins", "entitled", "quota_full", "queue_reason", "unhealthy")
        fields = ("name", "kind", "url", *changeable, "accounting_down")
        return [
            {name: getattr(site, name) for name in fields} | {"message": site.maintenance_message}
            for site in self._sites.values()
        ]

    async def _change_site(self, request: Request) -> None:
        site = self._sites.get(request.path_params["name"])
        if site is None:
            raise ApiError(404, f"Site {request.path_params['name']} not found")
        change = await read_body(request, _SiteChange)
        if change.message is not None:
            site.maintenance_message = change.message
        if change.entitled is not None:
            site.entitled = change.entitled
        if change.quota_full is not None:
            site.quota_full = change.quota_full
        if change.unhealthy is not None:
            site.unhealthy = change.unhealthy
        if change.accounting_down is not None:
            site.accounting_down = change.accounting_down
        if change.queue_reason is not None:
            site.set_queue_reason(change.queue_reason)
        if change.maintenance is not None:
            site.set_maintenance(change.maintenance)
        if change.refuse_logins is not None:
            site.refuse_logins = change.refuse_logins

    async def _jobs(self, _: Request) -> list[dict[str, Any]]:
        runs = {run.job: run for run in self._runs.runs.values() if run.job is not None}
        jobs = [job for site in self._sites.values() for job in site.jobs]
        described = []
        for job in sorted(jobs, key=lambda job: job.submitted):
            run = runs.get(job)
            described.append(
                {
                    **_describe(job),
                    "platformRunId": str(run.id) if run else None,
                    "mlflowRunId": run.mlflow_run_id if run else None,
                    "name": run.name if run else job.request.name,
                }
            )
        return described

    async def _end_job(self, request: Request) -> dict[str, Any]:
        site, job = self._runs.find_job(path_id(request, "jobId"))
        wanted = await read_body(request, _JobEnd)
        if not job.state.ended:
            job.killer = "root"
        await site.end(job, JobState(wanted.state))
        return _describe(job)

    async def _hold_job(self, request: Request) -> dict[str, Any]:
        site, job = self._runs.find_job(path_id(request, "jobId"))
        wanted = await read_body(request, _JobHold)
        site.set_hold(job, wanted.hold, wanted.reason)
        return _describe(job)

    async def _requeue_job(self, request: Request) -> dict[str, Any]:
        site, job = self._runs.find_job(path_id(request, "jobId"))
        wanted = await read_body(request, _JobRequeue)
        site.requeue(job, wanted.seconds)
        return _describe(job)

    async def _age_job(self, request: Request) -> dict[str, Any]:
        _, job = self._runs.find_job(path_id(request, "jobId"))
        job.age((await read_body(request, _JobAge)).seconds)
        return _describe(job)

    async def _firecrest_token(self, request: Request) -> dict[str, str]:
        wanted = await read_body(request, _FirecrestToken)
        return {"token": self._firecrest.tokens.issue(wanted.client, wanted.lifetime)}

    async def _expire_firecrest_tokens(self, _: Request) -> None:
        self._firecrest.tokens.expire()

    async def _unicore_token(self, request: Request) -> dict[str, str]:
        wanted = await read_body(request, _UnicoreToken)
        if wanted.username not in self._unicore.identities.people:
            raise ApiError(404, f"User {wanted.username} not found")
        return {"token": self._unicore.identities.issue_oidc(wanted.username, wanted.lifetime)}

    async def _expire_sessions(self, _: Request) -> None:
        self._unicore.expire_sessions()

    async def _login(self, _: Request) -> dict[str, str]:
        return {"url": self._login_link()}


def _describe(job: Job) -> dict[str, Any]:
    return {
        "id": str(job.id),
        "site": job.site,
        "kind": job.kind,
        "owner": job.owner,
        "number": job.number,
        "jobName": job.request.name,
        "state": job.state.value,
        "word": job.word(os.getuid()),
        "live": not job.state.ended,
        "hold": job.hold,
        "pid": job.pid,
        "exitCode": job.exit_code,
        "message": job.message,
        "queue": job.request.queue,
        "nodes": job.request.nodes,
        "walltime": job.request.walltime,
        "directory": str(job.directory),
        "submitted": timestamp(job.submitted),
        "started": timestamp(job.started),
        "ended": timestamp(job.ended),
        "runKey": job.request.environment.get("MANTIK_RUN_KEY"),
    }
