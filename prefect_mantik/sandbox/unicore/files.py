"""Files of a storage: listing, ranges, permissions, and what of a path is refused."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect_mantik.sandbox.unicore.books import mode_of
from prefect_mantik.sandbox.unicore.replies import UnicoreError, iso_time

# What the server's web container does not take in a path, in whatever way it was quoted.
_AMBIGUOUS = ("%2e", "%2f", "%25", "%5c", "%0a", "%0d", "%00", "//")
_CHUNK = 64 * 1024
ROOT_LIMIT = 10_000
DIRECTORY_LIMIT = 50_000


def check_raw_path(raw: bytes, marker: bytes) -> None:
    """Refuse what the web container refuses before anybody looks at the path.

    Args:
        raw: The path as it came.
        marker: Where the path of the file begins.

    Raises:
        UnicoreError: With status 400.
    """
    path = raw.partition(marker)[2].decode("latin-1").lower()
    if any(sign in path for sign in _AMBIGUOUS):
        raise UnicoreError(400)


def resolve(root: Path, path: str) -> Path:
    """Find a file of a storage.

    Args:
        root: The storage's directory.
        path: The path within.

    Raises:
        ValueError: The path leads out of the storage.
    """
    found = Path(os.path.normpath(root / path.lstrip("/")))
    if found != root and root not in found.parents:
        raise ValueError(f"java.lang.IllegalArgumentException: Invalid path: <{root}/..>: too many '..'")
    return found


def describe(path: Path, owner: str, group: str) -> dict[str, Any]:
    """Give the properties of a file or directory.

    Args:
        path: Where it is.
        owner: Whose it is said to be.
        group: Whose group it is said to be.
    """
    status = path.stat()
    return {
        "isDirectory": stat.S_ISDIR(status.st_mode),
        "size": status.st_size,
        "owner": owner,
        "group": group,
        "permissions": stat.filemode(status.st_mode)[1:],
        "lastAccessed": iso_time(status.st_mtime),
    }


def content(root: Path, directory: Path, owner: str, group: str, page: slice) -> dict[str, Any]:
    """List a directory.

    Args:
        root: The storage's directory.
        directory: The one to list.
        owner: Whose the files are said to be.
        group: Whose group they are said to be.
        page: Which part of the list.
    """
    listed = {}
    for path in sorted(directory.iterdir())[page]:
        try:
            properties = describe(path, owner, group)
        except OSError:  # gone in the meantime, or a link to nothing
            continue
        slash = "/" if properties["isDirectory"] else ""
        listed[f"/{path.relative_to(root)}{slash}"] = properties
    return listed


def size_of(path: Path) -> int | None:
    """Give the size of a file; a directory has none."""
    return None if path.is_dir() else path.stat().st_size


def parse_range(header: str, size: int) -> tuple[int, int]:
    """Give the offset and the length that a Range header asks for.

    Args:
        header: The header.
        size: The size of the file.

    Raises:
        UnicoreError: With status 416.
    """
    unit, _, spec = header.partition("=")
    first, found, last = spec.strip().partition("-")
    try:
        if unit != "bytes":
            raise ValueError(_ILLEGAL)
        if not first and found:
            offset, end = size - _number(last), size
        else:
            offset = _number(first)
            end = _number(last) + 1 if last else max(offset, size)
        if offset < 0 or (first and last and int(last) < offset):
            raise ValueError(_ILLEGAL)
    except ValueError as error:
        raise UnicoreError(416, f"Range header '{header}' cannot be parsed: {error}") from None
    return offset, end - offset


def read_chunks(path: Path, offset: int = 0, length: int = -1) -> Iterator[bytes]:
    """Read (part of) a file.

    Args:
        path: The file.
        offset: Where to begin.
        length: How much; by default to the end.
    """
    with path.open("rb") as file:
        file.seek(offset)
        left = length
        while left != 0 and (chunk := file.read(_CHUNK if left < 0 else min(_CHUNK, left))):
            left -= len(chunk) if left > 0 else 0
            yield chunk


def change(path: Path, changes: dict[str, Any]) -> dict[str, str]:
    """Change permissions, and say how it went: refusals are no errors here.

    Args:
        path: The file.
        changes: What was sent.
    """
    done = {}
    permissions = changes.get("permissions", changes.get("unixPermissions"))
    if permissions is not None:
        try:
            path.chmod(mode_of(str(permissions)))
            done["permissions"] = "OK"
        except (OSError, ValueError) as error:
            done["permissions"] = f"FAILED: java.lang.IllegalArgumentException: {error}"
    if "group" in changes:
        done["group"] = "OK"
    if "metadata" in changes:
        done["metadata"] = "Metadata is not supported for this storage."
    return done


def delete(path: Path) -> None:
    """Remove a file, or a directory with all there is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def copy(source: Path, target: Path) -> None:
    """Copy a file or a directory."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)


_ILLEGAL = "java.lang.IllegalArgumentException (no further message available)"


def _number(text: str) -> int:
    if not text.isdigit():
        raise ValueError(f'java.lang.NumberFormatException: For input string: "{text}"')
    return int(text)
