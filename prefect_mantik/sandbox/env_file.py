"""The sandbox's `.env` file: written for `source`, and read back."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path


def write_env_file(path: Path, values: Mapping[str, str]) -> None:
    """Write variables so that `source` sets them, readable by nobody else.

    Args:
        path: The file; an older one is replaced in one step, whatever its mode.
        values: The variables.
    """
    text = "".join(f"export {name}={_quoted(value)}\n" for name, value in values.items())
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # its mode is 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


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
