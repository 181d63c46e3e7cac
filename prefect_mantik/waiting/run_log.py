"""The log of one run, read from its site piece by piece, and kept in a file where that is wanted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from time import monotonic
from typing import NamedTuple

from prefect_mantik.runs import RunHandle
from prefect_mantik.sites.base import Site
from prefect_mantik.waiting.kept_log import KeptLog, files
from prefect_mantik.waiting.plain_lines import PlainLines

PART = 512 * 2**10
"""Bytes that are read at once."""

READ_TIMEOUT = 60.0
"""Seconds that a site may take for one part."""

WRITE_TIMEOUT = 30.0
"""Seconds that a disk may take."""

_ANEW = "[the site began this log anew]"
_MARK = 64


class Tail(NamedTuple):
    """The end of a log.

    Attributes:
        text: As plain text.
        is_whole: Whether that is all of it.
    """

    text: str
    is_whole: bool


class RunLog:
    """What was read of a run's log so far. It is read by one at a time.

    Without a file all that is of use is new lines and the end: what lies between is left out where there is too much.

    Args:
        handle: Which run.
        kept: The file that has it up to some byte; None where none is kept.

    Attributes:
        kept: As given, until it cannot be written.
        offset: The next byte to read; None before anything was read.
        is_read: Whether the last part went to the end of what there was.
        trouble: Why the file cannot be written any more, if so.
    """

    def __init__(self, handle: RunHandle, kept: KeptLog | None = None) -> None:
        self.handle, self.kept = handle, kept
        self.offset: int | None = kept.offset if kept else None
        self.is_read = False
        self.trouble: Exception | None = None
        self._lines = PlainLines()
        self._written = self.offset or 0
        self._mark, self._doubtful = b"", False
        self._writing: asyncio.Future[None] | None = None

    def doubt(self) -> None:
        """The job was put back into the queue: it may begin its log anew."""
        self._doubtful = bool(self._mark)

    async def parts(self, site: Site, most: int, until: float) -> AsyncIterator[list[str]]:
        """Read what is new, and give its lines part by part.

        Args:
            site: Where the run is.
            most: Parts that are read at most.
            until: When to stop, by the monotonic clock.
        """
        self.is_read = False
        for _ in range(most):
            lines = [] if self.kept is None and self.offset is None else await self._part(site, until)
            yield lines
            await self._keep(lines)
            if self.kept is None and not self.is_read:
                yield (await self._jump(site, until))[0]
            if self.is_read or monotonic() >= until:
                return

    async def tail(self, site: Site, until: float) -> tuple[list[str], Tail]:
        """Read the end: lines of it that are new, and all of it as text."""
        lines, data, start = await self._jump(site, until)
        whole = PlainLines(is_cut=start > 0)
        return lines, Tail("\n".join([*whole.feed(data), *whole.finish()]), start == 0)

    async def finish(self) -> list[str]:
        """Give half a line as the last one: the run has ended."""
        lines = self._lines.finish()
        await self._keep(lines)
        return lines

    def half_line(self) -> list[str]:
        """Give half a line, since nobody reads on. A file is left without it: a later wait has all of the line."""
        return self._lines.finish()

    async def _keep(self, lines: list[str]) -> None:
        """Write lines into the file, up to the line that is not whole yet."""
        end = (self.offset or 0) - self._lines.held
        if self.kept is not None and (lines or end != self._written):
            start, self._written = self._written, end
            self._writing = asyncio.ensure_future(_write(self.kept, lines, start, end, self._writing))
        if self.kept is None or self._writing is None:
            return
        # Who is cancelled here leaves a write that goes on, and the next one waits for it: all is written, in order.
        try:
            await asyncio.wait_for(asyncio.shield(self._writing), WRITE_TIMEOUT)
        except (OSError, asyncio.TimeoutError, TimeoutError) as error:
            self.kept, self.trouble = None, error

    async def _part(self, site: Site, until: float) -> list[str]:
        """Read on from where the last part ended."""
        at = self.offset or 0
        mark = self._mark if self._doubtful else b""
        data, after = await self._read(site, at - len(mark), PART, until)
        self._doubtful = False
        if after < at or not data.startswith(mark):
            return self._anew()
        data = data[len(mark) :]
        self.is_read = len(data) < PART
        return self._take(data, after)

    async def _jump(self, site: Site, until: float) -> tuple[list[str], bytes, int]:
        """Read the end, and leave out what lies between: the new lines, all that was read, and where that begins."""
        data, end = await self._read(site, -PART, None, until)
        start, lines = end - len(data), list[str]()
        self.is_read = True
        if not data:  # no log, or none any more
            return lines, data, start
        if self.offset is not None and end < self.offset:
            lines += self._anew()
        at = self.offset or 0
        if start > at:
            lines += self._lines.finish()
            lines.append(f"[{start - at} bytes of the log are left out here]")
            self._lines, at = PlainLines(is_cut=True), start
        self.is_read = True
        return lines + self._take(data[at - start :], end), data, start

    def _anew(self) -> list[str]:
        lines = [*self._lines.finish(), _ANEW]
        self.offset, self._lines, self._mark, self.is_read = 0, PlainLines(), b"", False
        return lines

    def _take(self, data: bytes, after: int) -> list[str]:
        self.offset = after
        if data:
            end = data[-_MARK:]
            self._mark = end if end.isascii() else b""  # else a site that gives text may give it otherwise
        return self._lines.feed(data)

    async def _read(self, site: Site, offset: int, limit: int | None, until: float) -> tuple[bytes, int]:
        seconds = min(READ_TIMEOUT, max(1.0, until - monotonic()))
        return await asyncio.wait_for(site.read_log(self.handle, offset, limit), seconds)


async def _write(kept: KeptLog, lines: list[str], start: int, end: int, earlier: asyncio.Future[None] | None) -> None:
    """Write after an earlier write, whatever became of that."""
    if earlier is not None:
        await asyncio.wait({earlier})
    await asyncio.get_running_loop().run_in_executor(files(), kept.append, lines, start, end)
