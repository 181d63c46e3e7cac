"""An MLproject file: the command of an entry point with its parameters."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from string import Formatter
from typing import Any

import yaml

from prefect_mantik.sandbox.errors import configuration_error


def locate(repository: Path, path: str) -> Path:
    """Find the MLproject file in a checked-out repository.

    Args:
        repository: The repository's root directory.
        path: The file's path relative to the root, or the folder that holds it.
    """
    relative = PurePosixPath(path)
    if relative.is_absolute() or ".." in relative.parts:
        raise configuration_error(f"MLproject path {path!r} has to be relative to the code repository's root")
    found = repository / relative
    if found.is_dir():
        found = found / "MLproject"
    if not found.is_file():
        raise configuration_error(f"No MLproject at {path!r} in the code repository")
    return found


def command(mlproject: Path, entry_point: str, given: Mapping[str, Any]) -> str:
    """Render an entry point's command, or refuse what does not match.

    Args:
        mlproject: The MLproject file.
        entry_point: One of its entry points.
        given: The parameters that came with the run.
    """
    try:
        content = yaml.safe_load(mlproject.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise configuration_error(f"MLproject cannot be read: {error}") from None
    entry_points = content.get("entry_points") if isinstance(content, dict) else None
    if not isinstance(entry_points, dict) or not isinstance(entry_points.get(entry_point), dict):
        known = ", ".join(entry_points) if isinstance(entry_points, dict) else "none"
        raise configuration_error(f"No entry point {entry_point!r} in MLproject, only: {known}")
    declared: dict[str, Any] = entry_points[entry_point].get("parameters") or {}
    template = str(entry_points[entry_point].get("command") or "")
    defaults = {
        name: value["default"] for name, value in declared.items() if isinstance(value, dict) and "default" in value
    }
    wrong = sorted((given.keys() - declared.keys()) | (declared.keys() - defaults.keys() - given.keys()))
    if wrong:
        raise configuration_error(f"Mismatch between entry point parameters and entered parameters: {wrong}")
    try:
        placeholders = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise configuration_error(f"The command of {entry_point!r} cannot be read: {error}") from None
    wrong = sorted(placeholders ^ declared.keys())
    if wrong:
        raise configuration_error(
            "Mismatch between entry point parameter names and parameter placeholders in the command: " + str(wrong)
        )
    values = {**defaults, **given}
    return template.format(**{name: shlex.quote(str(value)) for name, value in values.items()})
