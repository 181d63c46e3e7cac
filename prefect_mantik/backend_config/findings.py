"""What a check of a user's file found: where, what, and whether it can be used all the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "advice"]


@dataclass(frozen=True)
class ConfigFinding:
    """One thing that is wrong with a file, or worth a word. Never holds a value that may be a secret.

    Attributes:
        path: Where in the document, as in `Resources.Queue`; empty for the document as a whole.
        message: The rest of a sentence that begins with the path.
        line: Line of the file, from 1; None where there is no file, or the finding has no line.
        severity: "error": cannot be used. "advice": can be used, and is probably not what was meant.
    """

    path: str
    message: str
    line: int | None = None
    severity: Severity = "error"

    def describe(self) -> str:
        """The finding as a sentence, with the line where there is one."""
        line = f"line {self.line}: " if self.line else ""
        return f"{line}{self.path or 'The config'} {self.message}"


def errors_in(findings: Iterable[ConfigFinding]) -> list[str]:
    """The sentences of the findings that are errors."""
    return [finding.describe() for finding in findings if finding.severity == "error"]


def below(path: str, key: object) -> str:
    """The path of a key below a path."""
    return f"{path}.{key}" if path else str(key)
