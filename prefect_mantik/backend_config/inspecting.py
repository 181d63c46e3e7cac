"""A config as a user wrote it: a file, a text or what either holds, with everything there is to say about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from prefect_mantik.backend_config import rules
from prefect_mantik.backend_config.advice import advice
from prefect_mantik.backend_config.checking import parse_backend_config, plain, platform_limits, schema_findings
from prefect_mantik.backend_config.findings import ConfigFinding, Severity, errors_in
from prefect_mantik.backend_config.reading import Document, read_file, read_text
from prefect_mantik.backend_config.shell import command_findings, script_findings
from prefect_mantik.errors import BackendConfigInvalid


def inspect_backend_config(
    source: Path | str | Mapping[str, Any], *, command: str | None = None
) -> list[ConfigFinding]:
    """Find everything that is wrong with a config, or worth a word.

    Args:
        source: A file, its text (YAML or JSON), or what it holds.
        command: The command that will run, where it is known: bash reads what the config makes of it.

    Returns:
        The findings, with lines where there is a text.
    """
    if isinstance(source, Mapping):
        return list(_findings(source, command))
    document = _read(source)
    findings = list(document.findings)
    if document.readable:
        findings += _findings(document.value, command)
        if isinstance(source, Path):
            findings += _excludes_itself(document.value, source.name)
    return list(dict.fromkeys(map(document.located, findings)))


def load_backend_config(path: Path) -> dict[str, Any]:
    """Read a config from a file, and check it.

    Args:
        path: A file of YAML or JSON.

    Returns:
        What it holds, as it would be put into a block: `check_backend_config` has nothing to say of it, unless it is
        for a direct road only.

    Raises:
        BackendConfigInvalid: Lists everything that is wrong, each with its line and path.
    """
    if errors := errors_in(inspect_backend_config(path)):
        raise BackendConfigInvalid([f"{path.name}, {error}" for error in errors])
    loaded: dict[str, Any] = plain(_read(path).value)
    return loaded


def _read(source: Path | str) -> Document:
    if isinstance(source, str):
        return read_text(source)
    text, findings = read_file(source)
    return Document(None, findings) if findings else read_text(text)


def _findings(config: Any, command: str | None) -> Iterator[ConfigFinding]:
    broken = schema_findings(config)
    yield from broken
    if not isinstance(config, Mapping):
        return
    unreadable = list(command_findings(config))
    yield from unreadable
    if not broken and not unreadable:
        yield from script_findings(parse_backend_config(config), command or "true")
    for limit in platform_limits(config):
        severity: Severity = "error" if "SSH" in config else "advice"  # there is no other road to an SSH site
        yield ConfigFinding(limit.path, limit.message, severity=severity)
    yield from advice(config)


def _excludes_itself(config: Any, name: str) -> Iterator[ConfigFinding]:
    entries = rules.text_list(config.get("Exclude", [])) if isinstance(config, Mapping) else []
    for index, entry in enumerate(entries):
        if isinstance(entry, str) and fnmatchcase(name, entry.removeprefix("./").removeprefix("**/")):
            path = f"Exclude[{index}]" if isinstance(config["Exclude"], list) else "Exclude"
            yield ConfigFinding(path, f"leaves out this file, {name}, which the platform needs: name it otherwise")
