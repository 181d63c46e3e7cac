"""The command of an entry point: placeholders found, values checked, quoted for where they stand, and put in."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Literal

from prefect_mantik.backend_config.findings import ConfigFinding, below, errors_in
from prefect_mantik.backend_config.rules import can_be_written
from prefect_mantik.errors import MLprojectInvalid
from prefect_mantik.mlproject.schema import EntryPoint, MLproject, Parameter
from prefect_mantik.mlproject.types import fits_type
from prefect_mantik.runs import ParameterValue

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
"""A brace that is meant (doubled), a placeholder, or a brace that is one too few."""

_OUTSIDE_QUOTES = re.compile(r"""(?:\\.|'[^']*'|"(?:[^"\\]|\\.)*"|(?:^|(?<=\s))\#[^\n]*|[^\\'"])*""", re.S)

Surroundings = Literal["plain", "single", "double", "nested"]


def entry_command(project: MLproject, entry_point: str, parameters: Mapping[str, ParameterValue]) -> str:
    """Write the command of an entry point with its parameters.

    Values arrive as the text that Python's `str` makes of them, as on the platform (`None`, `True`), whatever
    characters they hold: they are quoted for the place where they stand. The rest of the command is left to the shell.

    Args:
        project: The MLproject.
        entry_point: Name of one of its entry points.
        parameters: Values by name. Parameters that are not given have their defaults.

    Returns:
        The command, for bash.

    Raises:
        MLprojectInvalid: Lists everything that is wrong: no such entry point, parameters that are missing, not declared
            or not of their type, placeholders that nothing fills.
    """
    if errors := errors_in(request_findings(project, entry_point, parameters)):
        raise MLprojectInvalid(errors)
    point = project.entry_points[entry_point]
    values = {name: parameters.get(name, declared.default) for name, declared in point.parameters.items()}
    texts = {name: str(value) for name, value in values.items()}
    return _PIECE.sub(lambda piece: _written(piece, texts), point.command)


def _written(piece: re.Match[str], texts: Mapping[str, str]) -> str:
    if piece[1] is None:
        return piece[0][0]
    text = texts[piece[1]]
    surroundings = _surroundings(piece)
    if surroundings == "single":
        return text.replace("'", "'\\''")
    if surroundings == "double":
        return re.sub(r'[\\"$`]', r"\\\g<0>", text)
    return shlex.quote(text)


def _surroundings(piece: re.Match[str]) -> Surroundings:
    """In which quotes a placeholder stands. "nested" is where no quoting of ours would be sure."""
    prefix = piece.string[: piece.start()]
    rest = prefix[_OUTSIDE_QUOTES.match(prefix).end() :]  # type: ignore[union-attr]  # it matches nothing at least
    closed = prefix[: len(prefix) - len(rest)]
    if re.search(r"`|(?<!<)<<(?!<)", closed) or closed.endswith("$") or rest.startswith("\\"):
        return "nested"
    if rest.startswith('"'):
        return "nested" if re.search(r"`|\$\(", rest) else "double"
    return "single" if rest else "plain"


# --- Findings -------------------------------------------------------------------------------------------------------


def request_findings(
    project: MLproject, entry_point: str, parameters: Mapping[str, ParameterValue]
) -> Iterator[ConfigFinding]:
    """What is wrong with asking for an entry point with these parameters.

    Args:
        project: The MLproject.
        entry_point: Name of one of its entry points.
        parameters: Values by name.
    """
    path = below("entry_points", entry_point)
    if entry_point not in project.entry_points:
        known = ", ".join(project.entry_points)
        yield ConfigFinding(path, f"is no entry point of this MLproject; it has: {known}")
        return
    point = project.entry_points[entry_point]
    yield from (finding for finding in template_findings(path, point) if finding.severity == "error")
    declared = ", ".join(point.parameters) or "none"
    for name in parameters:
        if name not in point.parameters:
            yield ConfigFinding(f"{path}.parameters.{name}", f"is given and not declared; declared are: {declared}")
    for name, parameter in point.parameters.items():
        place = f"{path}.parameters.{name}"
        if name not in parameters and parameter.required:
            yield ConfigFinding(place, "has no default and has to be given")
        else:
            yield from _value_findings(place, name, parameters.get(name, parameter.default), parameter, point)


def _value_findings(
    path: str, name: str, value: ParameterValue, parameter: Parameter, point: EntryPoint
) -> Iterator[ConfigFinding]:
    text = str(value)
    if not fits_type(value, parameter.type):
        yield ConfigFinding(path, f"must be of type {parameter.type}")
    elif not can_be_written(text):
        yield ConfigFinding(path, "holds a character that no command can hold")
    elif text != shlex.quote(text) and any(
        piece[1] == name and _surroundings(piece) == "nested" for piece in _PIECE.finditer(point.command)
    ):
        said = "stands in backquotes, a here-document or $(...) within quotes, where this value cannot be quoted safely"
        yield ConfigFinding(path, said)


def template_findings(path: str, point: EntryPoint) -> Iterator[ConfigFinding]:
    """What is wrong with an entry point's command, whatever is asked of it.

    Args:
        path: Where the entry point stands.
        point: The entry point.
    """
    place = below(path, "command")
    used: set[str] = set()
    for piece in _PIECE.finditer(point.command):
        name = piece[1]
        if piece[0] in ("{", "}"):
            yield ConfigFinding(place, f"holds a single {piece[0]}: write it twice where it is meant for the shell")
        elif name is not None and name not in point.parameters:
            said = f"has a placeholder {{{name}}} that is not declared: add it to the parameters"
            dollar = point.command[: piece.start()].endswith("$")
            yield ConfigFinding(place, f"{said}, or write ${{{{{name}}}}} for the shell's variable" if dollar else said)
        elif name is not None:
            if name not in used and _surroundings(piece) in ("single", "double"):
                said = f"has the placeholder {{{name}}} within quotes: the platform puts quotes of its own into these"
                yield ConfigFinding(place, said, severity="advice")
            used.add(name)
    for name in point.parameters:
        if name not in used:
            said = "is declared and not used in the command: the platform refuses that"
            yield ConfigFinding(f"{path}.parameters.{name}", said, severity="advice")
