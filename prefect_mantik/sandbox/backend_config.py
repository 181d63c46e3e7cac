"""The compute backend config of a run, checked as the platform checks it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from prefect_mantik.sandbox.errors import ApiError, configuration_error, firecrest_error

# Key in the config, type, and the order in which a Slurm script lists them.
RESOURCES: dict[str, type] = {
    "Queue": str,
    "Runtime": str,
    "Nodes": int,
    "TotalCPUs": int,
    "CPUsPerNode": int,
    "GPUsPerNode": int,
    "MemoryPerNode": str,
    "Reservation": str,
    "NodeConstraints": str,
    "QoS": str,
}
_BACKENDS = ("UnicoreApiUrl", "Firecrest", "SSH")
# MLflow's client would prefer them to the run's token.
_NEVER_PASSED_ON = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
_RUNTIME = re.compile(r"\d+[smhd]|0")


@dataclass(frozen=True)
class Apptainer:
    """A container that the entry point runs in."""

    path: str
    remote: bool
    options: str


@dataclass(frozen=True, kw_only=True)
class BackendConfig:
    """A config that was found good."""

    unicore_url: str | None
    firecrest_url: str | None
    machine: str | None
    resources: dict[str, Any]
    apptainer: Apptainer | None
    python: str | None
    modules: list[str]
    variables: dict[str, str]
    pre_login: str
    post_login: str
    pre_compute: str
    post_compute: str
    exclude: list[str] = field(default_factory=list)


def parse_backend_config(raw: Mapping[str, Any]) -> BackendConfig:
    """Check a config and take it apart; unknown keys are ignored, as on the platform.

    Args:
        raw: The config as it came with the run.
    """
    given = [key for key in _BACKENDS if key in raw]
    if len(given) != 1:
        raise configuration_error(
            "Either UnicoreApiUrl or Firecrest or SSH details must be provided, but not more than 1."
        )
    if given == ["SSH"]:
        raise ApiError(400, "SSH backend error. Cause: the sandbox has no site that is reached by SSH")
    firecrest = _mapping(raw, "Firecrest")
    if "Firecrest" in raw:
        firecrest = {key: _cast(firecrest, key, str, required=True) for key in ("ApiUrl", "TokenUrl", "Machine")}
    environment = _mapping(raw, "Environment")
    pre_login, post_login = (_commands(environment, f"{when}RunCommandOnLoginNode", " && ") for when in ("Pre", "Post"))
    if firecrest and (pre_login or post_login):
        which = "Pre" if pre_login else "Post"
        raise firecrest_error(f"{which}RunCommandOnLoginNode not supported by firecREST")
    both = [key for key in ("Apptainer", "Python") if key in environment]
    if len(both) > 1:
        raise configuration_error(
            f"Only one execution environment is allowed, but in config these have been found: {', '.join(both)}"
        )
    resources = _resources(raw, slurm=bool(firecrest))
    variables = {str(name): str(value) for name, value in _mapping(environment, "Variables").items()}
    for name in _NEVER_PASSED_ON:
        variables.pop(name, None)
    if "CPUsPerNode" in resources:
        variables.setdefault("SRUN_CPUS_PER_TASK", str(resources["CPUsPerNode"]))
    return BackendConfig(
        unicore_url=_cast(raw, "UnicoreApiUrl", str) if not firecrest else None,
        firecrest_url=firecrest.get("ApiUrl"),
        machine=firecrest.get("Machine"),
        resources=resources,
        apptainer=_apptainer(environment),
        python=_python(environment),
        modules=[str(module) for module in environment.get("Modules") or ()],
        variables=variables,
        pre_login=pre_login,
        post_login=post_login,
        pre_compute=_commands(environment, "PreRunCommandOnComputeNode", "\n"),
        post_compute=_commands(environment, "PostRunCommandOnComputeNode", "\n"),
        exclude=[str(pattern) for pattern in raw.get("Exclude") or ()],
    )


def _resources(raw: Mapping[str, Any], *, slurm: bool) -> dict[str, Any]:
    if "Resources" not in raw:
        raise configuration_error("Config is missing entry for key 'Resources'")
    given = _mapping(raw, "Resources")
    resources = {key: _cast(given, key, kind) for key, kind in RESOURCES.items() if key in given}
    if "Queue" not in resources:
        raise configuration_error("Config is missing entry for key 'Queue'")
    runtime = resources.get("Runtime")
    if runtime is not None and not _RUNTIME.fullmatch(runtime):
        raise configuration_error(f"Runtime {runtime!r} is not a number followed by one of s, m, h, d")
    memory = resources.get("MemoryPerNode")
    if slurm and memory is not None:
        try:
            int(memory)
        except ValueError:
            raise configuration_error(f"MemoryPerNode {memory!r} has to be a number without unit for Slurm") from None
    return resources


def _apptainer(environment: Mapping[str, Any]) -> Apptainer | None:
    if "Apptainer" not in environment:
        return None
    raw = _mapping(environment, "Apptainer")
    path = _cast(raw, "Path", str, required=True)
    kind = str(raw.get("Type", "local")).lower()
    if kind not in ("local", "remote"):
        raise configuration_error(f"Apptainer Type has to be local or remote, not {kind!r}")
    if kind == "remote" and not PurePosixPath(path).is_absolute():
        raise configuration_error(f"A remote Apptainer image needs an absolute Path, not {path!r}")
    return Apptainer(path=path, remote=kind == "remote", options=_commands(raw, "Options", " "))


def _python(environment: Mapping[str, Any]) -> str | None:
    if "Python" not in environment:
        return None
    raw = environment["Python"]
    path = str(_cast(raw, "Path", str, required=True) if isinstance(raw, Mapping) else raw)
    if not PurePosixPath(path).is_absolute():
        raise configuration_error(f"Python needs the absolute path of a virtual environment, not {path!r}")
    return path


def _mapping(raw: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = raw.get(key, {})
    if not isinstance(value, Mapping):
        raise configuration_error(f"Config value for '{key}' has to be of type dict")
    return dict(value)


def _cast(raw: Mapping[str, Any], key: str, kind: type, *, required: bool = False) -> Any:
    if key not in raw:
        if required:
            raise configuration_error(f"Config is missing entry for key '{key}'")
        return None
    try:
        if raw[key] is None:
            raise TypeError
        return kind(raw[key])
    except (TypeError, ValueError):
        raise configuration_error(f"Config value for '{key}' has to be of type {kind.__name__}") from None


def _commands(raw: Mapping[str, Any], key: str, separator: str) -> str:
    value = raw.get(key, "")
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return separator.join(str(item) for item in value)
    raise configuration_error(f"Config value for '{key}' has to be of type str or list")
