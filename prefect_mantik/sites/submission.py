"""How a run is submitted, the same at every kind of site: at most one live job under a key, never silently none.

1. Look. A job under the key is the answer.
2. Announce the submit in the ledger. A later try that finds an announcement and no job knows: one may be on its way.
3. POST. What the site answers goes into the ledger too: a job that it took is never submitted again, only looked for.
4. An answer that leaves open whether the site took the job is followed by looks. The POST is made again only when the
   absence of a job is proved by `settle` seconds of clean looks.
5. Look again, to find the job under its own id and to see whether somebody else submitted the same key. Complete it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefect_mantik.errors import (
    ConfigurationError,
    DuplicateJobs,
    KeyInUse,
    LoginRefused,
    RequestFailed,
    RunEnded,
    ServiceUnavailable,
    SubmitRefused,
    SubmitUnknown,
)
from prefect_mantik.log import run_logger
from prefect_mantik.loop import per_process
from prefect_mantik.runs import MAX_ATTEMPT, IfEnded, Reason, RunHandle, RunKey, RunSpec, RunState, RunStatus
from prefect_mantik.sites import notes

if TYPE_CHECKING:
    from prefect_mantik.sites.base import Site
    from prefect_mantik.sites.notes import Ledger, SubmitNote

MAX_POSTS = 3
"""POSTs of one submit, each after proof that the one before left no job."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
_STEP_BACK = 0.5, 3.0
_TIDY_TIMEOUT = 15.0
_PATIENCE = 5
"""Looks that keep failing are given up after this many times `settle`."""


class TraceFound(Exception):
    """While a submit was prepared, the site showed a trace of a job that its lists do not show any more.

    `Site.find` gives that job from then on. Not an error: the engine looks again and decides by what it finds.
    """


async def submit(
    site: Site, spec: RunSpec, key: RunKey, *, ledger: Ledger, if_ended: IfEnded, shared: bool
) -> RunHandle:
    """Submit a run at a site by the rules above. See `Site.submit`."""
    async with _turn(key.site_key), ledger.turn(key):
        while True:
            try:
                return await _submit(site, spec, key, ledger, if_ended, shared)
            except notes.Contended:
                run_logger().info("Somebody else submits '%s' at the same time: looking for their job.", key.name)
                await asyncio.sleep(random.uniform(*_STEP_BACK))  # noqa: S311  # not both at the same time again


async def _submit(site: Site, spec: RunSpec, key: RunKey, ledger: Ledger, if_ended: IfEnded, shared: bool) -> RunHandle:
    # The ledger first: who closes an announcement between the two has a job that the look then finds.
    note, way = await ledger.look_up(key)
    if note:
        notes.refuse_foreign(note, key, spec, site, way, shared)
    found = await site.find(key)
    if note and note.pending and all(handle.attempt < note.attempt for handle in found):
        late = await _look_for_announced(site, key, note)
        if not late and (await ledger.look_up(key))[0] != note:
            raise notes.Contended  # whoever announced it lives, and may have heard of its job meanwhile
        found = [*late, *found]
    while True:
        try:
            existing, attempt = await _decide(site, spec, key, note, found, if_ended, shared)
            if existing:
                handle = await site.complete(spec, existing, _receipt_of(note, existing))
            else:
                made = notes.note_of(spec, key, attempt, site, way)
                await ledger.open(key, made)
                handle = await _post_and_find(site, spec, key, made, note, ledger)
            break
        except TraceFound:
            await ledger.take_back(key, note)
            found = await _traced(site, key, found)
    made_here = existing is None or (note is not None and note.pending and note.attempt == handle.attempt)
    await ledger.close(key, handle.remote_id if made_here else None)
    if existing is None:
        run_logger().info("Submitted %s, %s%s", handle.describe(), site.road, _see(handle))
    return handle


def _receipt_of(note: SubmitNote | None, handle: RunHandle) -> str | None:
    return note.receipt if note and note.pending and note.attempt == handle.attempt else None


@per_process
def _turn(site_key: str) -> asyncio.Lock:
    """Submitters of one key in one process go one after another."""
    return asyncio.Lock()


async def _look_for_announced(site: Site, key: RunKey, announced: SubmitNote) -> list[RunHandle]:
    run_logger().warning(
        "An earlier try to submit '%s' to %s left no record. Looking for its job for %.0f s before submitting.",
        key.name,
        site.name,
        site.settle,
    )
    found = await _look_until_settled(site, key, announced.attempt)
    if not found and announced.receipt:
        raise SubmitUnknown(
            f"{site.name} took the run under key '{key.name}' earlier, as {announced.receipt}, and does not show it. "
            "It may be live, so nothing was submitted. Look for it there by that id. Submit again under the same key "
            "when it shows; use another key when you are sure that it does not exist."
        )
    return found


