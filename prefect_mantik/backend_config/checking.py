"""A mapping against the schema: every key, every value, and what must hold between them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel

from prefect_mantik.backend_config import rules
from prefect_mantik.backend_config.findings import ConfigFinding, below, errors_in
from prefect_mantik.backend_config.rules import Rule
from prefect_mantik.backend_config.schema import KINDS, BackendConfig, BackendKind, fields_of, unicore_site
from prefect_mantik.errors import BackendConfigInvalid


def check_backend_config(config: Mapping[str, Any]) -> None:
    """Check a whole compute backend config that goes to the platform.

    Args:
        config: What the user's JSON or YAML file holds.

    Raises:
        BackendConfigInvalid: Lists everything that is wrong, each with its path, such as `Resources.Queue`.
    """
    _raise_errors([*schema_findings(config), *platform_limits(config)])


def parse_backend_config(config: Mapping[str, Any]) -> BackendConfig:
    """Check a whole compute backend config and give it typed, for the roads on which we make the job.

    Commands lose the line ends and semicolons at their end, a single text becomes a list of one, modules are split at
    spaces, and the values of variables become texts by Python's `str`, as on the platform (`true` becomes `True`).

    Args:
        config: What the user's JSON or YAML file holds. It stays as it is.

    Returns:
        The config. Rendered by `training_script`, `unicore_job` or `slurm_script`.

    Raises:
        BackendConfigInvalid: Lists everything that is wrong, each with its path, such as `Resources.Queue`.
    """
    _raise_errors(schema_findings(config))
    return BackendConfig.model_validate(plain(config))


def backend_kind(config: Mapping[str, Any]) -> BackendKind:
    """Tell which kind of site a config is for.

    Args:
        config: A compute backend config.

    Returns:
        The kind, from the one of `UnicoreApiUrl`, `Firecrest` and `SSH` that is there.

    Raises:
        BackendConfigInvalid: None of them is there, or more than one.
    """
    _raise_errors(_kind_findings(config))
    return next(kind for key, kind in KINDS.items() if key in config)


def site_label(config: Mapping[str, Any]) -> str:
    """What to call the site of a config that has no name of its own: UNICORE's site, the machine, or the host."""
    kind = backend_kind(config)
    if kind == "unicore":
        return unicore_site(str(config["UnicoreApiUrl"]))
    return str(config["Firecrest"]["Machine"] if kind == "firecrest" else config["SSH"]["Hostname"])


