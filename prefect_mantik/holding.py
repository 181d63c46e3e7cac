"""Holding the process until runs ended, and what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Literal

from prefect.exceptions import Abort

from prefect_mantik.errors import ConfigurationError, MantikError, SiteSilent, WaitTimeout
from prefect_mantik.log import run_logger, without_tokens
from prefect_mantik.loop import acall, call
from prefect_mantik.noticing import end_runs_if_cancelled, unless_cancelled
from prefect_mantik.runs import RunHandle, RunResult, RunState, RunStatus
from prefect_mantik.sites.base import Site
from prefect_mantik.sites.opening import site_of

if TYPE_CHECKING:
    from prefect_mantik.waiting.observing import Observer

OnTimeout = Literal["leave", "cancel"]
"""What becomes of jobs when the caller's own timeout passes."""

LOGS_WITHIN = 60.0
"""Seconds for the logs of all failed runs of a wait."""

_LOGS_AT_ONCE = 8

LOG_TAIL = 2_000
"""Characters of a failed run's log that its result shows."""


def hold(handles: list[RunHandle], *, timeout: float | None, on_timeout: OnTimeout) -> list[RunResult]:
    """Block until runs ended, and return their results in the order given.

    A flow that is cancelled while it blocks here ends its runs before it goes.
    """
    try:
        return call(_wait, handles, timeout, on_timeout)
    except (Exception, Abort):  # what went wrong; or a cancel that the wait itself noticed
        raise
    except BaseException:
        call(end_runs_if_cancelled, handles)
        raise


async def ahold(handles: list[RunHandle], *, timeout: float | None, on_timeout: OnTimeout) -> list[RunResult]:
    """As `hold`, awaited."""
    try:
        return await acall(_wait, handles, timeout, on_timeout)
    except (Exception, Abort):  # what went wrong; or a cancel that the wait itself noticed
        raise
    except BaseException:
        call(end_runs_if_cancelled, handles)  # blocking: who cancels the caller may cancel whatever it awaits next, too
        raise


async def _wait(handles: list[RunHandle], timeout: float | None, on_timeout: OnTimeout) -> list[RunResult]:
    if on_timeout not in ("leave", "cancel"):
        raise ConfigurationError(f'on_timeout is "leave" or "cancel", not {on_timeout!r}')
    opened: dict[str, Site] = {}
    sites: dict[RunHandle, Site] = {}
    for handle in handles:
        if handle.site not in opened:
            sites[handle] = await site_of(handle)
            if handle.site:
                opened[handle.site] = sites[handle]
        else:
            sites[handle] = opened[handle.site]
    try:
        statuses = await unless_cancelled(_until_ended(sites, timeout), handles)
    except SiteSilent:
        raise
    except WaitTimeout as error:
        if on_timeout == "leave":
            raise WaitTimeout(f"{error} They were left alone: wait again, or cancel them.", error.handles) from None
        raise WaitTimeout(f"{error} {await _cancel_late(error.handles)}", error.handles) from None
    return await _with_logs([(sites[handle], handle, statuses[handle]) for handle in handles])


async def _with_logs(ended: Sequence[tuple[Site, RunHandle, RunStatus]]) -> list[RunResult]:
    """The results. A site that is away must not keep them from the flow: then they come without logs."""
    turn, until = asyncio.Semaphore(_LOGS_AT_ONCE), monotonic() + LOGS_WITHIN

    async def one(site: Site, handle: RunHandle, status: RunStatus) -> RunResult:
        async with turn:
            try:
                return await asyncio.wait_for(with_log(site, handle, status), max(0.1, until - monotonic()))
            except (asyncio.TimeoutError, TimeoutError):
                return RunResult(handle=handle, status=status)

    return await asyncio.gather(*(one(*each) for each in ended))


async def _until_ended(sites: Mapping[RunHandle, Site], timeout: float | None) -> dict[RunHandle, RunStatus]:
    """Wait, with whom the settings let look on."""
    from prefect_mantik.log_artifacts import publish_log
    from prefect_mantik.progress import progress_card
    from prefect_mantik.waiting.following import log_follower
    from prefect_mantik.waiting.settings import settings
    from prefect_mantik.waiting.waits import wait_until_ended

    told = settings()
    observers: list[Observer] = []
    if told.follow_logs or told.log_directory:
        observers.append(log_follower(directory=told.log_directory, publish=publish_log, shows=told.follow_logs))
    if told.progress and (card := progress_card()):
        observers.append(card)
    return await wait_until_ended(sites, reopen=site_of, timeout=timeout, observers=observers)


async def _cancel_late(handles: Sequence[RunHandle]) -> str:
    """Cancel runs that took too long, and say what became of them."""
    outcomes = await asyncio.gather(*(_cancel(handle) for handle in handles), return_exceptions=True)
    live = [
        f"{handle.describe()}: {outcome}"
        for handle, outcome in zip(handles, outcomes, strict=True)
        if isinstance(outcome, Exception)
    ]
    return "They were cancelled." if not live else f"Not all were cancelled. May be live: {'; '.join(live)}"


async def _cancel(handle: RunHandle) -> None:
    await (await site_of(handle)).cancel(handle)


async def with_log(site: Site, handle: RunHandle, ended: RunStatus) -> RunResult:
    """A result, with the end of the log where the run failed and the site shows one."""
    if ended.state is RunState.FINISHED:
        return RunResult(handle=handle, status=ended)
    try:
        data, end = await site.read_log(handle, -4 * LOG_TAIL)
    except MantikError as error:
        run_logger().debug("The result of %s comes without its log: %s", handle.describe(), error)
        data, end = b"", 0
    text = without_tokens(data.decode(errors="replace"), is_cut=end > len(data))
    return RunResult(handle=handle, status=ended, log_tail=text[-LOG_TAIL:].strip())
