"""The platform's endpoints for runs."""

from __future__ import annotations

import json
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from prefect_mantik.sandbox.accounts import Accounts, User, bearer_token
from prefect_mantik.sandbox.catalogue import Catalogue
from prefect_mantik.sandbox.downloads import Downloads
from prefect_mantik.sandbox.errors import ApiError
from prefect_mantik.sandbox.http import for_users, path_id, read_body, unproven
from prefect_mantik.sandbox.jobs import timestamp
from prefect_mantik.sandbox.runs import LocalRun, PlatformRun, RemoteRun, Runs
from prefect_mantik.sandbox.settings import Switches

_RUNS = "/projects/{projectId}/runs"
_RUN = _RUNS + "/{runId}"
_Status = Literal["SCHEDULED", "RUNNING", "FINISHED", "FAILED", "KILLED"]


class RunRoutes:
    """Serves `/projects/{projectId}/runs`."""

    def __init__(
        self, runs: Runs, accounts: Accounts, catalogue: Catalogue, downloads: Downloads, switches: Switches
    ) -> None:
        self._runs = runs
        self._accounts = accounts
        self._catalogue = catalogue
        self._downloads = downloads
        self._switches = switches

    def routes(self) -> list[Route]:
        """Give the endpoints, those that are not proven behind their switch."""
        proven = [
            ("POST", _RUNS, self._create),
            ("PUT", _RUN + "/status", self._put_status),
            ("PUT", _RUN + "/logs", self._put_logs),
            ("GET", _RUN + "/artifacts", self._artifacts),
            ("PUT", _RUN + "/infrastructure", self._put_infrastructure),
            ("PUT", _RUN + "/notebook-source", self._put_notebook_source),
        ]
        guessed = [
            ("GET", _RUNS, self._list),
            ("GET", _RUN, self._get),
            ("GET", _RUN + "/status", self._get_status),
            ("GET", _RUN + "/logs", self._get_logs),
            ("DELETE", _RUN, self._delete),
            ("PUT", _RUN + "/cancel", self._cancel),
        ]
        return [
            *(Route(path, for_users(self._accounts, handler), methods=[method]) for method, path, handler in proven),
            *(
                Route(path, unproven(self._switches, for_users(self._accounts, handler)), methods=[method])
                for method, path, handler in guessed
            ),
        ]

    async def _create(self, request: Request, user: User) -> Response:
        project_id = path_id(request, "projectId")
        # The official client writes a Python False into the query.
        if request.query_params.get("submit", "true").lower() == "false":
            local = await read_body(request, LocalRun)
            self._catalogue.check_project(project_id)
            run = self._runs.add_local(local, user)
        else:
            remote = await read_body(request, RemoteRun)
            self._catalogue.check_project(project_id)
            run = await self._runs.submit(remote, user, bearer_token(request.headers.get("authorization")))
        return JSONResponse({"runId": str(run.id), "timestamp": timestamp(run.created)}, 201)

    async def _put_status(self, request: Request, _: User) -> Response:
        run = self._run(request)
        run.status = await read_body(request, _Status)  # type: ignore[arg-type]
        return JSONResponse(None)

    async def _put_logs(self, request: Request, _: User) -> Response:
        run = self._run(request)
        run.log = await read_body(request, str)
        return JSONResponse(None)

    async def _put_infrastructure(self, request: Request, _: User) -> Response:
        run = self._run(request)
        run.details["infrastructure"] = await read_body(request, dict[str, Any])
        return JSONResponse(None)

    async def _put_notebook_source(self, request: Request, _: User) -> Response:
        run = self._run(request)
        run.details["notebookSource"] = await read_body(request, dict[str, Any])
        return Response(status_code=204)

    async def _artifacts(self, request: Request, _: User) -> Response:
        run = self._run(request)
        if run.mlflow_run_id is None:
            raise ApiError(404, f"Run {run.id} has no artifacts")
        return JSONResponse({"url": self._downloads.artifacts(run.mlflow_run_id)})

    async def _list(self, request: Request, _: User) -> Response:
        self._catalogue.check_project(path_id(request, "projectId"))
        start = int(request.query_params.get("startIndex", 0))
        length = int(request.query_params.get("pageLength", 50))
        runs = [run.describe() for run in reversed(self._runs.runs.values())]
        return JSONResponse({"totalRecords": len(runs), "runs": runs[start : start + length]})

    async def _get(self, request: Request, _: User) -> Response:
        return JSONResponse(self._run(request).describe())

    async def _get_status(self, request: Request, _: User) -> Response:
        return JSONResponse(self._run(request).status)

    async def _get_logs(self, request: Request, _: User) -> Response:
        log = self._runs.read_log(self._run(request))
        return Response(json.dumps(log), media_type="application/json")

    async def _delete(self, request: Request, _: User) -> Response:
        del self._runs.runs[self._run(request).id]
        return Response(status_code=204)

    async def _cancel(self, request: Request, _: User) -> Response:
        await self._runs.cancel(self._run(request))
        return Response(status_code=204)

    def _run(self, request: Request) -> PlatformRun:
        project_id, run_id = path_id(request, "projectId"), path_id(request, "runId")
        self._catalogue.check_project(project_id)
        return self._runs.get(run_id)
