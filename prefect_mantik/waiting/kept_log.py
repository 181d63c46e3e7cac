"""Logs of runs that are kept as files: appended as they come, without tokens, and gone on with by a later wait.

What is kept is text, whole lines of it, since bytes as they came could hold tokens. Its size tells nothing of the log
at the site. So a small file beside each says up to which byte of the site's log it goes, and how large it was then. It
is replaced after the text was written: who was killed between has text in the file that nobody counted, and the next
wait cuts that off and reads it again. So nothing is there twice, and nothing is missing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from prefect_mantik.loop import per_process
from prefect_mantik.runs import RunHandle

NO_FLOW_RUN = "no-flow-run"

_ONE_AT_A_TIME = threading.Lock()


@per_process
def files() -> ThreadPoolExecutor:
    """Threads for these files alone: on a disk that hangs they hang, and nobody else's work with them."""
    return ThreadPoolExecutor(2, thread_name_prefix="mantik-logs")


class KeptLog:
    """The log of one run as a file.

    Args:
        path: Of the file.
        identity: Which job it is of.

    Attributes:
        path: Of the file.
        offset: Up to which byte of the site's log the file goes.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self._identity, self._beside = path, identity, path.with_name(f"{path.name}.offset")
        self.offset, self._size = self._told() or (0, 0)
        self._write(b"")
        self._note(self.offset, self._size)

    def append(self, lines: Sequence[str], start: int, end: int) -> None:
        """Write lines of the site's log, and up to which byte they go.

        Args:
            lines: Without tokens.
            start: The byte at which they begin.
            end: The byte before which they end. Below the start: the site began its log anew.

        Raises:
            OSError: It cannot be written, or another wait has written meanwhile, or lines before these are missing.
        """
        with _ONE_AT_A_TIME:
            if self._told() != (self.offset, self._size):
                raise OSError(errno.EBUSY, "another wait keeps this log", str(self.path))
            if start != self.offset:
                raise OSError(errno.EIO, "the lines before were not written", str(self.path))
            size = self._write("".join(f"{line}\n" for line in lines).encode(errors="replace"))
            self._note(end, size)
            self.offset, self._size = end, size

    def _told(self) -> tuple[int, int] | None:
        """What the file beside says: up to which byte, and the size of the text; None where it is not of this job."""
        told = _read(self._beside)
        if told.get("job") != self._identity or not self.path.is_file():
            return None
        try:
            return int(told["offset"]), min(int(told["size"]), self.path.stat().st_size)
        except (KeyError, TypeError, ValueError):
            return None

    def _write(self, text: bytes) -> int:
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
        try:
            os.fchmod(file, 0o600)
            os.ftruncate(file, self._size)  # what an earlier try wrote of the same lines
            os.lseek(file, self._size, os.SEEK_SET)
            written = 0
            while written < len(text):
                written += os.write(file, text[written:])
            return self._size + len(text)
        finally:
            os.close(file)

    def _note(self, offset: int, size: int) -> None:
        new = self._beside.with_name(f"{self._beside.name}.new")
        file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0), 0o600)
        with os.fdopen(file, "w") as stream:
            json.dump({"job": self._identity, "offset": offset, "size": size}, stream)
        new.replace(self._beside)


def open_kept_log(directory: Path, flow_run: str | None, handle: RunHandle) -> KeptLog:
    """The kept log of a run: the file that an earlier wait of the flow run made, or a new one.

    Args:
        directory: Below which logs are kept.
        flow_run: Id of the flow run; None outside of one.
        handle: Which run.

    Raises:
        OSError: The directory cannot be made or read.
    """
    place = directory.expanduser() / (safe(flow_run) if flow_run else NO_FLOW_RUN)
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    identity = f"{handle.kind} {handle.site or handle.site_name} {handle.remote_id} {handle.site_key}"
    name = f"{safe(handle.name)}-{safe(handle.site_name)}-{handle.attempt}"
    path = place / f"{name}.log"
    with _ONE_AT_A_TIME:
        known = _read(place / f"{path.name}.offset").get("job", "" if path.exists() else identity)
        if known != identity:  # of a run whose name is the same but for signs that no file name holds
            path = place / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}.log"
        return KeptLog(path, identity)


def safe(text: str) -> str:
    """Text as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:60] or "run"


def _read(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}
