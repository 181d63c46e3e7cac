"""What the platform answers and takes, as far as it is known. Unknown fields are let through: it grows."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator
from pydantic.alias_generators import to_camel

from prefect_mantik.runs import CodeRepository, RunSpec


class _Answer(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")


class TokenAnswer(BaseModel):
    """Of token create and refresh, the one place with names in PascalCase."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    access_token: SecretStr = Field(alias="AccessToken")
    refresh_token: SecretStr | None = Field(default=None, alias="RefreshToken")
    expires_at: datetime = Field(alias="ExpiresAt")

    @field_validator("expires_at")
    @classmethod
    def _is_aware(cls, moment: datetime) -> datetime:
        """The platform has sent naive times, meaning UTC."""
        return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


class SubmittedRun(_Answer):
    """Of `POST runs`."""

    run_id: UUID


class PlatformRun(_Answer):
    """One of the list of runs (unproven)."""

    run_id: UUID
    name: str = ""
    mlflow_run_id: str | None = None


class Experiment(_Answer):
    """An experiment repository and the MLflow experiment that belongs to it."""

    experiment_repository_id: UUID
    mlflow_experiment_id: str
    name: str = ""

    @field_validator("mlflow_experiment_id", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> str:
        return str(value)


class CodeRepositoryAnswer(_Answer):
    """A code repository: where its git repository is, and the Connection with its token if it is private."""

    uri: str
    connection_id: UUID | None = None


class ConnectionAnswer(_Answer):
    """A Connection. Its owner is answered the secrets in clear: never kept, never shown."""

    connection_id: UUID
    connection_name: str = ""
    connection_provider: str = ""
    auth_method: str = ""
    login_name: str | None = None
    password: SecretStr | None = None
    token: SecretStr | None = None


def submit_body(
    spec: RunSpec, code: CodeRepository, *, name: str, connection_id: UUID, backend_config: dict[str, Any]
) -> dict[str, Any]:
    """The body of `POST runs`, with every key that the official client sends."""
    return {
        "name": name,
        "experimentRepositoryId": str(spec.experiment_repository_id),
        "codeRepositoryId": str(code.repository_id),
        "branch": code.branch,
        "commit": code.commit,
        "dataRepositoryId": str(spec.data.repository_id) if spec.data else None,
        "dataBranch": spec.data.branch if spec.data else None,
        "dataCommit": spec.data.commit if spec.data else None,
        "connectionId": str(connection_id),
        "computeBudgetAccount": spec.budget_account,
        "mlflowMlprojectFilePath": spec.mlproject_path,
        "entryPoint": spec.entry_point,
        "mlflowParameters": dict(spec.parameters),
        "backendConfig": backend_config,
    }
