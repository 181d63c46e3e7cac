"""The text of an MLproject, checked and typed, with the line of everything that is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from prefect_mantik.backend_config.findings import ConfigFinding, below, errors_in
from prefect_mantik.backend_config.reading import read_file, read_text
from prefect_mantik.errors import MLprojectInvalid
from prefect_mantik.mlproject.command import request_findings, template_findings
from prefect_mantik.mlproject.schema import EntryPoint, MLproject, Parameter
from prefect_mantik.mlproject.types import fits_type, is_known_type
from prefect_mantik.runs import ParameterValue

_NOT_OURS = {"conda_env", "python_env", "docker_env", "databricks_spark_job", "target_uri"}
"""Keys of MLflow that a run at a site has no use for: the compute backend config has the environment."""


def parse_mlproject(text: str, *, where: str = "MLproject") -> MLproject:
    """Read an MLproject.

    Args:
        text: What the file holds.
        where: What to call the file in messages.

    Returns:
        Its entry points. Whether a command and its parameters fit is found out when it is asked for.

    Raises:
        MLprojectInvalid: Lists everything that is wrong with it, with lines.
    """
    document = read_text(text)
    findings = [*document.findings, *(_structure(document.value) if document.readable else ())]
    if errors := errors_in(map(document.located, map(_named, findings))):
        raise MLprojectInvalid([f"{where}, {error}" for error in errors])
    return _typed(document.value)


def inspect_mlproject(
    text: str,
    *,
    where: str = "MLproject",
    entry_point: str | None = None,
    parameters: Mapping[str, ParameterValue] | None = None,
) -> list[ConfigFinding]:
    """Find everything that is wrong with an MLproject, or worth a word, and with what is asked of it.

    Args:
        text: What the file holds.
        where: Path of the file, whose name is looked at too.
        entry_point: An entry point that somebody wants to run.
        parameters: And the parameters for it.

    Returns:
        The findings, with lines.
    """
    document = read_text(text)
    findings = [*_file_name(where), *document.findings]
    if document.readable:
        broken = list(_structure(document.value))
        findings += broken
        if not errors_in(broken):
            project = _typed(document.value)
            findings += _contents(project)
            if entry_point is not None:
                findings += request_findings(project, entry_point, parameters or {})
    return list(dict.fromkeys(map(document.located, map(_named, findings))))


def inspect_mlproject_file(
    path: Path, *, entry_point: str | None = None, parameters: Mapping[str, ParameterValue] | None = None
) -> tuple[str, list[ConfigFinding]]:
    """Read an MLproject file and do what `inspect_mlproject` does.

    Args:
        path: The file.
        entry_point: An entry point that somebody wants to run.
        parameters: And the parameters for it.

    Returns:
        The text of the file, and the findings.
    """
    text, findings = read_file(path)
    if findings:
        return "", list(map(_named, findings))
    return text, inspect_mlproject(text, where=str(path), entry_point=entry_point, parameters=parameters)


def _named(finding: ConfigFinding) -> ConfigFinding:
    """The document as a whole is the MLproject here."""
    return finding if finding.path else ConfigFinding("MLproject", finding.message, finding.line, finding.severity)


def _file_name(where: str) -> Iterator[ConfigFinding]:
    if (name := PurePath(where).name) != "MLproject":
        yield ConfigFinding(
            "", f"is in a file called {name}: MLflow looks for MLproject, without an ending", 1, "advice"
        )


# --- Structure ------------------------------------------------------------------------------------------------------


def _structure(value: Any) -> Iterator[ConfigFinding]:
    if not isinstance(value, Mapping):
        yield ConfigFinding("", "must be an object with the keys name, entry_points")
        return
    for key in value:
        if key not in {"name", "entry_points"} | _NOT_OURS:
            yield ConfigFinding(str(key), "is not known: MLflow ignores it", severity="advice")
    if not isinstance(value.get("name"), str | None):
        yield ConfigFinding("name", "must be a text")
    points = value.get("entry_points")
    if not isinstance(points, Mapping) or not points:
        yield ConfigFinding("entry_points", "must name one entry point at least, each with a command")
        return
    for name, point in points.items():
        yield from _entry_point(f"entry_points.{name}", point)


def _entry_point(path: str, value: Any) -> Iterator[ConfigFinding]:
    if not isinstance(value, Mapping):
        yield ConfigFinding(path, "must be an object with the keys command, parameters")
        return
    for key in value:
        if key not in ("command", "parameters"):
            yield ConfigFinding(below(path, key), "is not known: MLflow ignores it", severity="advice")
    command = value.get("command")
    if not isinstance(command, str) or not command.strip():
        yield ConfigFinding(below(path, "command"), "must be a text: what to run")
    elif command.strip().endswith("\\"):
        yield ConfigFinding(below(path, "command"), "must not end with a backslash: nothing comes next")
    place, parameters = below(path, "parameters"), value.get("parameters", {})
    if parameters is None:
        yield ConfigFinding(place, "is empty: leave the key out where there are none")
    elif not isinstance(parameters, Mapping):
        yield ConfigFinding(place, "must be an object of names and types")
    else:
        for name, parameter in parameters.items():
            yield from _parameter(below(place, name), parameter)


def _parameter(path: str, value: Any) -> Iterator[ConfigFinding]:
    if isinstance(value, str):
        return
    if not isinstance(value, Mapping):
        yield ConfigFinding(path, "must be a type, or an object with the keys type, default")
        return
    for key in value:
        if key not in ("type", "default"):
            yield ConfigFinding(below(path, key), "is not known; known here: type, default")
    if not isinstance(value.get("type", "string"), str):
        yield ConfigFinding(below(path, "type"), "must be a text")
    if not isinstance(value.get("default"), str | int | float | list | None):
        yield ConfigFinding(below(path, "default"), "must be a text, a number, true or false")


def _typed(value: Mapping[str, Any]) -> MLproject:
    points = {
        str(name): EntryPoint(
            command=point["command"].strip(),
            parameters={str(key): _typed_parameter(part) for key, part in point.get("parameters", {}).items()},
        )
        for name, point in value["entry_points"].items()
    }
    return MLproject(name=value.get("name"), entry_points=points)


def _typed_parameter(value: Any) -> Parameter:
    if isinstance(value, str):
        return Parameter(type=value)
    default = value.get("default")
    return Parameter(type=value.get("type", "string"), default=str(default) if isinstance(default, list) else default)


# --- Contents -------------------------------------------------------------------------------------------------------


def _contents(project: MLproject) -> Iterator[ConfigFinding]:
    for name, point in project.entry_points.items():
        path = f"entry_points.{name}"
        yield from template_findings(path, point)
        for key, parameter in point.parameters.items():
            place = f"{path}.parameters.{key}"
            if not is_known_type(parameter.type):
                said = f"has the type {parameter.type}, which is not known and not checked"
                yield ConfigFinding(place, said, severity="advice")
            elif not parameter.required and not fits_type(parameter.default, parameter.type):
                yield ConfigFinding(place, f"has a default that is not of type {parameter.type}")
