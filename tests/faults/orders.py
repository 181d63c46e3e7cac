"""What a victim is told to do, and what it leaves: plain data in a directory that its murderer reads too."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Phase = Literal["submit", "wait", "gather", "cancel"]
ORDER, REQUESTS, PHASE, HANDLE, OUTCOME = "order.json", "requests.jsonl", "phase", "handle.json", "outcome.json"
AT_STRIKE, GO_ON, READY, HOURS = "at-strike", "go-on", "ready", "hours"


@dataclass(frozen=True, kw_only=True)
class Strike:
    """At which request something happens to the victim.

    Attributes:
        method: Of the request.
        route: Of the request, as `steps.route_of` words it.
        nth: Which of those requests, from 1; counted within the phase.
        phase: In which phase.
        after: When its answer came, but before it is processed; else before it is sent.
        action: kill: SIGKILL. pause: say so, and stand still until told to go on.
    """

    method: str
    route: str
    nth: int = 1
    phase: Phase = "submit"
    after: bool = False
    action: Literal["kill", "pause"] = "kill"


@dataclass(frozen=True, kw_only=True)
class Order:
    """One try of a run.

    Attributes:
        job: Name of the saved training job.
        key: The run's key, as JSON.
        directory: Where the victim leaves what it has to say.
        gate: The file for which the training waits.
        verbs: run: submit, wait, gather. cancel: of `handle`.
        handle: For `cancel`, as JSON.
        if_ended: As for `Site.submit`.
        settle: Instead of that of the block.
        silence_limit: Instead of that of the block.
        first_minutes: Instead of `sites.base.FIRST_MINUTES`.
        patience: Instead of `turns.PATIENCE`: a killed victim's slot comes back after a minute only.
        clock: Seconds by which the victim's clock is ahead.
        hours: Whether the wait runs in virtual time.
        file_size: Bytes that a file may have, while code is packed.
        barrier: Whether to say "ready" and wait to be told to go on, before the submit.
        timeout: Seconds for the wait.
        strike: When something happens.
    """

    job: str
    key: dict[str, Any]
    directory: str
    gate: str
    verb: Literal["run", "cancel"] = "run"
    handle: dict[str, Any] | None = None
    if_ended: Literal["raise", "resubmit"] = "raise"
    settle: float | None = None
    silence_limit: float | None = None
    first_minutes: float | None = None
    patience: float | None = 1.0
    clock: float = 0.0
    hours: bool = False
    file_size: int | None = None
    barrier: bool = False
    timeout: float = 45.0
    strike: Strike | None = None

    def write(self) -> Path:
        """Write the order into its directory."""
        path = Path(self.directory) / ORDER
        path.write_text(json.dumps(dataclasses.asdict(self)))
        return path


def read_order(path: Path) -> Order:
    """The order that `Order.write` wrote."""
    fields = json.loads(path.read_text())
    strike = fields.pop("strike")
    return Order(**fields, strike=Strike(**strike) if strike else None)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request of a victim.

    Attributes:
        phase: What the victim was at.
        method: Of the request.
        route: As `steps.route_of` words it.
        nth: Which of its kind in the phase.
        status: Of the answer; 0: no answer (yet).
        sent: When, by the clock of all processes (CLOCK_MONOTONIC).
        answered: When the answer came.
        retry_after: What the answer told to wait.
    """

    phase: str
    method: str
    route: str
    nth: int
    status: int = 0
    sent: float = 0.0
    answered: float = 0.0
    retry_after: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a try ended.

    Attributes:
        state: Of the run, and
        reason: why, where it came to an end.
        metrics: What was gathered.
        error: The error's class, where it failed.
        message: Its words.
        in_phase: What it was at.
        ours: Whether the error is one of the package's own.
    """

    state: str = ""
    reason: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    error: str = ""
    message: str = ""
    in_phase: str = ""
    ours: bool = False

    def __str__(self) -> str:
        if self.error:
            return f"{self.error} in {self.in_phase}: {self.message}"
        return f"{self.state}{f' ({self.reason})' if self.reason else ''}, metrics {self.metrics}"
