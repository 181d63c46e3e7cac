"""What processes that share the polls of an account say to each other: the form of it, as events carry it."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from prefect_mantik.runs import RunHandle, RunState, RunStatus

WANTED, TOLD, LEFT = "polls.wanted", "polls.told", "polls.left"

_UNPACKED_LIMIT = 64 * 2**20

Identity = tuple[str, str, str]
"""See `RunHandle.identity`."""

Rank = tuple[float, str]
"""When a process began to wait for an account, and its id: the lowest asks."""


class Wanted(NamedTuple):
    """Which runs a process waits for.

    Attributes:
        number: Which of its words of this kind.
        runs: All of them.
    """

    number: int
    runs: frozenset[RunHandle]

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> Wanted:
        """Read it from an event."""
        return cls(int(payload["number"]), frozenset(map(RunHandle.model_validate, _unpacked(payload["runs"]))))

    def payload(self) -> dict[str, Any]:
        """Write it into an event."""
        runs = [run.model_dump(mode="json", exclude_defaults=True) for run in self.runs]
        return {"number": self.number, "runs": _packed(runs)}


class Answer(NamedTuple):
    """What a process that wants runs is answered.

    Attributes:
        number: Which of its words was heard last.
        cannot: Those of its runs that it has to ask for by itself.
    """

    number: int
    cannot: frozenset[Identity]


class Told(NamedTuple):
    """What was told of runs that other processes want.

    Attributes:
        number: Which of the speaker's words of this kind: whoever misses one asks by itself.
        answers: By the id of the process.
        statuses: What changed.
    """

    number: int
    answers: Mapping[str, Answer]
    statuses: Mapping[Identity, RunStatus]

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> Told:
        """Read it from an event."""
        answers = {
            str(id): Answer(int(number), frozenset(map(_identity, cannot)))
            for id, (number, cannot) in payload["answers"].items()
        }
        statuses = {
            _identity(identity): RunStatus.model_validate(status) for identity, status in _unpacked(payload["statuses"])
        }
        return cls(int(payload["number"]), answers, statuses)

    def payload(self) -> dict[str, Any]:
        """Write it into an event."""
        answers = {id: [answer.number, [*answer.cannot]] for id, answer in self.answers.items()}
        statuses = [
            [identity, status.model_dump(mode="json", exclude_defaults=True)]
            for identity, status in self.statuses.items()
        ]
        return {"number": self.number, "answers": answers, "statuses": _packed(statuses)}


def speaker(payload: Mapping[str, Any]) -> Rank:
    """Who said it."""
    began, id = payload["from"]
    return float(began), str(id)


def said_by(rank: Rank, payload: Mapping[str, Any]) -> dict[str, Any]:
    """Sign a word."""
    return {"from": list(rank), **payload}


def worth_a_word(before: RunStatus, now: RunStatus) -> bool:
    """Whether a change is to be told at once."""
    if before.state is RunState.UNKNOWN and now.state is RunState.UNKNOWN:
        return before.reason is not now.reason
    same = ("state", "reason", "site_word", "message", "started_at", "ended_at", "exit_code")
    return any(getattr(before, name) != getattr(now, name) for name in same)


def _identity(words: Iterable[str]) -> Identity:
    site, kind, id = words
    return site, kind, id


def _packed(document: Any) -> str:
    return base64.b85encode(zlib.compress(json.dumps(document).encode())).decode()


def _unpacked(text: str) -> Any:
    return json.loads(zlib.decompressobj().decompress(base64.b85decode(text), _UNPACKED_LIMIT))
