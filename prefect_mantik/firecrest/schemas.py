"""What a FirecREST server answers, as far as we read it. Unknown fields are let through.

Names are those of FirecREST's own OpenAPI document. The two modes of a server differ in what they leave out: every
field but a job's id and state may be missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.alias_generators import to_camel


class _Answer(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore", coerce_numbers_to_str=True
    )


class JobStatus(_Answer):
    """Of one job, or of one of its steps."""

    state: str
    state_reason: str | None = None
    exit_code: int | None = None
    interrupt_signal: int | None = None

    @field_validator("state", mode="before")
    @classmethod
    def _one_text(cls, value: object) -> object:
        """Slurm's own REST API gives a list of words."""
        return ",".join(map(str, value)) if isinstance(value, list) else value


class JobTime(_Answer):
    """When, in seconds since 1970; of a waiting job it may hold what Slurm guesses. 0 and null mean: not known."""

    start: int | None = None
    end: int | None = None
    limit: int | None = None


class Job(_Answer):
    """One job of the batch system, or one task of an array."""

    job_id: str
    name: str = ""
    status: JobStatus
    time: JobTime = JobTime()
    working_directory: str = ""

    @field_validator("name", "working_directory", mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        return "" if value is None else value  # one strange job must not hide all others

    @field_validator("time", mode="before")
    @classmethod
    def _times(cls, value: object) -> object:
        return {} if value is None else value

    @property
    def started_at(self) -> datetime | None:
        """When it began, by the batch system's clock."""
        return _moment(self.time.start)

    @property
    def expected_at(self) -> datetime | None:
        """When it should begin, or reach its time limit, by the batch system's clock and guess."""
        if "PENDING" in self.status.state.upper():
            return self.started_at
        start, limit = self.time.start, self.time.limit
        return _moment(start + limit) if start and limit else None

    @property
    def ended_at(self) -> datetime | None:
        """When it ended, by the batch system's clock."""
        return _moment(self.time.end)


def _moment(seconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(seconds, timezone.utc) if seconds else None


class FileSystem(_Answer):
    """One file system that the server shows of a system."""

    path: str


class Scheduler(_Answer):
    """A system's batch system, and how the server talks to it."""

    type: str = "slurm"
    connection_mode: str | None = "ssh"


class ServiceHealth(_Answer):
    """What the server's last look at one service of a system found."""

    service_type: str = ""
    healthy: bool | None = None
    message: str | None = None


class System(_Answer):
    """One system behind the server."""

    name: str
    scheduler: Scheduler = Scheduler()
    file_systems: Sequence[FileSystem] = ()
    services_health: Sequence[ServiceHealth] = ()
    data_operation: dict[str, Any] = Field(default_factory=dict)

    @field_validator("file_systems", "services_health", mode="before")
    @classmethod
    def _some(cls, value: object) -> object:
        return value or ()

    @field_validator("data_operation", mode="before")
    @classmethod
    def _object(cls, value: object) -> object:
        return value if isinstance(value, dict) else {}

    @property
    def reads_directives(self) -> bool:
        """Whether `#SBATCH` lines count: over ssh `sbatch` reads them, Slurm's REST API does not."""
        return self.scheduler.connection_mode in ("ssh", None)

    @property
    def largest_upload(self) -> int:
        """Bytes of a file that the server takes and gives in one request."""
        told = self.data_operation.get("max_ops_file_size")
        return told if isinstance(told, int) and told > 0 else 5 * 2**20

    def holds(self, path: str) -> bool:
        """Whether a path is in one of the file systems, as far as they are told."""
        roots = [item.path.rstrip("/") for item in self.file_systems]
        return not roots or any(path == root or path.startswith(f"{root}/") for root in roots)


class FileEntry(_Answer):
    """One line of a listing. Sizes come as text; times bear no zone."""

    name: str
    type: str = "-"
    size: str = "0"

    @property
    def is_directory(self) -> bool:
        """Whether it is one."""
        return self.type == "d"

    @property
    def bytes(self) -> int:
        """Size in bytes; 0 for a directory."""
        return int(self.size) if self.size.isdigit() and not self.is_directory else 0
