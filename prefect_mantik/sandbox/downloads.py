"""Files behind links that need no token, as the platform's presigned links do not."""

from __future__ import annotations

import io
import secrets
import tarfile
import zipfile
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from prefect_mantik.sandbox.errors import ApiError
from prefect_mantik.sandbox.mlflow_server import MlflowServer, artifact_directory


class Downloads:
    """Makes the links and serves `/downloads/{ticket}/{name}`."""

    def __init__(self, mlflow: MlflowServer, experiment_id: str, base_url: str) -> None:
        self._mlflow = mlflow
        self._experiment_id = experiment_id
        self._base_url = base_url
        self._links: dict[str, str] = {}

    def artifacts(self, mlflow_run_id: str) -> str:
        """Give a link to all artifacts of a run in a zip file."""
        return self._link(mlflow_run_id, "artifacts.zip")

    def image(self, mlflow_run_id: str) -> str:
        """Give a link to what stands for a model's container image: a tar file of the model."""
        return self._link(mlflow_run_id, "image.tar.gz")

    async def serve(self, request: Request) -> Response:
        """Serve one link."""
        run_id = self._links.get(request.path_params["ticket"])
        if run_id is None:
            raise ApiError(403, "This link is not one of ours")
        directory = artifact_directory(self._mlflow, self._experiment_id, run_id)
        if request.path_params["name"].endswith(".zip"):
            return Response(_zip(directory), media_type="application/zip")
        return Response(_tar(directory / "model"), media_type="application/gzip")

    def _link(self, mlflow_run_id: str, name: str) -> str:
        ticket = secrets.token_urlsafe(24)
        self._links[ticket] = mlflow_run_id
        return f"{self._base_url}/downloads/{ticket}/{name}"


def _zip(directory: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(directory.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(directory))
    return buffer.getvalue()


def _tar(directory: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        if directory.is_dir():
            archive.add(directory, arcname="model")
    return buffer.getvalue()
