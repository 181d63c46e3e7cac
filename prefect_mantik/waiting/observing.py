"""What a wait shows to those who look on: a card of progress, logs that are followed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from prefect_mantik.runs import RunHandle, RunStatus
from prefect_mantik.sites.base import Site


class Observed(NamedTuple):
    """One run of a wait.

    Attributes:
        site: Where it is.
        status: What was told of it last; None before it was asked.
    """

    site: Site
    status: RunStatus | None


class Observer(Protocol):
    """Looks on while a wait goes on. It never holds the wait up: what goes wrong here is said once, and tried again."""

    async def look(self, runs: Mapping[RunHandle, Observed]) -> None:
        """Called after runs were asked, never while an earlier call is under way: with what is known by then."""
        ...

    async def close(self, runs: Mapping[RunHandle, Observed]) -> None:
        """Called once, when the wait is over, well or not; a deadline of half a minute is set around it."""
        ...
