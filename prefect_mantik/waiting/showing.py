"""How lines of jobs' logs get into the flow run's log: each with its run and site, and not too many."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from time import monotonic

from prefect_mantik.log import run_logger
from prefect_mantik.runs import RunHandle
from prefect_mantik.waiting.plain_lines import plain

LINES_A_MINUTE = 600
"""Lines of all runs of a wait: Prefect keeps each as a row of its database."""

LINES_A_ROUND = 100
CHARACTERS_A_ROUND = 32 * 2**10
"""Of one run, each time it is read."""

FEWEST = 5
"""Lines of one run in a round, however many runs there are, while the minute has room."""

LONGEST_LINE = 2000
"""Characters of one line."""

_MINUTE = 60.0


def prefix(handle: RunHandle) -> str:
    """What each line of a run begins with."""
    attempt = f" (attempt {handle.attempt})" if handle.attempt > 1 else ""
    return plain(f"{handle.name}{attempt} at {handle.site_name}")


class Latest:
    """The last lines that came in a round, and how many came before them."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=LINES_A_ROUND)
        self.left_out = 0

    def add(self, lines: Iterable[str]) -> None:
        """Take more lines. Blank ones are not shown."""
        for line in lines:
            if line.strip():
                self.left_out += len(self.lines) == LINES_A_ROUND
                self.lines.append(line)

    def shorten(self, most: int) -> None:
        """Leave out the older ones."""
        characters = sum(min(len(line), LONGEST_LINE) for line in self.lines)
        while self.lines and (len(self.lines) > most or characters > CHARACTERS_A_ROUND):
            characters -= min(len(self.lines.popleft()), LONGEST_LINE)
            self.left_out += 1


class Screen:
    """Shows lines, as many as a minute has room for."""

    def __init__(self) -> None:
        self._room, self._at = float(LINES_A_MINUTE), monotonic()
        self._unsaid, self._unsaid_at = 0, monotonic() - _MINUTE

    def show(self, handle: RunHandle, latest: Latest, runs: int, where: str) -> None:
        """Show what is new of a run.

        Args:
            handle: Which run.
            latest: What is new.
            runs: How many runs share the minute.
            where: What has the lines that are left out.
        """
        if not latest.lines:
            return
        room = self._refilled()
        latest.shorten(min(LINES_A_ROUND, max(FEWEST, LINES_A_MINUTE // max(1, runs)), room))
        if not latest.lines:
            self._unsaid += latest.left_out
            return
        logger, run = run_logger(), prefix(handle)
        if latest.left_out:
            logger.info("%s | [%d lines are left out here: %s]", run, latest.left_out, where)
        for line in latest.lines:
            logger.info("%s | %s", run, _shortened(line))
        self._room -= len(latest.lines) + bool(latest.left_out)

    def end_round(self, *, at_once: bool = False) -> None:
        """Say, once a minute, how much was not shown because there was too much of it."""
        now = monotonic()
        if self._unsaid and (at_once or now - self._unsaid_at >= _MINUTE):
            run_logger().info(
                "%d lines of the training runs' logs are left out here: at most %d a minute are shown.",
                self._unsaid,
                LINES_A_MINUTE,
            )
            self._unsaid, self._unsaid_at = 0, now

    def _refilled(self) -> int:
        now = monotonic()
        self._room = min(float(LINES_A_MINUTE), self._room + (now - self._at) * LINES_A_MINUTE / _MINUTE)
        self._at = now
        return max(0, int(self._room))


def _shortened(line: str) -> str:
    more = len(line) - LONGEST_LINE
    return line if more <= 0 else f"{line[:LONGEST_LINE]} [… {more} characters more]"
