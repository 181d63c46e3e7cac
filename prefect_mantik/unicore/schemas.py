"""What a UNICORE server answers, as far as we read it. Unknown fields are let through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.alias_generators import to_camel

ANONYMOUS = "anonymous"
"""Role of whom the server does not know: it is answered, and sees no jobs."""


class _Answer(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="ignore",
        coerce_numbers_to_str=True,  # versions differ in which of the two they send
    )


def _moment(value: object) -> object:
    """A time: its offset comes without a colon, `+0200`. What is none, such as `N/A`, is left out."""
    if not isinstance(value, str):
        return value
    try:
        return datetime.strptime(value, "%Y-%m-%dT%H:%M:%S%z")
    except ValueError:
        return None


class JobProperties(_Answer):
    """Of one job. Every field may be missing: we ask for some of them only."""

    status: str = ""
    status_message: str = ""
    exit_code: int | None = None
    name: str = ""
    tags: Sequence[str] = ()
    queue: str = ""
    batch_system_id: str = Field(default="", alias="batchSystemID")
    submission_time: datetime | None = None
    current_time: datetime | None = None
    consumed_time: Mapping[str, str] = Field(default_factory=dict)
    log: Sequence[str] = ()

    @field_validator("tags", "log", mode="before")
    @classmethod
    def _some(cls, value: object) -> object:
        return value or ()

    @field_validator("exit_code", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        """The server sends texts, the documentation says numbers."""
        return value if str(value).lstrip("-").isdigit() else None

    @field_validator("submission_time", "current_time", mode="before")
    @classmethod
    def _moment(cls, value: object) -> object:
        return _moment(value)

    def seconds(self, phase: str) -> float | None:
        """How long a phase of the job took (`queued`, `main`, …), where the server tells."""
        text = str(self.consumed_time.get(phase, ""))
        return float(text) if text.replace(".", "", 1).isdigit() else None


class FileProperties(_Answer):
    """Of one file or directory; of a directory with its content."""

    is_directory: bool = False
    size: int = 0
    permissions: str = ""
    last_accessed: datetime | None = None
    content: Mapping[str, FileProperties] = Field(default_factory=dict)

    @field_validator("last_accessed", mode="before")
    @classmethod
    def _moment(cls, value: object) -> object:
        return _moment(value)


class SiteProperties(_Answer):
    """Of the site itself: who we are there, and whether it takes jobs."""

    client: Mapping[str, Any] = Field(default_factory=dict)
    server: Mapping[str, Any] = Field(default_factory=dict)

    @property
    def is_anonymous(self) -> bool:
        """Whether the server does not know who asks, or has no account for them."""
        role = self.client.get("role") or {}
        return role.get("selected", ANONYMOUS) == ANONYMOUS or not self.client.get("xlogin")

    @property
    def uid(self) -> str:
        """The account at the site."""
        return str((self.client.get("xlogin") or {}).get("UID", ""))

    @property
    def dn(self) -> str:
        """How the server calls the user."""
        return str(self.client.get("dn", ""))

    @property
    def queues(self) -> list[str]:
        """Queues that the user may use, where the server tells."""
        return list((self.client.get("queues") or {}).get("availableQueues", []))

    @property
    def closed(self) -> str | None:
        """Why the site takes no jobs; None where it does."""
        submission = self.server.get("jobSubmission") or {}
        return None if submission.get("enabled", True) else str(submission.get("message") or "no reason given")
