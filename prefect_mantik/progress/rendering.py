"""The card as Markdown: a headline, counts where there are many runs, and a table of the most interesting ones."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import NamedTuple

from prefect_mantik.log import duration, without_tokens
from prefect_mantik.markdown import cell, link, number, table
from prefect_mantik.progress.logged import Logged
from prefect_mantik.runs import Reason, RunHandle, RunState, RunStatus

MOST_ROWS = 100
LARGEST = 48 * 1024
"""Bytes of Markdown. Prefect keeps the text of each update as an event for a week, so a card must not be large."""

_FEW = 10
"""Up to so many runs the headline says enough, and there is no table of counts."""
_MOST_SITES = 20
_LONGEST_NAME, _LONGEST_WORDS, _LONGEST_URL = 60, 100, 300
_OLD_NEWS = 300.0
"""Seconds after which a state is shown with its age: its site cannot be asked."""
_BELOW_THE_ROWS = 2048

_STUCK, _UNASKED = "stuck", "not asked yet"
_GROUPS = {
    RunState.FAILED: "failed",
    RunState.LOST: "lost",
    RunState.KILLED: "killed",
    _STUCK: _STUCK,
    RunState.UNKNOWN: "unknown",
    RunState.RUNNING: "running",
    RunState.SCHEDULED: "queued",
    _UNASKED: _UNASKED,
    RunState.FINISHED: "finished",
}
"""The most interesting first."""
_ORDER = list(_GROUPS.values())

_HEAD = ["run", "site", "state", "site's word", "reason", "waited", "ran", "last metric", "step"]


class Row(NamedTuple):
    """One training run on the card.

    Attributes:
        handle: Which one.
        status: What was told of it last; None before it was asked.
        waited_for: Whether a wait is open for it.
        logged: What it logged last, where that is known.
    """

    handle: RunHandle
    status: RunStatus | None
    waited_for: bool = True
    logged: Logged | None = None


def group(status: RunStatus | None) -> str:
    """The word under which a run is counted."""
    if status is None:
        return _UNASKED
    if status.reason is Reason.STUCK and not status.state.is_end:
        return _STUCK
    return _GROUPS[status.state]


def most_interesting(rows: Iterable[Row]) -> list[Row]:
    """All runs as they are shown: failed, stuck, running, queued, finished ones; of each, by site and name."""
    return sorted(
        rows,
        key=lambda row: (_ORDER.index(group(row.status)), row.handle.site_name, _natural(row.handle.name)),
    )


def render(rows: Iterable[Row], now: datetime, *, forgotten: int = 0) -> str:
    """The card as Markdown, at most `LARGEST` bytes.

    Args:
        rows: Of all runs, in any order.
        now: When it is.
        forgotten: How many runs more there were, which ended earlier.
    """
    ordered = most_interesting(rows)
    counts = Counter(group(row.status) for row in ordered)
    parts = [_headline(len(ordered), counts), _as_of(now)]
    if len(ordered) > _FEW:
        parts.append(_counts(ordered))
    shown = _that_fit(ordered[:MOST_ROWS], now, LARGEST - _BELOW_THE_ROWS - len("\n\n".join(parts).encode()))
    if shown:
        parts.append(table([_HEAD, *shown]))
    left_out = Counter(group(row.status) for row in ordered[len(shown) :])
    if left_out:
        parts.append(f"Not shown: {_listed(left_out)}.")
    if forgotten:
        parts.append(f"{forgotten} more ended earlier.")
    return "\n\n".join(parts)


def _headline(number_of_runs: int, counts: Mapping[str, int]) -> str:
    noun = "training run" if number_of_runs == 1 else "training runs"
    return f"**{number_of_runs} {noun}**{': ' if counts else ''}{_listed(counts)}."


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[word]} {word}" for word in _ORDER if counts.get(word))


def _as_of(now: datetime) -> str:
    # The UI shows an artifact as it was when the page was opened.
    return f"As of {now.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S} UTC. Reload the page to see what is new."


def _counts(rows: Sequence[Row]) -> str:
    """How many runs are in which state at which site, the sites with most runs first."""
    sites: dict[str, Counter[str]] = {}
    for row in rows:
        sites.setdefault(row.handle.site_name, Counter())[group(row.status)] += 1
    largest = sorted(sites, key=lambda name: (-sites[name].total(), name))
    lines = {cell(name, _LONGEST_NAME): sites[name] for name in largest[:_MOST_SITES]}
    if rest := largest[_MOST_SITES:]:
        lines[f"{len(rest)} other sites"] = sum((sites[name] for name in rest), Counter())
    words = [word for word in _ORDER if any(count[word] for count in lines.values())]
    body = [[name, *(str(count[word] or "-") for word in words), str(count.total())] for name, count in lines.items()]
    return table([["site", *words, "all"], *body])


def _that_fit(rows: Sequence[Row], now: datetime, room: int) -> list[list[str]]:
    """The cells of the first rows, as many as there is room for."""
    fitting = []
    for row in rows:
        cells = _cells(row, now)
        room -= len(" | ".join(cells).encode()) + len("|  |\n")
        if room < 0:
            break
        fitting.append(cells)
    return fitting


def _cells(row: Row, now: datetime) -> list[str]:
    handle, status = row.handle, row.status
    label = cell(handle.name, _LONGEST_NAME) + (f" (attempt {handle.attempt})" if handle.attempt > 1 else "")
    url = next((url for url in handle.links.values() if len(url) <= _LONGEST_URL), "")
    first = [link(label, url), cell(handle.site_name, _LONGEST_NAME)]
    if status is None:
        return [*first, _UNASKED, *["-"] * 4, *_logged(row.logged)]
    word = cell(without_tokens(status.site_word), _LONGEST_WORDS) or "-"
    return [*first, _state(row, status, now), word, _reason(status), *_times(row, status, now), *_logged(row.logged)]


def _state(row: Row, status: RunStatus, now: datetime) -> str:
    if status.state.is_end:
        return str(status.state)
    if not row.waited_for:
        return f"{status.state}, not waited for any more"
    age = (now - status.observed_at).total_seconds()
    return f"{status.state}, as told {duration(age)} ago" if age > _OLD_NEWS else str(status.state)


def _reason(status: RunStatus) -> str:
    parts = []
    if status.reason is Reason.UNTOLD:
        parts.append("not told")
    elif status.reason and not (status.reason is Reason.EXIT_CODE and status.exit_code):
        parts.append(status.reason.value.lower().replace("_", " "))
    if status.exit_code:
        parts.append(f"exit code {status.exit_code}")
    if status.message:
        parts.append(cell(without_tokens(status.message), _LONGEST_WORDS))
    return ", ".join(parts) or "-"


def _times(row: Row, status: RunStatus, now: datetime) -> tuple[str, str]:
    """How long a run waited in the queue, and how long it ran. A run that is not watched has no later time."""
    queued = status.queued_at or row.handle.submitted_at
    until = now if row.waited_for and not status.state.is_end else status.observed_at
    if status.state is RunState.SCHEDULED:  # again, perhaps: schedulers put jobs back into the queue
        return _between(queued, until), "-"
    ended = None if status.state is RunState.LOST and status.ended_at is None else status.ended_at or until
    if status.started_at:
        return _between(queued, status.started_at), _between(status.started_at, ended)
    ran = _between(queued, ended)
    return "-", ran if ran == "-" else f"{ran}, queue included"


def _between(start: datetime | None, end: datetime | None) -> str:
    return _unbroken(duration((end - start).total_seconds())) if start and end else "-"


def _logged(logged: Logged | None) -> list[str]:
    if logged is None:
        return ["-", "-"]
    metric = f"{cell(logged.metric, _LONGEST_NAME)} {number(logged.value)}" if logged.metric else "-"
    return [metric, _unbroken(logged.step) or "-"]


def _unbroken(words: str) -> str:
    """Kept in one line: the UI's page is narrow, and would set each word below the other."""
    return words.replace(" ", "\u00a0")


def _natural(name: str) -> list[tuple[int, str]]:
    """train-2 stands before train-10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d{1,18})", name)]
