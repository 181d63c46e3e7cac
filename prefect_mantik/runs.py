"""What a run is: its description, its key, the handle that finds it again, its state, its result.

The models are built when they are first used (`defer_build`), since every flow imports this module.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from datetime import datetime
from enum import Enum
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from prefect_mantik.errors import KeyInvalid

Scope = Literal["flow", "origin"]
IfEnded = Literal["raise", "resubmit"]
ParameterValue = str | int | float | bool | None
SiteKind = Literal["mantik", "unicore", "firecrest"]

MAX_ATTEMPT = 9_999_999
"""A job's own name is the site key, a dash and the attempt: 63 characters at most."""

ORIGIN_LENGTH = 8


class CodeRepository(BaseModel):
    """A code repository of the platform, at a branch or a commit (the commit wins, as on the platform)."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    repository_id: UUID
    branch: str | None = None
    commit: str | None = None

    @model_validator(mode="after")
    def _names_a_version(self) -> CodeRepository:
        if not (self.branch or self.commit):
            raise ValueError("a code repository needs a branch or a commit")
        return self


class GitCode(BaseModel):
    """Code in a git repository, for sites reached directly.

    Attributes:
        url: https or ssh, without credentials in it.
        ref: Branch, tag or full commit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    url: str = Field(min_length=1)
    ref: str = Field(min_length=1)


class CodeDirectory(BaseModel):
    """Code in a directory of the submitting machine, for sites reached directly. Its content is no part of the digest.

    Attributes:
        path: Of the directory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    path: str = Field(min_length=1)


class DataRepository(BaseModel):
    """A data repository of the platform, at a branch or a commit."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    repository_id: UUID
    branch: str | None = None
    commit: str | None = None


class RunSpec(BaseModel):
    """One execution of an MLproject entry point at a site, described completely.

    Two specs with the same `digest` ask for the same thing.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    entry_point: str = "main"
    parameters: Mapping[str, ParameterValue] = Field(default_factory=dict)
    mlproject_path: str = "MLproject"
    code: CodeRepository | GitCode | CodeDirectory
    data: DataRepository | None = None
    project_id: UUID
    experiment_repository_id: UUID
    backend_config: Mapping[str, Any]
    budget_account: str | None = None

    @property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON of the description, in hexadecimal.

        Without what has its default value: fields that later versions add do not change the digests of live runs.
        """
        return _sha256(self.model_dump(mode="json", exclude_defaults=True))


class RunKey(BaseModel):
    """The caller's stable name for a logical run, made unique in the world.

    Attributes:
        name: What the caller called the run.
        scope: "flow": unique in the tree of a root flow run. "origin": outlives flow runs.
        origin: Random id of the Prefect server, base32 in lower case, `ORIGIN_LENGTH` characters or more.
        root_flow_run_id: The root of the tree of flow runs; None for scope "origin".
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    name: str
    scope: Scope = "flow"
    origin: str = Field(pattern=r"^[a-z2-7]{8,}$")
    root_flow_run_id: UUID | None = None

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        return check_key_name(name)

    @model_validator(mode="after")
    def _scope_fits(self) -> RunKey:
        if (self.scope == "flow") != (self.root_flow_run_id is not None):
            raise ValueError('scope "flow" needs the root flow run, scope "origin" must not have one')
        return self

    @property
    def prefix(self) -> str:
        """What the site keys of all runs of the same root flow run (or of the same origin) begin with."""
        return site_key_prefix(self.origin, self.root_flow_run_id)

    @property
    def site_key(self) -> str:
        """The bounded form that travels to the site: 55 characters of [a-z0-9-], the same for all attempts."""
        return f"{self.prefix}-{_base32(_hash_bytes(self.name))[:16]}"

    @property
    def digest(self) -> str:
        """SHA-256 over the full key, in hexadecimal: told apart even where site keys collide."""
        return _sha256(self.model_dump(mode="json", exclude_defaults=True))

    @property
    def slug(self) -> str:
        """The name as far as it can be read in [a-z0-9-], at most 40 characters."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower())[:40].strip("-") or "run"


def check_key_name(name: str) -> str:
    """Return the name of a key as it is, or say why it cannot be one.

    Raises:
        KeyInvalid: It is no text, or empty, or only white space.
    """
    if not isinstance(name, str) or not name.strip():
        raise KeyInvalid(f"A key is a non-empty text that names the run, for example 'train-alder', not {name!r}.")
    return name


def site_key_prefix(origin: str, root_flow_run_id: UUID | None) -> str:
    """What the site keys of all runs of a root flow run begin with (None: of runs that outlive flow runs)."""
    tree = root_flow_run_id.bytes if root_flow_run_id else _hash_bytes("origin")[:16]
    return f"pm-{origin[:ORIGIN_LENGTH]}-{_base32(tree)}"


class RunState(str, Enum):
    """MLflow's words, LOST and UNKNOWN. May go backwards: schedulers requeue."""

    SCHEDULED = "SCHEDULED"
    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"
    LOST = "LOST"
    """The site says, by id and after its first minutes, that it has no such job."""
    UNKNOWN = "UNKNOWN"
    """We could not ask. Never an end."""

    @property
    def is_end(self) -> bool:
        """Whether a run stays in this state."""
        return self in _ENDS

    def __str__(self) -> str:
        return self.value


_ENDS = frozenset({RunState.FINISHED, RunState.FAILED, RunState.KILLED, RunState.LOST})


