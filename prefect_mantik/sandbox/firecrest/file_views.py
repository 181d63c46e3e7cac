"""The commands that look at files: ls, stat, head, tail, dd, sha256sum, file and base64."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect_mantik.sandbox.firecrest.files import Account, command, command_failed

# How `ls --quoting-style=c` writes these bytes. The server's parser then takes the escapes of quotes and backslashes
# back, and those only.
_ESCAPES = {7: "\\a", 8: "\\b", 9: "\\t", 10: "\\n", 11: "\\v", 12: "\\f", 13: "\\r"}
_DEFAULT_LINES = 10


def list_files(
    account: Account, path: Path, *, hidden: bool, recursive: bool, numeric: bool, dereference: bool
) -> list[dict[str, Any]]:
    """List a directory, or give the one file that the path names.

    Args:
        account: Who asks.
        path: The directory.
        hidden: Whether files with a dot in front are listed.
        recursive: Whether to list the directories within as well.
        numeric: Whether to give numbers for user and group.
        dereference: Whether links stand for what they point to.
    """
    with command(f"ls: cannot access '{path}'", 2):
        # A link to a directory is described, not listed.
        account.look(path, follow=False)
        mode = (path.stat() if dereference else path.lstat()).st_mode
    if not stat.S_ISDIR(mode):
        return [describe(account, path, str(path), numeric=numeric, dereference=dereference)]
    listed = []
    for directory in _directories(account, path, hidden, recursive, dereference):
        prefix = "" if directory == path else f"{directory.relative_to(path)}/"
        for found in _content(directory, hidden):
            with command(f"ls: cannot access '{found}'"):
                name = f"{prefix}{found.name}"
                listed.append(describe(account, found, name, numeric=numeric, dereference=dereference))
    return listed


def describe(
    account: Account, path: Path, name: str, *, numeric: bool = False, dereference: bool = False
) -> dict[str, Any]:
    """Describe a file as `ls -l` does.

    Args:
        account: Who asks.
        path: The file.
        name: What it is called.
        numeric: Whether to give numbers for user and group.
        dereference: Whether a link stands for what it points to.
    """
    status = path.stat() if dereference else path.lstat()
    mode = stat.filemode(status.st_mode)
    owner = account.owner(path)
    return {
        "name": _escaped(name),
        "type": mode[0],
        "linkTarget": _escaped(os.readlink(path)) if mode[0] == "l" else None,
        "user": str(account.site.uid(owner)) if numeric else owner,
        "group": str(account.site.uid(owner)) if numeric else owner,
        "permissions": mode[1:],
        "lastModified": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(status.st_mtime)),
        "size": str(status.st_size),
    }


def status_of(account: Account, path: Path, *, dereference: bool) -> dict[str, int]:
    """Give the numbers of `stat`.

    Args:
        account: Who asks.
        path: The file.
        dereference: Whether a link stands for what it points to.
    """
    with command(f"stat: cannot statx '{path}'"):
        account.look(path, follow=dereference)
        status = path.stat() if dereference else path.lstat()
    uid = account.site.uid(account.owner(path, follow=dereference))
    names = ("mode", "ino", "dev", "nlink", "uid", "gid", "size", "atime", "ctime", "mtime")
    return {name: int(getattr(status, f"st_{name}")) for name in names} | {"uid": uid, "gid": uid}


def head(account: Account, path: Path, *, lines: int | None, size: int | None, rest: bool) -> bytes:
    """Give the beginning of a file.

    Args:
        account: Who asks.
        path: The file.
        lines: How many lines; by default ten.
        size: How many bytes.
        rest: Whether these numbers say what is left out at the end.
    """
    with command(f"head: cannot open '{path}' for reading"):
        account.read(path).stat()
    return _cut(_whole(path, f"head: error reading '{path}'"), "head", lines, size, rest)


def tail(account: Account, path: Path, *, lines: int | None, size: int | None, rest: bool) -> bytes:
    """Give the end of a file.

    Args:
        account: Who asks.
        path: The file.
        lines: How many lines; by default ten.
        size: How many bytes.
        rest: Whether these numbers say where to begin, counted from one.
    """
    with command(f"tail: cannot open '{path}' for reading"):
        account.read(path).stat()
    return _cut(_whole(path, f"tail: error reading '{path}'"), "tail", lines, size, rest)


def view(account: Account, path: Path, *, size: int, offset: int) -> tuple[str, int]:
    """Give a part of a file, and how many bytes had to be fetched for it.

    The server fetches two blocks, and cuts characters out of them, not bytes.

    Args:
        account: Who asks.
        path: The file.
        size: How much.
        offset: Where it begins.
    """
    with command(f"dd: failed to open '{path}'"):
        account.read(path).stat()
    with command(f"dd: error reading '{path}'"), path.open("rb") as file:
        file.seek(offset // size * size)
        fetched = file.read(2 * size)
    start = offset % size
    return fetched.decode(errors="replace")[start : start + size], len(fetched)


def checksum(account: Account, path: Path) -> str:
    """Give the SHA-256 of a file."""
    digest = hashlib.sha256()
    with command(f"sha256sum: {path}"), account.read(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def kind(account: Account, path: Path) -> str:
    """Say what a file is. `file` ends well even if there is none."""
    try:
        account.look(path, follow=False)
        if path.is_symlink():
            return f"symbolic link to {os.readlink(path)}"
        path.lstat()
        if path.is_dir():
            return "directory"
        beginning = account.read(path).read_bytes()[:65536]
    except OSError as error:
        return f"cannot open `{path}' ({os.strerror(error.errno or errno.EIO)})"
    return _kind_of(beginning)


def content(account: Account, path: Path) -> bytes:
    """Give a whole file."""
    with command(f"base64: {path}"):
        account.read(path).stat()
    return _whole(path, "base64: read error")


def _directories(account: Account, top: Path, hidden: bool, recursive: bool, dereference: bool) -> Iterator[Path]:
    with command(f"ls: cannot open directory '{top}'", 2 if not recursive else 1):
        os.listdir(account.read(top))
    yield top
    for below in _content(top, hidden) if recursive else ():
        if below.is_dir() and (dereference or not below.is_symlink()):
            yield from _directories(account, below, hidden, recursive, dereference)


def _content(directory: Path, hidden: bool) -> list[Path]:
    names = sorted(os.listdir(directory), key=os.fsencode)
    return [directory / name for name in names if hidden or not name.startswith(".")]


def _escaped(name: str) -> str:
    def write(byte: int) -> str:
        return chr(byte) if 32 <= byte < 127 else _ESCAPES.get(byte, f"\\{byte:03o}")

    return "".join(map(write, os.fsencode(name)))


def _whole(path: Path, doing: str) -> bytes:
    with command(doing):
        return path.read_bytes()


def _cut(data: bytes, program: str, lines: int | None, size: int | None, rest: bool) -> bytes:
    # Numbers that are zero are as good as not there.
    number = size or lines or _DEFAULT_LINES
    rest = rest and bool(size or lines)
    if rest and number < 0:
        sign = "-" if program == "head" else "+"
        raise command_failed(f"{program}: invalid number of {'bytes' if size else 'lines'}: '{sign}{number}'")
    pieces: list[bytes] = re.findall(rb"[^\n]*\n|[^\n]+", data) if not size else []
    count = len(data) if size else len(pieces)
    if program == "head":
        span = slice(0, max(0, count - number) if rest else number if number > 0 else max(0, count + number))
    else:
        span = slice(number - 1 if rest else max(0, count - abs(number)), None)
    return data[span] if size else b"".join(pieces[span])


def _kind_of(beginning: bytes) -> str:
    if not beginning:
        return "empty"
    if beginning.startswith(b"\x1f\x8b"):
        return "gzip compressed data"
    try:
        text = beginning.decode()
    except UnicodeDecodeError:
        return "data"
    if any(ord(sign) < 32 and sign not in "\t\n\r\f\b\x1b" for sign in text):
        return "data"
    letters = "ASCII text" if text.isascii() else "Unicode text, UTF-8 text"
    shell = re.match(r"#! ?\S*/(?:env )?(bash|sh|python3?)\b", text)
    names = {"bash": "Bourne-Again shell", "sh": "POSIX shell", "python": "Python", "python3": "Python"}
    return f"{names[shell[1]]} script, {letters} executable" if shell else letters
