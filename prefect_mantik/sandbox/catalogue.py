"""What the platform knows besides accounts and runs: the project and its repositories."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from prefect_mantik.sandbox.errors import ApiError


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """One project with one repository of each kind, under random ids."""

    mlflow_experiment_id: str
    experiment_name: str
    code_uri: str
    data_uri: str
    data_commit: str
    project_id: UUID = field(default_factory=uuid4)
    experiment_id: UUID = field(default_factory=uuid4)
    code_id: UUID = field(default_factory=uuid4)
    data_id: UUID = field(default_factory=uuid4)

    def check_project(self, project_id: UUID) -> None:
        """Refuse an unknown project."""
        _check("Project", project_id, self.project_id)

    def check_experiment(self, experiment_id: UUID) -> None:
        """Refuse an unknown experiment repository."""
        _check("Experiment repository", experiment_id, self.experiment_id)

    def check_code(self, code_id: UUID) -> None:
        """Refuse an unknown code repository."""
        _check("Code repository", code_id, self.code_id)

    def check_data(self, data_id: UUID) -> None:
        """Refuse an unknown data repository."""
        _check("Data repository", data_id, self.data_id)

    def experiment(self) -> dict[str, Any]:
        """Describe the experiment repository."""
        return {
            "experimentRepositoryId": str(self.experiment_id),
            "mlflowExperimentId": self.mlflow_experiment_id,
            "name": self.experiment_name,
            "artifactLocation": f"mlflow-artifacts:/{self.mlflow_experiment_id}",
        }

    def code(self) -> dict[str, Any]:
        """Describe the code repository."""
        return {
            "codeRepositoryId": str(self.code_id),
            "codeRepositoryName": "Sandbox project",
            "uri": self.code_uri,
            "connectionId": None,
            "platform": "GitHub",
        }

    def data(self) -> dict[str, Any]:
        """Describe the data repository as the single answer does."""
        return {
            "uri": self.data_uri,
            "isDvcEnabled": False,
            "dvcConnectionId": None,
            "connectionId": None,
            "versions": {"v1": self.data_commit},
            "platform": "GitHub",
        }

    def data_list(self) -> dict[str, Any]:
        """List the data repositories."""
        entry: dict[str, Any] = {
            "dataRepositoryId": str(self.data_id),
            "dataRepositoryName": "Sandbox data",
            "uri": self.data_uri,
            "accessToken": None,
            "description": "A few numbers in a git repository",
            "labels": [],
        }
        return {"totalRecords": 1, "dataRepositories": [entry]}


def _check(kind: str, given: UUID, known: UUID) -> None:
    if given != known:
        raise ApiError(404, f"{kind} {given} not found")
