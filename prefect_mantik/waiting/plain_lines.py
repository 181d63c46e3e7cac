"""Bytes of a job's log become lines that can be shown and kept: plain text, whole lines, no tokens."""

from __future__ import annotations

import re

from prefect_mantik.log import without_tokens

LONGEST_HELD = 64 * 2**10
"""Bytes that are held back while a line has no end."""

# CSI, and strings for the terminal (titles, links), then what is left of escapes.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[]PX^_]|[\x90\x98\x9d-\x9f])[^\x1b\x07\x9c]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]?"
)

# Also signs that turn the direction of text round: what is shown must be what is there.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")

_SEPARATORS = re.compile(r"[\u2028\u2029]")

# What no token holds, nor a colour within one: there a line may be cut.
_CUT = re.compile(rb"[\s\"',{}()<>|=+/]")


def plain(line: str) -> str:
    """One line as plain text: without escapes and controls, the last state of a progress bar, without tokens."""
    line = _ESCAPES.sub("", line).rstrip("\r").rpartition("\r")[2]
    return without_tokens(_SEPARATORS.sub(" ", _CONTROLS.sub("", line)).rstrip())


class PlainLines:
    """Takes the bytes of a log as they come, and gives its lines. Half a line is held back until its end comes.

    Lines are told apart before they are decoded: a line feed is no part of any character of UTF-8, so that none is cut.

    Args:
        is_cut: Whether the bytes begin anywhere in a line: the first word is left out then.

    Attributes:
        held: Bytes that came and have not become a line.
    """

    def __init__(self, *, is_cut: bool = False) -> None:
        self._held, self._dropped, self._in_endless_word, self._is_cut = b"", 0, False, is_cut

    @property
    def held(self) -> int:
        """How many of the bytes that came have not become a line."""
        return len(self._held) + self._dropped

    def feed(self, data: bytes) -> list[str]:
        """Take bytes, and give the lines that are whole now."""
        *whole, last = data.split(b"\n")
        lines = [self._ended(part) for part in whole]
        self._hold(last)
        while len(self._held) > LONGEST_HELD:
            lines += self._cut()
        return [line for line in lines if line is not None]

    def finish(self) -> list[str]:
        """Give what is held back: nothing more comes."""
        line = self._ended(b"") if self._held or self._in_endless_word else None
        return [] if line is None else [line]

    def _ended(self, part: bytes) -> str | None:
        raw, self._held, self._dropped = self._held + part, b"", 0
        if self._in_endless_word:
            self._in_endless_word = False
            cut = _CUT.search(raw)
            raw = raw[cut.end() :] if cut else b""
            if not raw.strip():
                return None
        return self._text(raw)

    def _text(self, raw: bytes) -> str:
        text = raw.decode(errors="replace")
        if self._is_cut:
            self._is_cut, text = False, without_tokens(text, is_cut=True)
        return plain(text)

    def _hold(self, part: bytes) -> None:
        """Hold back the beginning of a line; of a progress bar only what may still be shown."""
        held = self._held + part
        at = held.rstrip(b"\r").rfind(b"\r") + 1
        self._held, self._dropped = held[at:], self._dropped + at

    def _cut(self) -> list[str | None]:
        """Part of a line that is too long to be held back: up to where surely no token is."""
        begin = self._held[:LONGEST_HELD]
        at = max((match.end() for match in _CUT.finditer(begin)), default=0)
        if at == 0:  # no text, and who knows what: left out up to its end
            self._dropped += len(begin)
            self._held = self._held[len(begin) :]
            said, self._in_endless_word = self._in_endless_word, True
            return [] if said else ["[a word without an end is left out here]"]
        rest, dropped = self._held[at:], self._dropped
        self._held = begin[:at]
        line = self._ended(b"")
        self._held, self._dropped = rest, dropped if line is None else 0
        return [line]
