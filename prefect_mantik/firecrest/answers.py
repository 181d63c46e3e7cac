"""What a FirecREST server's refusals mean: which are ours to mend, which go away, and which leave a submit open.

A status alone tells little: 500 is a script that Slurm does not take, a database that is down for a minute, or a job
that was taken by a command that was too slow to say so. The texts are those of a real server (version 2.5) and of
Slurm's commands.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

import httpx


class Meaning(Enum):
    """What to make of a refusal."""

    REFUSED = "the server says no, and will say so again"
    NOT_THERE = "there is no such thing"
    NO_ACCESS = "the client may not use the system"
    PASSES = "it goes away; nothing was done"
    UNCLEAR = "it may have been done"
    UNREADABLE = "the server cannot read what its batch system says"
    ENDED = "the job has ended already"
    ELSEWHERE = "no word of FirecREST's: a gateway, which says nothing of a job"


@dataclass(frozen=True)
class Said:
    """What a server said of an error.

    Attributes:
        status: HTTP status.
        text: Message and causes, on lines of their own.
        ours: Whether FirecREST itself said it, and not a gateway before it.
    """

    status: int
    text: str
    ours: bool


def said(response: httpx.Response) -> Said:
    """Read an error. FirecREST's own has a message, causes, and for a validation the fields that are wrong."""
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict) or body.get("errorType") not in ("error", "validation"):
        return Said(response.status_code, "", ours=False)
    data = body.get("data")
    fields = data.get("fields") if isinstance(data, dict) else None
    wrong = [f"{item.get('name')}: {item.get('message')}" for item in fields or () if isinstance(item, dict)]
    message = "; ".join(wrong) or str(body.get("message") or "")
    lines = [message, *map(str, body.get("causedBy") or ())]
    return Said(response.status_code, "\n".join(filter(None, lines)), ours=True)


_Rules = tuple[tuple[int, str, Meaning], ...]

_SYSTEM: _Rules = (
    (503, r"is unhealthy", Meaning.PASSES),  # the health gate: closed until its next probe, two minutes by default
    (500, r"No SSH credentials found", Meaning.NO_ACCESS),
    (404, r"^System not found", Meaning.REFUSED),
    (404, r"", Meaning.NOT_THERE),
)
# A submit may not be sent again after all that passes: the connection may have ended while `sbatch` ran.
_SUBMIT: _Rules = (
    *_SYSTEM,
    # No command was run: sshd gave no channel, the server's pool was full, nobody listened.
    (424, r"Unable to open a new SSH channel|pool capacity exceeded", Meaning.PASSES),
    (500, r"Unable to open a new SSH channel|^\[Errno 111\] Connection refused$", Meaning.PASSES),
    # The request did not reach the controller. All its other failures come after that: it may have taken the job.
    (500, r"Unable to contact slurm controller \(connect failure\)", Meaning.PASSES),
    (500, r"Unable to contact slurm controller|Message receive failure|Socket timed out", Meaning.UNCLEAR),
    (500, r"temporarily unable|Zero Bytes were transmitted", Meaning.UNCLEAR),
    (500, r"exit_status:\d+ std_err:", Meaning.REFUSED),
    (500, r'"error_number"', Meaning.REFUSED),
    (424, r"", Meaning.UNCLEAR),
    (500, r"", Meaning.UNCLEAR),
    (408, r"", Meaning.UNCLEAR),
)
_CANCEL: _Rules = (
    *_SYSTEM,
    (424, r"", Meaning.PASSES),
    (500, r"already completing or completed", Meaning.ENDED),
    (500, r"Invalid job id specified", Meaning.NOT_THERE),
    (500, r"Access/permission denied", Meaning.REFUSED),
    (500, r"", Meaning.PASSES),
)
_ASK: _Rules = (
    *_SYSTEM,
    (424, r"", Meaning.PASSES),
    (500, r"Bad job/step specified", Meaning.NOT_THERE),
    (500, r"^Error executing Slurm command\.$", Meaning.UNREADABLE),  # without a cause
    (500, r"", Meaning.PASSES),
    (408, r"", Meaning.PASSES),
)
_FILES: _Rules = (
    *_SYSTEM,
    (424, r"", Meaning.PASSES),
    (500, r"Remote process failed", Meaning.REFUSED),  # a full disk, a directory that is none
    (500, r"", Meaning.PASSES),
    (408, r"", Meaning.PASSES),
)


def meaning(method: str, path: str, told: Said) -> Meaning | None:
    """What a refusal means; None where its status says all there is to say.

    Args:
        method: Of the request.
        path: Of the request, below the API's URL.
        told: What the server said.
    """
    if not told.ours:
        return Meaning.ELSEWHERE if told.status == httpx.codes.NOT_FOUND else None
    table = _FILES
    if path.startswith("/compute/"):
        table = {"POST": _SUBMIT, "DELETE": _CANCEL}.get(method, _ASK)
    elif path.startswith("/status/"):
        table = _ASK
    return next((what for status, text, what in table if _fits(told, status, text)), None)


def _fits(told: Said, status: int, text: str) -> bool:
    return told.status == status and re.search(text, told.text) is not None
