"""The platform's compute backend config: which site a run goes to, with which resources and in which environment.

The platform ignores keys that it does not know and casts what it can. A misspelt key then costs a night in the queue,
so that every key, type and combination is checked before anything is sent. The rules are those by which the platform
reads and renders a config, and the names of older generations of the schema are answered with today's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

from prefect_mantik.environment import check_url
from prefect_mantik.errors import BackendConfigInvalid

BackendKind = Literal["unicore", "firecrest", "ssh"]

Rule = Callable[[str, Any], Iterable[str]]
"""Takes the path of a value and the value, gives a finding for each thing that is wrong with it."""

_TRACKING_CREDENTIALS = {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"}


def check_backend_config(config: Mapping[str, Any]) -> None:
    """Check a whole compute backend config.

    Args:
        config: What the user's JSON or YAML file holds.

    Raises:
        BackendConfigInvalid: Lists everything that is wrong, each with its path, such as `Resources.Queue`.
    """
    findings = list(_CONFIG("", config))
    if isinstance(config, Mapping):
        findings += _kind_findings(config)
        findings += _conflicts(config)
    if findings:
        raise BackendConfigInvalid(findings)


def backend_kind(config: Mapping[str, Any]) -> BackendKind:
    """Tell which kind of site a config is for.

    Args:
        config: A compute backend config.

    Returns:
        The kind, from the one of `UnicoreApiUrl`, `Firecrest` and `SSH` that is there.

    Raises:
        BackendConfigInvalid: None of them is there, or more than one.
    """
    if findings := _kind_findings(config):
        raise BackendConfigInvalid(findings)
    return next(kind for key, kind in _KINDS.items() if key in config)


def site_label(config: Mapping[str, Any]) -> str:
    """What to call the site of a config that has no name of its own: UNICORE's site, the machine, or the host."""
    kind = backend_kind(config)
    if kind == "unicore":
        url = urlsplit(str(config["UnicoreApiUrl"]))
        return url.path.strip("/").partition("/")[0] or url.netloc
    return str(config["Firecrest"]["Machine"] if kind == "firecrest" else config["SSH"]["Hostname"])


def with_variables(config: Mapping[str, Any], variables: Mapping[str, str]) -> dict[str, Any]:
    """Add variables to those that a config gives to its job.

    Args:
        config: A compute backend config. It stays as it is.
        variables: What to add to `Environment.Variables`.

    Returns:
        A copy that shares nothing with the input.

    Raises:
        BackendConfigInvalid: The config's environment is not usable, it has a variable of one of these names already,
            or a name or value cannot be given to a job.
    """
    environment = config.get("Environment", {})
    findings = list(_ENVIRONMENT("Environment", environment)) + list(_variables("Environment.Variables", variables))
    if not findings:
        findings = [
            f"Environment.Variables.{name} is set by prefect-mantik: take it out of the config"
            for name in environment.get("Variables", {})
            if name in variables
        ]
    if findings:
        raise BackendConfigInvalid(findings)
    copy: dict[str, Any] = _plain(config)
    copy.setdefault("Environment", {}).setdefault("Variables", {}).update(variables)
    return copy


def _plain(value: Any) -> Any:
    # Not copy.deepcopy: that keeps what a YAML alias shares, and an added variable would appear in two places.
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


# --- Rules for one value --------------------------------------------------------------------------------------------


def _rule(form: str, fits: Callable[[Any], bool]) -> Rule:
    return lambda path, value: () if fits(value) else (f"{path} must be {form}",)


def _pattern(form: str, pattern: str) -> Rule:
    """Make a rule for a text or a whole number: YAML reads `Runtime: 0` and `Port: 22` as numbers."""

    def fits(value: Any) -> bool:
        is_scalar = isinstance(value, str | int) and not isinstance(value, bool)
        return is_scalar and re.fullmatch(pattern, str(value)) is not None

    return _rule(form, fits)


def _object(keys: Mapping[str, Rule], *required: str) -> Rule:
    def findings(path: str, value: Any) -> Iterable[str]:
        if not isinstance(value, Mapping):
            yield f"{path or 'The config'} must be an object with the keys {', '.join(keys)}"
            return
        yield from (f"{_below(path, key)} is missing" for key in required if key not in value)
        for key, part in value.items():
            if key not in keys:
                yield _unknown(path, str(key), keys)
            elif part is None:
                yield f"{_below(path, key)} has no value: give it one or leave the key out"
            else:
                yield from keys[key](_below(path, key), part)

    return findings


def _below(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and value == value.strip() and "\n" not in value


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) and item.strip() for item in value)


def _variables(path: str, value: Any) -> Iterable[str]:
    if not isinstance(value, Mapping):
        yield f"{path} must be an object of names and values"
        return
    for name, content in value.items():
        if name in _TRACKING_CREDENTIALS:
            yield f"{path}.{name} is not allowed: the job gets a tracking token of its own"
        elif not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(name), re.ASCII):
            yield f"{path}.{name} is not a name that a shell takes: letters, digits and _, no digit first"
        elif not isinstance(content, str | int | float):
            yield f"{path}.{name} must be a text, a number, true or false"


def _url(form: str) -> Rule:
    def findings(path: str, value: Any) -> Iterable[str]:
        try:
            check_url(value if isinstance(value, str) else "", form=form)
        except ValueError as error:
            yield f"{path}: {error}"

    return findings


def _python(path: str, value: Any) -> Iterable[str]:
    return _PYTHON(path, value) if isinstance(value, Mapping) else _VENV(path, value)


# --- The schema -----------------------------------------------------------------------------------------------------