class Reason(str, Enum):
    """Why a run is in its state, as far as the site tells."""

    EXIT_CODE = "EXIT_CODE"
    TIME_LIMIT = "TIME_LIMIT"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    NODE_FAIL = "NODE_FAIL"
    PREEMPTED = "PREEMPTED"
    CANCELLED_BY_US = "CANCELLED_BY_US"
    CANCELLED_BY_OTHER = "CANCELLED_BY_OTHER"
    REFUSED = "REFUSED"
    LOST = "LOST"
    PAUSED = "PAUSED"
    STUCK = "STUCK"
    UNTOLD = "UNTOLD"
    UNREADABLE = "UNREADABLE"

    def __str__(self) -> str:
        return self.value


class RunStatus(BaseModel):
    """What a site said of a run, and when.

    Attributes:
        state: In our words.
        reason: Why, where the site tells. UNTOLD where a run ended badly and it does not, or where it answers and
            knows nothing of a run. UNREADABLE where what it tells of an unknown state cannot be read.
        site_word: The site's own word for the state.
        message: What else the site says of it.
        exit_code: Of the job, where the site tells.
        queued_at: When the site took the run.
        started_at: When the job began to run.
        ended_at: When it ended.
        observed_at: When we asked, by the clock of whoever told the other times.
        expected_at: When the site expects the next change, by the same clock: the start of a job that waits, the end
            of the time limit of one that runs.
        life_at: The newest trace that the run itself left (a metric, a start, an end).
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    state: RunState
    reason: Reason | None = None
    site_word: str = ""
    message: str = ""
    exit_code: int | None = None
    queued_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    observed_at: datetime
    expected_at: datetime | None = None
    life_at: datetime | None = None

    def describe(self) -> str:
        """One phrase for a person, such as `FAILED (exit code 3)`."""
        if self.exit_code:
            return f"{self.state} (exit code {self.exit_code})"
        if self.reason is Reason.UNTOLD:
            return f"{self.state} (the site does not tell{' why' if self.state.is_end else ''})"
        return f"{self.state} ({self.reason})" if self.reason else str(self.state)


class RunHandle(BaseModel):
    """What another process needs to find a run again from nothing. Holds no secret and no Connection ID.

    Two handles are equal when they mean the same job: same site, kind and remote id.

    Attributes:
        site: Reference of the site's block, `<block type slug>/<document name>`; None for a site that is not saved,
            whose runs can be reached from the submitting process only.
        site_name: What to call the site in logs and tables.
        kind: Which kind of site it is.
        remote_id: The site's id of the job (on the platform road the MLflow run id).
        site_key: The key as the site knows it.
        attempt: Number of the job under its key, from 1.
        name: The readable name of the key.
        key: The full key; None where only the site told of the run.
        spec_digest: First characters of the digest of the description, as the site shows them.
        account: Reference of the block of the tracking account; None if that is not saved.
        mlflow_run_id: MLflow run that the training logs to.
        mlflow_experiment_id: Its experiment.
        platform_project_id: The platform's project of the run, on the platform road.
        platform_run_id: The platform's own id of the run, where known. No part of the identity.
        submitted_at: When the site took the run, where it tells.
        links: Where to look, by name.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    site: str | None
    site_name: str
    kind: SiteKind
    remote_id: str
    site_key: str
    attempt: int = 1
    name: str
    key: RunKey | None = None
    spec_digest: str = ""
    account: str | None = None
    mlflow_run_id: str | None = None
    mlflow_experiment_id: str | None = None
    platform_project_id: UUID | None = None
    platform_run_id: UUID | None = None
    submitted_at: datetime | None = None
    links: Mapping[str, str] = Field(default_factory=dict)

    @property
    def identity(self) -> tuple[str, str, str]:
        """What makes two handles mean the same job."""
        return self.site or f"unsaved:{self.site_name}", self.kind, self.remote_id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunHandle) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    def describe(self) -> str:
        """The run in a person's words, such as `training run 'train-0' at alder`."""
        attempt = f" (attempt {self.attempt})" if self.attempt > 1 else ""
        return f"training run '{self.name}'{attempt} at {self.site_name}"


class RunResult(BaseModel):
    """How a run ended.

    Attributes:
        handle: Which run.
        status: Its last status.
        log_tail: The last lines of its log, where the site shows one.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    handle: RunHandle
    status: RunStatus
    log_tail: str = ""

    @property
    def finished(self) -> bool:
        """Whether the run ended as it should."""
        return self.status.state is RunState.FINISHED

    def describe(self) -> str:
        """One sentence for a person."""
        link = next(iter(self.handle.links.values()), "")
        tail = f"; its log ends:\n{_indented(self.log_tail)}" if self.log_tail else ""
        words = f" ({self.handle.site_name} says: {self.status.message})" if self.status.message else ""
        return f"{self.handle.describe()} is {self.status.describe()}{words}{f', see {link}' if link else ''}{tail}"


class MetricValue(BaseModel):
    """One value of a metric.

    Attributes:
        value: May be NaN or infinite: MLflow keeps those too.
        step: The step at which it was logged.
        time: When it was logged.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    value: float
    step: int
    time: datetime


class RunMetrics(BaseModel):
    """What a run logged.

    Attributes:
        handle: Which run.
        final: For each metric its value at the highest step: the last one, not the best one.
        parameters: As MLflow keeps them, as text.
        tags: MLflow tags.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    handle: RunHandle
    final: Mapping[str, MetricValue]
    parameters: Mapping[str, str] = Field(default_factory=dict)
    tags: Mapping[str, str] = Field(default_factory=dict)


def _hash_bytes(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode().rstrip("=").lower()


def _sha256(document: Any) -> str:
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
