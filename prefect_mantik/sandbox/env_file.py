"""The sandbox's `.env` file: written for `source`, and read back."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path

from prefect_mantik.sandbox.errors import SandboxError

_OURS = "MANTIK_SANDBOX_CONTROL_URL"


def write_env_file(path: Path, values: Mapping[str, str]) -> None:
    """Write variables so that `source` sets them, readable by nobody else.

    Args:
        path: The file; an older one of a sandbox is replaced in one step, whatever its mode.
        values: The variables.

    Raises:
        SandboxError: See `check_target`.
    """
    check_target(path)
    text = "".join(f"export {name}={_quoted(value)}\n" for name, value in values.items())
    path = path.absolute()
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # its mode is 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def check_target(path: Path) -> None:
    """Refuse a file that no sandbox wrote, perhaps with a real account, and a folder that is not there.

    Args:
        path: Where variables are to be written.

    Raises:
        SandboxError: Says which of the two it is.
    """
    if path.exists() and path.stat().st_size and _OURS not in path.read_text(errors="replace"):
        raise SandboxError(f"{path} was not written by a sandbox: it is left as it is. Name another file.")
    if not path.absolute().parent.is_dir():
        raise SandboxError(f"{path} cannot be written: there is no folder {path.absolute().parent}.")


def read_env_file(path: Path) -> dict[str, str]:
    """Read back what `write_env_file` wrote.

    Args:
        path: The file.
    """
    values = {}
    for word in shlex.split(path.read_text()):
        name, found, value = word.partition("=")
        if found:
            values[name] = value
    return values


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "'\"'\"'") + "'"