_TEXT = _rule("a text on one line, without spaces around it", _is_text)
_LIST = _rule("a list of texts: each in a line of its own, or in [brackets]", _is_list_of_text)
_COMMANDS = _rule(
    "a text or a list of texts", lambda value: _is_list_of_text([value] if isinstance(value, str) else value)
)
_COUNT = _pattern("a whole number, 1 or more", r"0*[1-9][0-9]*")
_VENV = _rule("the absolute path of a virtual environment at the site", lambda v: _is_text(v) and v.startswith("/"))
_PYTHON = _object({"Path": _VENV}, "Path")

_TABLES: dict[str, dict[str, Rule]] = {
    "Firecrest": {
        "ApiUrl": _url("https://<host>/<platform>/firecrest/v2"),
        "TokenUrl": _url("https://<host>/<...>/openid-connect/token"),
        "Machine": _TEXT,
    },
    "SSH": {
        "Hostname": _TEXT,
        "Port": _pattern("a port number", r"[1-9][0-9]{0,4}"),
    },
    "Resources": {
        "Queue": _TEXT,
        "Runtime": _pattern("a number with one unit (30m, 12h, 2d, 90s), or 0", r"[0-9]+[smhd]|0"),
        "Nodes": _COUNT,
        "TotalCPUs": _COUNT,
        "CPUsPerNode": _COUNT,
        "GPUsPerNode": _pattern("a whole number, 0 or more", r"[0-9]+"),
        "MemoryPerNode": _pattern(
            "a whole number, with UNICORE also with a unit (12GiB)", r"-?[0-9]+|[0-9]+[KMGT](iB|B)?"
        ),
        "Reservation": _TEXT,
        "NodeConstraints": _TEXT,
        "QoS": _TEXT,
    },
    "Environment.Apptainer": {
        "Path": _TEXT,
        "Type": _rule("local or remote", lambda v: isinstance(v, str) and v.lower() in ("local", "remote")),
        "Options": _COMMANDS,
    },
}
_TABLES["Environment"] = {
    "Apptainer": _object(_TABLES["Environment.Apptainer"], "Path"),
    "Python": _python,
    "Modules": _LIST,
    "Variables": _variables,
    "PreRunCommandOnLoginNode": _COMMANDS,
    "PostRunCommandOnLoginNode": _COMMANDS,
    "PreRunCommandOnComputeNode": _COMMANDS,
    "PostRunCommandOnComputeNode": _COMMANDS,
}
_ENVIRONMENT = _object(_TABLES["Environment"])
_TABLES[""] = {
    "UnicoreApiUrl": _url("https://<gateway>/<SITE>/rest/core"),
    "Firecrest": _object(_TABLES["Firecrest"], "ApiUrl", "TokenUrl", "Machine"),
    "SSH": _object(_TABLES["SSH"], "Hostname"),
    "Resources": _object(_TABLES["Resources"], "Queue"),
    "Environment": _ENVIRONMENT,
    "Exclude": _LIST,
}
_CONFIG = _object(_TABLES[""], "Resources")
_KINDS: dict[str, BackendKind] = {"UnicoreApiUrl": "unicore", "Firecrest": "firecrest", "SSH": "ssh"}


# --- Rules across keys ----------------------------------------------------------------------------------------------


def _kind_findings(config: Mapping[str, Any]) -> list[str]:
    given = [key for key in _KINDS if key in config]
    if len(given) == 1:
        return []
    return [f"exactly one of {', '.join(_KINDS)} must be there, not {' and '.join(given) or 'none'}"]


def _part(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = config.get(key)
    return part if isinstance(part, Mapping) else {}


def _conflicts(config: Mapping[str, Any]) -> Iterable[str]:
    environment = _part(config, "Environment")
    image = _part(environment, "Apptainer")
    if "Apptainer" in environment and "Python" in environment:
        yield "Environment: a run has one execution environment, either Apptainer or Python"
    if str(image.get("Type")).lower() == "remote" and not str(image.get("Path", "/")).startswith("/"):
        yield "Environment.Apptainer.Path must be absolute for an image of Type remote"
    if "Firecrest" in config:
        yield from (
            f"Environment.{key} is not possible with Firecrest: use {key.replace('Login', 'Compute')}"
            for key in ("PreRunCommandOnLoginNode", "PostRunCommandOnLoginNode")
            if key in environment
        )
    if "UnicoreApiUrl" not in config and re.search(r"[A-Z]", str(_part(config, "Resources").get("MemoryPerNode", ""))):
        yield "Resources.MemoryPerNode must be a number of megabytes, without a unit, for Slurm (Firecrest, SSH)"


# --- Unknown keys ---------------------------------------------------------------------------------------------------

_RENAMED = {
    "SingularityImage": "Environment.Apptainer",
    "Singularity": "Environment.Apptainer",
    "PreRunCommand": "Environment.PreRunCommandOnLoginNode or Environment.PreRunCommandOnComputeNode",
    "PostRunCommand": "Environment.PostRunCommandOnLoginNode or Environment.PostRunCommandOnComputeNode",
    "Environment.Environment": "Environment.Variables",
    "Project": "the compute budget account, which is no part of the config",
    "CPUs": "Resources.TotalCPUs or Resources.CPUsPerNode",
    "Memory": "Resources.MemoryPerNode",
    "GPUs": "Resources.GPUsPerNode",
}
_PLACES = {key.casefold(): _below(path, key) for path, keys in _TABLES.items() for key in keys}


def _unknown(path: str, key: str, keys: Iterable[str]) -> str:
    place = _below(path, key)
    modern = _RENAMED.get(place) or _RENAMED.get(key) or _PLACES.get(key.casefold())
    return f"{place} is not known; " + (f"it is {modern} today" if modern else f"known here: {', '.join(keys)}")