async def _traced(site: Site, key: RunKey, before: Sequence[RunHandle]) -> list[RunHandle]:
    """What the site shows after it found a trace of a job: more than before, or we would go on for ever."""
    found = await site.find(key)
    if len(found) <= len(before):
        raise SubmitUnknown(
            f"{site.name} keeps a trace of a job under key '{key.name}' and does not show the job, so nothing was "
            "submitted. Look there; use another key when you are sure that no job is live."
        )
    return found


async def _decide(
    site: Site,
    spec: RunSpec,
    key: RunKey,
    note: SubmitNote | None,
    found: Sequence[RunHandle],
    if_ended: IfEnded,
    shared: bool,
) -> tuple[RunHandle | None, int]:
    """The run to take as it is, or the number of the attempt to make."""
    if not found:
        return None, 1
    statuses, live = await _live(site, key, found)
    done = [handle for handle in found if statuses[handle].state is RunState.FINISHED]
    latest = max(found, key=lambda handle: handle.attempt)
    if live or done:
        taken = (done or live)[0]
        notes.refuse_other_description(note, key, spec, taken, shared)
        if done and live:
            await _end_leftovers(site, key, taken, live)
        _say_found(taken, statuses[taken])
        return taken, taken.attempt
    ended = statuses[latest]
    await _tidy(site, {latest: ended})
    if if_ended == "raise" or ended.reason is Reason.CANCELLED_BY_US:
        raise RunEnded(_ended(latest, ended))
    if latest.attempt >= MAX_ATTEMPT:
        raise SubmitRefused(f"{latest.describe()} has no attempts left. Use another key.")
    run_logger().info("%s is %s: making attempt %d.", latest.describe(), ended.describe(), latest.attempt + 1)
    return None, latest.attempt + 1


async def _tidy(site: Site, ended: dict[RunHandle, RunStatus]) -> None:
    """Close the books of a job whose end nobody was there to see, such as its MLflow run. A help: never raises."""
    try:
        await asyncio.wait_for(site.tend(ended), _TIDY_TIMEOUT)
    except Exception as error:  # noqa: BLE001  # what was asked for is a submit
        run_logger().debug("The end of a job was not tended: %s", error)


async def _post_and_find(
    site: Site, spec: RunSpec, key: RunKey, note: SubmitNote, before: SubmitNote | None, ledger: Ledger
) -> RunHandle:
    attempt = note.attempt
    for number in range(1, MAX_POSTS + 1):
        try:
            receipt = await _post(site, spec, key, attempt)
        except (SubmitRefused, KeyInUse, ConfigurationError) as error:
            if number == 1:
                await ledger.take_back(key, before)
                raise
            raise SubmitUnknown(
                f"{error} An earlier submit under this key got no usable answer, and shows no job so far. Submit again "
                "under the same key: that looks first."
            ) from error
        if receipt:
            await ledger.accepted(key, note.model_copy(update={"receipt": receipt}))
        found = await _look_until_settled(site, key, attempt)
        if found and number > 1:
            # The POST before this one may have been served late after all: its job would show by now.
            await asyncio.sleep(site.settle)
            found = await _look_until_settled(site, key, attempt)
        if found:
            handle = await _only_one(site, key, found)
            return await site.complete(spec, handle, receipt if number == len(found) == 1 else None)
        if receipt:
            remembered = "" if ledger.remembers else " Nothing remembers this outside a flow run: look before you do."
            raise SubmitUnknown(
                f"{site.name} took the run under key '{key.name}', as {receipt}, but does not show it after "
                f"{site.settle:.0f} s. It is probably live. Submit again under the same key: that looks for it, and "
                f"does not submit another.{remembered}"
            )
        run_logger().warning(
            "%s shows no job under key '%s' after %.0f s (POST %d of %d).",
            site.name,
            key.name,
            site.settle,
            number,
            MAX_POSTS,
        )
    raise SubmitUnknown(
        f"{site.name} gave no usable answer to {MAX_POSTS} submits under key '{key.name}', and shows no job. "
        "Submit again under the same key when it answers: that looks first."
    )


async def _post(site: Site, spec: RunSpec, key: RunKey, attempt: int) -> str | None:
    """Send the job. Return what the site calls it, or None where it is not known whether the site took it."""
    try:
        return await site.post(spec, key, attempt)
    except ServiceUnavailable as error:
        if not error.sent:
            raise SubmitRefused(f"Nothing was submitted for key '{key.name}' at {site.name}. {error}") from error
        run_logger().warning("%s Looking whether '%s' was submitted all the same.", error, key.name)
        return None
    except RequestFailed as error:
        raise SubmitRefused(f"{site.name} refused the run under key '{key.name}'. {error}") from error


