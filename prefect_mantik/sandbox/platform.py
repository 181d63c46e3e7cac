"""The platform's REST API: tokens, connections, repositories, and where the rest is found."""

from __future__ import annotations

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from prefect_mantik.sandbox.accounts import Accounts, User
from prefect_mantik.sandbox.catalogue import Catalogue
from prefect_mantik.sandbox.downloads import Downloads
from prefect_mantik.sandbox.errors import ApiError
from prefect_mantik.sandbox.http import for_users, path_id, read_body, unproven
from prefect_mantik.sandbox.model_routes import ModelRoutes
from prefect_mantik.sandbox.run_routes import RunRoutes
from prefect_mantik.sandbox.runs import Runs
from prefect_mantik.sandbox.settings import Switches


class _Login(BaseModel):
    username: str
    password: str


class _Refresh(BaseModel):
    username: str
    refresh_token: str


class Platform:
    """Serves the platform's REST API."""

    def __init__(
        self, *, accounts: Accounts, catalogue: Catalogue, runs: Runs, downloads: Downloads, switches: Switches
    ) -> None:
        self._accounts = accounts
        self._catalogue = catalogue
        self._runs = runs
        self._downloads = downloads
        self._switches = switches

    def routes(self) -> list[Route]:
        """Give all endpoints."""
        project = "/projects/{projectId}"
        experiment = project + "/experiments/{experimentRepositoryId}"
        table = [
            ("/users/{userId}/settings/connections/{connectionId}", self._connection),
            (experiment, self._experiment),
            (experiment + "/unique-mlflow-run-name", self._unique_name),
            (project + "/code/{codeRepositoryId}", self._code),
            (project + "/data", self._data_list),
            (project + "/data/{dataRepositoryId}", self._data),
        ]
        guessed = [("/projects", self._projects), (project + "/experiments", self._experiments)]
        accounts, catalogue, switches = self._accounts, self._catalogue, self._switches
        return [
            Route("/mantik/tokens/create", self._create_token, methods=["POST"]),
            Route("/mantik/tokens/refresh", self._refresh_token, methods=["POST"]),
            Route("/downloads/{ticket}/{name}", self._downloads.serve, methods=["GET"]),
            *(Route(path, for_users(accounts, handler), methods=["GET"]) for path, handler in table),
            *(
                Route(path, unproven(switches, for_users(accounts, handler)), methods=["GET"])
                for path, handler in guessed
            ),
            *RunRoutes(self._runs, accounts, catalogue, self._downloads, switches).routes(),
            *ModelRoutes(self._runs, accounts, catalogue, self._downloads).routes(),
        ]

    async def _create_token(self, request: Request) -> Response:
        body = await read_body(request, _Login)
        _count_for(request, body.username, self._accounts)
        return JSONResponse(self._accounts.login(body.username, body.password), 201)

    async def _refresh_token(self, request: Request) -> Response:
        body = await read_body(request, _Refresh)
        _count_for(request, body.username, self._accounts)
        return JSONResponse(self._accounts.refresh(body.username, body.refresh_token), 201)

    async def _connection(self, request: Request, user: User) -> Response:
        user_id, connection_id = path_id(request, "userId"), path_id(request, "connectionId")
        if user_id != user.id:
            raise ApiError(403, f"User {user_id} is somebody else")
        connection = self._accounts.connection(user, connection_id)
        content = {
            "connectionId": str(connection.id),
            "user": {"userId": str(user.id), "name": user.name, "email": f"{user.name}@localhost"},
            "connectionName": connection.name,
            "connectionProvider": connection.provider,
            "authMethod": "Username-Password",
            "loginName": connection.login,
            "password": connection.password,
            "token": None,
        }
        return JSONResponse(content)

    async def _experiment(self, request: Request, _: User) -> Response:
        self._check_experiment(request)
        return JSONResponse(self._catalogue.experiment())

    async def _unique_name(self, request: Request, _: User) -> Response:
        self._check_experiment(request)
        name = request.query_params.get("runName")
        if name is None:
            raise ApiError(
                422, [{"type": "missing", "loc": ["query", "runName"], "msg": "Field required", "input": None}]
            )
        return JSONResponse(self._runs.unique_name(name))

    async def _code(self, request: Request, _: User) -> Response:
        project_id, code_id = path_id(request, "projectId"), path_id(request, "codeRepositoryId")
        self._catalogue.check_project(project_id)
        self._catalogue.check_code(code_id)
        return JSONResponse(self._catalogue.code())

    async def _data(self, request: Request, _: User) -> Response:
        project_id, data_id = path_id(request, "projectId"), path_id(request, "dataRepositoryId")
        self._catalogue.check_project(project_id)
        self._catalogue.check_data(data_id)
        return JSONResponse(self._catalogue.data())

    async def _data_list(self, request: Request, _: User) -> Response:
        self._catalogue.check_project(path_id(request, "projectId"))
        return JSONResponse(self._catalogue.data_list())

    async def _projects(self, _: Request, user: User) -> Response:
        project = {"projectId": str(self._catalogue.project_id), "name": "Sandbox", "owner": user.name}
        return JSONResponse({"totalRecords": 1, "projects": [project]})

    async def _experiments(self, request: Request, _: User) -> Response:
        self._catalogue.check_project(path_id(request, "projectId"))
        return JSONResponse({"totalRecords": 1, "experimentRepositories": [self._catalogue.experiment()]})

    def _check_experiment(self, request: Request) -> None:
        project_id, experiment_id = path_id(request, "projectId"), path_id(request, "experimentRepositoryId")
        self._catalogue.check_project(project_id)
        self._catalogue.check_experiment(experiment_id)


def _count_for(request: Request, name: str, accounts: Accounts) -> None:
    request.scope["sandbox.account"] = name if name in accounts.users else "unknown"
