"""What sharing asks of the poller of its process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol

from prefect_mantik.runs import RunHandle, RunStatus
from prefect_mantik.sites.base import Site

OpenSite = Callable[[RunHandle], Awaitable[Site]]
Tell = Callable[[RunStatus | Exception], None]
"""Takes what was told of a run; or why nothing ever will be."""


class Host(Protocol):
    """The poller, as seen from here."""

    def wanted(self) -> list[RunHandle]:
        """The runs that somebody in this process waits for, and that other processes can find."""
        ...

    def told(self, statuses: Mapping[RunHandle, RunStatus]) -> None:
        """Take over what another process was told."""
        ...

    def unchanged(self, handles: Iterable[RunHandle]) -> None:
        """Take over that nothing was told anew of runs by who asks for them."""
        ...

    def postpone(self, handles: Iterable[RunHandle], seconds: float) -> None:
        """Ask for runs no sooner than this, if nothing is told meanwhile; at once for 0."""
        ...

    def join_guest(self, handle: RunHandle, site: Site, tell: Tell) -> bool:
        """Ask for a run that another process waits for; False if its site is of another account."""
        ...

    def leave(self, handle: RunHandle, tell: Tell) -> None:
        """Wait no more."""
        ...
