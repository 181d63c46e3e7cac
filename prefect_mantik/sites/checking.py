"""What checks of sites have in common: steps that are tried one after another, each with its word."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from prefect_mantik.credentials import MantikProject
from prefect_mantik.errors import MantikError
from prefect_mantik.sites.base import Finding

Step = Callable[[], Awaitable[str]]
"""Does something, and says what came out; raises what says why not."""


async def tried(first: tuple[str, Step], others: Mapping[str, Step]) -> list[Finding]:
    """Try steps one after another.

    Args:
        first: What it is called, and the step without which the others make no sense.
        others: All others, by what they are called.
    """
    begun = await _tried(*first)
    return [begun, *[await _tried(what, step) for what, step in others.items()]] if begun.ok else [begun]


async def _tried(what: str, step: Step) -> Finding:
    try:
        return Finding(what=what, ok=True, message=await step())
    except MantikError as error:
        return Finding(what=what, ok=False, message=str(error))


async def reach_tracking(project: MantikProject) -> str:
    """Ask a project's tracking server for something."""
    credentials = project.credentials
    await credentials.tracking_client().experiment_ids()
    return credentials.tracking_uri
