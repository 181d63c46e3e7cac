"""MLflow's model registry: a model that a run logged becomes a version of a registered model, once."""

from __future__ import annotations

from prefect_mantik.errors import NotFound, RequestFailed, ServiceUnavailable
from prefect_mantik.results import ModelVersion
from prefect_mantik.runs import RunHandle
from prefect_mantik.tracking.client import TrackingClient


async def register(client: TrackingClient, handle: RunHandle, *, name: str) -> ModelVersion:
    """Register the model that a run logged. Asked again for the same run and name, it returns the same version.

    Raises:
        NotFound: The run logged no model.
    """
    run = (await client.runs_by_id([handle.mlflow_run_id or ""], [handle.mlflow_experiment_id or ""])).get(
        handle.mlflow_run_id or ""
    )
    if run is None:
        raise NotFound(f"The tracking server knows no MLflow run of {handle.describe()}.")
    source = f"{run.artifact_uri.rstrip('/')}/{await _model_path(client, handle, run.run_id)}"
    await _ensure_model(client, name)
    existing = await _version_of(client, name, run.run_id, source)
    if existing is None:
        body = {"name": name, "source": source, "run_id": run.run_id}
        try:
            answer = await client.call("POST", "model-versions/create", body, repeatable=False)
            existing = str(answer["model_version"]["version"])
        except ServiceUnavailable:
            # Made or not? The registry takes the same model twice, so it is asked instead of told again.
            existing = await _version_of(client, name, run.run_id, source)
            if existing is None:
                raise
    link = client.model_link(name, existing)
    return ModelVersion(name=name, version=existing, source=source, run_id=run.run_id, link=link)


async def _model_path(client: TrackingClient, handle: RunHandle, run_id: str) -> str:
    """The first directory of the run's artifacts that holds a file `MLmodel`."""
    directories = [str(item["path"]) for item in await client.artifacts(run_id) if item.get("is_dir")]
    for path in sorted(directories, key=lambda path: path != "model"):
        if any(str(item["path"]) == f"{path}/MLmodel" for item in await client.artifacts(run_id, path)):
            return path
    shown = f"it logged {', '.join(directories)}" if directories else "it logged no directory at all"
    raise NotFound(
        f"{handle.describe()} logged no model: no directory of its artifacts holds a file MLmodel ({shown}). "
        "Log it with mlflow.<flavour>.save_model and mlflow.log_artifacts(…, 'model')."
    )


async def _ensure_model(client: TrackingClient, name: str) -> None:
    try:
        await client.call("POST", "registered-models/create", {"name": name})
    except RequestFailed as error:
        if "already exists" not in error.detail.lower():
            raise


async def _version_of(client: TrackingClient, name: str, run_id: str, source: str) -> str | None:
    """A version that an earlier try made: the registry itself takes the same model twice."""
    params = {"filter": f"run_id='{run_id}'", "max_results": "100"}
    found = await client.call("GET", "model-versions/search", params=params)
    for version in found.get("model_versions", []):
        if version.get("name") == name and version.get("source") == source:
            return str(version["version"])
    return None