def with_variables(config: Mapping[str, Any], variables: Mapping[str, str]) -> dict[str, Any]:
    """Add variables to those that a config gives to its job, and write the rest so that the platform can render it.

    The platform puts `&&` behind a command's line end and takes the text `CUDA` for four modules: commands lose what a
    YAML `|` leaves at their end, and a single module or exclusion becomes a list.

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
    findings = [
        *_part_findings("Environment", environment, _SCHEMA["Environment"]),
        *rules.VARIABLES.findings("Environment.Variables", variables),
    ]
    if not findings:
        own = [name for name in environment.get("Variables", {}) if name in variables]
        said = "is set by prefect-mantik: take it out of the config"
        findings = [ConfigFinding(f"Environment.Variables.{name}", said) for name in own]
    _raise_errors(findings)
    copy: dict[str, Any] = plain(config)
    _write_for_the_platform(copy)
    copy.setdefault("Environment", {}).setdefault("Variables", {}).update(variables)
    return copy


def _write_for_the_platform(config: dict[str, Any]) -> None:
    environment = config.get("Environment", {})
    for key in environment:
        if "RunCommandOn" in key:
            texts = rules.command_list(environment[key])
            environment[key] = texts if isinstance(environment[key], list) else texts[0]
    if "Modules" in environment:
        environment["Modules"] = rules.word_list(environment["Modules"])
    if "Exclude" in config:
        config["Exclude"] = rules.text_list(config["Exclude"])


def plain(value: Any) -> Any:
    """A copy in dicts and lists. `copy.deepcopy` would keep what a YAML alias shares, and a change hit two places."""
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def _raise_errors(findings: Iterable[ConfigFinding]) -> None:
    if errors := errors_in(findings):
        raise BackendConfigInvalid(errors)


# --- Keys and values ------------------------------------------------------------------------------------------------


def schema_findings(config: Any) -> list[ConfigFinding]:
    """Everything by which a config breaks the schema, whatever the road."""
    findings = list(_part_findings("", config, BackendConfig))
    if isinstance(config, Mapping):
        findings += [*_kind_findings(config), *_conflicts(config)]
    return findings


def _part_findings(path: str, value: Any, model: type[BaseModel]) -> Iterator[ConfigFinding]:
    fields = fields_of(model)
    if not isinstance(value, Mapping):
        yield ConfigFinding(path, f"must be an object with the keys {', '.join(fields)}")
        return
    for key, field in fields.items():
        if field.is_required() and key not in value:
            yield ConfigFinding(below(path, key), "is missing")
    for key, part in value.items():
        if key not in fields:
            yield _unknown(path, str(key), fields)
        elif part is None:
            yield ConfigFinding(below(path, key), "has no value: give it one or leave the key out")
        elif inner := _model_of(fields[key]):
            yield from _part_findings(below(path, key), part, inner)
        else:
            rule = next(item for item in fields[key].metadata if isinstance(item, Rule))
            yield from rule.findings(below(path, key), part)


def _model_of(field: Any) -> type[BaseModel] | None:
    kinds = get_args(field.annotation) or (field.annotation,)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


# --- Rules across keys ----------------------------------------------------------------------------------------------


def _kind_findings(config: Mapping[str, Any]) -> list[ConfigFinding]:
    given = [key for key in KINDS if key in config]
    if len(given) == 1:
        return []
    return [ConfigFinding("", f"must have exactly one of {', '.join(KINDS)}, not {' and '.join(given) or 'none'}")]


def part_of(config: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """A part of a config that may be broken: empty where it is no object."""
    for key in keys:
        part = config.get(key)
        config = part if isinstance(part, Mapping) else {}
    return config


def _conflicts(config: Mapping[str, Any]) -> Iterator[ConfigFinding]:
    environment = part_of(config, "Environment")
    image = part_of(environment, "Apptainer")
    if "Apptainer" in environment and "Python" in environment:
        yield ConfigFinding("Environment.Python", "is one too many: a run is in either Apptainer or Python")
    if str(image.get("Type")).lower() == "remote" and not str(image.get("Path", "/")).startswith("/"):
        yield ConfigFinding("Environment.Apptainer.Path", "must be absolute for an image of Type remote")
    if "Firecrest" in config:
        for key in ("PreRunCommandOnLoginNode", "PostRunCommandOnLoginNode"):
            if key in environment:
                said = f"is not possible with Firecrest: use {key.replace('Login', 'Compute')}"
                yield ConfigFinding(f"Environment.{key}", said)
    if "UnicoreApiUrl" not in config:
        for key, value in part_of(config, "Resources").items():
            if isinstance(value, str) and rules.is_text(value) and not rules.is_slurm_word(value):
                yield ConfigFinding(f"Resources.{key}", rules.SLURM_WORD)


def platform_limits(config: Any) -> Iterator[ConfigFinding]:
    """What the platform refuses although the schema allows it: its own roads to Slurm read memory as a number."""
    if isinstance(config, Mapping) and "UnicoreApiUrl" not in config:
        memory = str(part_of(config, "Resources").get("MemoryPerNode", ""))
        if re.fullmatch(r"[0-9]+[KMGT](iB|B)?", memory):
            said = "must be a number of megabytes, without a unit, for Slurm (Firecrest, SSH) through the platform"
            yield ConfigFinding("Resources.MemoryPerNode", said)


# --- Unknown keys ---------------------------------------------------------------------------------------------------


def _schema(path: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    yield path, model
    for key, field in fields_of(model).items():
        if inner := _model_of(field):
            yield from _schema(below(path, key), inner)


_SCHEMA = dict(_schema("", BackendConfig))
_PLACES = {key.casefold(): below(path, key) for path, model in _SCHEMA.items() for key in fields_of(model)}
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


def _unknown(path: str, key: str, keys: Iterable[str]) -> ConfigFinding:
    place = below(path, key)
    modern = _RENAMED.get(place) or _RENAMED.get(key) or _PLACES.get(key.casefold())
    said = f"it is {modern} today" if modern else f"known here: {', '.join(keys)}"
    return ConfigFinding(place, f"is not known; {said}")
