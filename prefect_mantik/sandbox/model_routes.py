"""The platform's endpoints for trained models."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from prefect_mantik.sandbox.accounts import Accounts, User
from prefect_mantik.sandbox.catalogue import Catalogue
from prefect_mantik.sandbox.downloads import Downloads
from prefect_mantik.sandbox.errors import ApiError
from prefect_mantik.sandbox.http import for_users, path_id, read_body
from prefect_mantik.sandbox.runs import Runs

_MODELS = "/projects/{projectId}/models/trained"
_MODEL = _MODELS + "/{modelId}"


class _Model(BaseModel):
    uri: str | None = None
    location: str | None = None
    connectionId: UUID | None = None  # noqa: N815 (the API's own spelling)
    mlflowParameters: dict[str, Any] | str | None = None  # noqa: N815
    runId: UUID | None = None  # noqa: N815
    name: str


class ModelRoutes:
    """Serves `/projects/{projectId}/models/trained`."""

    def __init__(self, runs: Runs, accounts: Accounts, catalogue: Catalogue, downloads: Downloads) -> None:
        self._runs = runs
        self._accounts = accounts
        self._catalogue = catalogue
        self._downloads = downloads
        self._models: dict[UUID, dict[str, Any]] = {}

    def routes(self) -> list[Route]:
        """Give the endpoints."""
        table = [
            ("GET", _MODELS, self._list),
            ("POST", _MODELS, self._create),
            ("GET", _MODEL, self._get),
            ("PUT", _MODEL, self._update),
            ("DELETE", _MODEL, self._delete),
            ("POST", _MODEL + "/docker/build", self._build),
            ("GET", _MODEL + "/docker", self._image),
        ]
        return [Route(path, for_users(self._accounts, handler), methods=[method]) for method, path, handler in table]

    async def _list(self, request: Request, _: User) -> Response:
        self._catalogue.check_project(path_id(request, "projectId"))
        return JSONResponse({"totalRecords": len(self._models), "models": list(self._models.values())})

    async def _create(self, request: Request, _: User) -> Response:
        project_id, model = path_id(request, "projectId"), await read_body(request, _Model)
        self._catalogue.check_project(project_id)
        model_id = uuid4()
        self._models[model_id] = {"modelId": str(model_id), "status": None, **self._content(model)}
        return JSONResponse({"modelId": str(model_id)}, 201)

    async def _get(self, request: Request, _: User) -> Response:
        return JSONResponse(self._model(request))

    async def _update(self, request: Request, _: User) -> Response:
        known, model = self._model(request), await read_body(request, _Model)
        known.update(self._content(model))
        return JSONResponse(None)

    async def _delete(self, request: Request, _: User) -> Response:
        del self._models[UUID(self._model(request)["modelId"])]
        return Response(status_code=204)

    async def _build(self, request: Request, _: User) -> Response:
        self._model(request)["status"] = "PENDING"
        return JSONResponse(None, 201)

    async def _image(self, request: Request, _: User) -> Response:
        model = self._model(request)
        run = self._runs.get(UUID(model["runId"])) if model["runId"] else None
        if model["status"] is None or run is None or run.mlflow_run_id is None:
            raise ApiError(404, f"Model {model['modelId']} has no container image")
        return JSONResponse({"url": self._downloads.image(run.mlflow_run_id)})

    def _content(self, model: _Model) -> dict[str, Any]:
        content = model.model_dump(mode="json")
        if model.runId is not None:
            run = self._runs.get(model.runId)
            content |= {"uri": f"runs:/{run.mlflow_run_id}/model", "location": "model"}
        elif model.uri is None or model.location is None:
            raise ApiError(400, "A trained model needs a run, or a uri and a location")
        return content

    def _model(self, request: Request) -> dict[str, Any]:
        project_id, model_id = path_id(request, "projectId"), path_id(request, "modelId")
        self._catalogue.check_project(project_id)
        if model_id not in self._models:
            raise ApiError(404, f"Trained model {model_id} not found")
        return self._models[model_id]