async def _look_until_settled(site: Site, key: RunKey, attempt: int) -> list[RunHandle]:
    """Look until jobs of an attempt (or a later one) show, or until clean looks for `settle` seconds prove absence.

    Raises:
        SubmitUnknown: The site cannot be asked.
    """
    began = time.monotonic()
    clean_since: float | None = None
    pause = _FIRST_PAUSE
    while True:
        try:
            found = [handle for handle in await site.find(key) if handle.attempt >= attempt]
        except RequestFailed as error:
            clean_since = None
            if isinstance(error, LoginRefused) or time.monotonic() - began > _PATIENCE * site.settle:
                raise SubmitUnknown(
                    f"Whether {site.name} has a job under key '{key.name}' is not known: it cannot be asked. {error} "
                    "Submit again under the same key when it answers: that looks first."
                ) from error
        else:
            if found:
                return found
            clean_since = clean_since or time.monotonic()
            if time.monotonic() - clean_since >= site.settle:
                return []
        await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311  # jitter
        pause = min(pause * 1.5, _LONGEST_PAUSE)


async def _only_one(site: Site, key: RunKey, found: Sequence[RunHandle]) -> RunHandle:
    """The job that we made, unless somebody else made one under the same key, at the same time or while we stood still.

    A process may be stopped between its look and its POST (a laptop that sleeps), and the run be finished meanwhile.
    """
    if len(found) == 1:
        return found[0]
    statuses, live = await _live(site, key, found)
    done = [handle for handle in found if statuses[handle].state is RunState.FINISHED]
    if done and live:
        await _end_leftovers(site, key, done[0], live)
    return (done or live or list(found))[0]


async def _live(
    site: Site, key: RunKey, found: Sequence[RunHandle]
) -> tuple[dict[RunHandle, RunStatus], list[RunHandle]]:
    """The statuses of all jobs under a key, and those that have not ended: at most one."""
    statuses = await site.poll(found)
    live = [handle for handle in found if not statuses[handle].state.is_end]
    if len(live) > 1:
        unknown = next((status for status in statuses.values() if status.state is RunState.UNKNOWN), None)
        if unknown:
            raise SubmitUnknown(
                f"{site.name} has {len(found)} jobs under key '{key.name}' and cannot be asked which of them is live. "
                f"{unknown.site_word} Submit again under the same key when it answers."
            )
        if not site.ends_duplicates:
            raise _duplicates(site, key, live)
        live = [await _end_duplicates(site, key, live)]
    return statuses, live


async def _end_leftovers(site: Site, key: RunKey, done: RunHandle, live: Sequence[RunHandle]) -> None:
    """A key whose run finished needs no other job: one that is live is left from a submit that was cut short."""
    for handle in live:
        what = "it is cancelled" if site.ends_duplicates else "it was left alone: cancel it if it is not wanted"
        run_logger().error(
            "%s finished, and another job of key '%s' is live, %s: %s%s",
            done.describe(),
            key.name,
            handle.remote_id,
            what,
            _see(handle),
        )
        if site.ends_duplicates:
            await site.cancel(handle)


async def _end_duplicates(site: Site, key: RunKey, live: Sequence[RunHandle]) -> RunHandle:
    """Keep the oldest job and cancel the others: whoever sees two decides alike, by the site's own clock and ids."""
    oldest, *younger = sorted(live, key=site.seniority)
    for handle in younger:
        run_logger().error(
            "%s had another live job under key '%s': %s is cancelled, %s stays%s",
            site.name,
            key.name,
            handle.remote_id,
            oldest.remote_id,
            _see(oldest),
        )
        await site.cancel(handle)
    return oldest


def _duplicates(site: Site, key: RunKey, live: Sequence[RunHandle]) -> DuplicateJobs:
    listed = "; ".join(f"attempt {handle.attempt}, {handle.remote_id}{_see(handle)}" for handle in live)
    return DuplicateJobs(
        f"{site.name} shows {len(live)} live jobs under key '{key.name}': {listed}. Nothing was cancelled: "
        "cancel all but one, then submit again under the same key."
    )


def _ended(handle: RunHandle, status: RunStatus) -> str:
    what_to_do = (
        "It was cancelled by us, so it is not submitted again: use another key."
        if status.reason is Reason.CANCELLED_BY_US
        else 'Pass if_ended="resubmit" to try again under the same key.'
    )
    return f"{handle.describe()} is {status.describe()}{_see(handle)}. {what_to_do}"


def _say_found(handle: RunHandle, status: RunStatus) -> None:
    run_logger().info("Found %s, %s: not submitted again%s", handle.describe(), status.describe(), _see(handle))


def _see(handle: RunHandle) -> str:
    link = next(iter(handle.links.values()), "")
    return f", see {link}" if link else ""
