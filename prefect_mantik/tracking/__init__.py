"""MLflow's REST API, as one account: no environment variables, no mlflow import, two accounts in one process."""

from prefect_mantik.results import ModelVersion
from prefect_mantik.tracking.client import TrackedRun, TrackingClient, tracking_client
from prefect_mantik.tracking.metrics import final_metrics
from prefect_mantik.tracking.models import register

__all__ = ["ModelVersion", "TrackedRun", "TrackingClient", "final_metrics", "register", "tracking_client"]
