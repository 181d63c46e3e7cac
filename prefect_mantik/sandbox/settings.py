"""How a sandbox is set up, and the switches that can still be turned while it runs."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args, get_type_hints

RunName = Literal["suffix", "unchanged"]
RunAppears = Literal["at-once", "later"]
RestMode = Literal["hybrid", "rest"]


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass(frozen=True, kw_only=True)
class SandboxSettings:
    """What a sandbox is started with; every field is a switch of the command line too."""

    port: int = field(default=0, metadata=_help("port on 127.0.0.1; 0 takes a free one"))
    state_dir: Path | None = field(
        default=None, metadata=_help("keep everything here; by default a temporary directory, removed at the end")
    )
    token_lifetime: float = field(default=3600.0, metadata=_help("seconds an access token lives"))
    refresh_lifetime: float = field(default=86400.0, metadata=_help("seconds a refresh token lives"))
    run_name: RunName = field(
        default="suffix", metadata=_help("the MLflow run's name: the submitted one plus a suffix, or unchanged")
    )
    run_appears: RunAppears = field(
        default="at-once", metadata=_help("the MLflow run exists when the submit is answered, or only later")
    )
    run_appears_after: float = field(default=3.0, metadata=_help("with run_appears=later: how many seconds later"))
    close_dead_runs: bool = field(default=True, metadata=_help("the platform closes the MLflow run of a job that died"))
    all_endpoints: bool = field(
        default=False, metadata=_help("also serve the endpoints that nobody has seen on the real platform")
    )
    queue_delay: float = field(
        default=1.0, metadata=_help("seconds a job waits in the queue at least; differs a little by site")
    )
    unicore_password_login: bool = field(
        default=True, metadata=_help("the UNICORE sites take a password for more than the base resource and /token")
    )
    unicore_session_lifetime: float = field(default=28800.0, metadata=_help("seconds a UNICORE security session lives"))
    unicore_job_lifetime: float = field(
        default=2592000.0, metadata=_help("seconds after which a UNICORE job and its directory are gone")
    )
    unicore_status_lag: float = field(
        default=0.2, metadata=_help("how many seconds late UNICORE learns what happens in the batch system")
    )
    unicore_list_lag: float = field(
        default=0.0, metadata=_help("seconds until a UNICORE job that was accepted shows in the list of jobs")
    )
    unicore_past_end: float = field(
        default=30.0, metadata=_help("seconds UNICORE keeps those waiting who ask for bytes past the end of a file")
    )
    unicore_projects: str = field(
        default="", metadata=_help("projects the UNICORE sites know, separated by commas; empty: any")
    )
    firecrest_token_lifetime: float = field(
        default=300.0, metadata=_help("seconds an access token of the FirecREST site lives")
    )
    firecrest_command_timeout: float = field(
        default=5.0, metadata=_help("seconds after which FirecREST gives a command at the site up")
    )
    firecrest_command_time: float = field(
        default=0.0, metadata=_help("seconds a command at the FirecREST site takes at least")
    )
    firecrest_max_sessions: int = field(
        default=0, metadata=_help("SSH channels that FirecREST may have open for one user; 0: any number")
    )
    firecrest_rest_mode: RestMode = field(
        default="hybrid", metadata=_help("how the system cedar-rest speaks to its batch system")
    )
    tls: bool = field(default=False, metadata=_help("also serve over https, on a second port"))
    slots: int = field(default=2, metadata=_help("nodes of each site"))
    grace: float = field(default=2.0, metadata=_help("seconds between SIGTERM and SIGKILL of a job"))
    faults: Path | None = field(default=None, metadata=_help("JSON file with a list of fault rules to begin with"))
    mlflow_command: str = field(default="", metadata=_help("another MLflow to serve with, e.g. /other/venv/bin/mlflow"))
    job_python: str = field(default=sys.executable, metadata=_help("the python that jobs find on their PATH"))


@dataclass(kw_only=True)
class Switches:
    """The part of the settings that the control API may change while the sandbox runs."""

    token_lifetime: float
    refresh_lifetime: float
    run_name: RunName
    run_appears: RunAppears
    run_appears_after: float
    close_dead_runs: bool
    all_endpoints: bool
    queue_delay: float
    unicore_password_login: bool
    unicore_session_lifetime: float
    unicore_job_lifetime: float
    unicore_status_lag: float
    unicore_list_lag: float
    unicore_past_end: float
    unicore_projects: str
    firecrest_token_lifetime: float
    firecrest_command_timeout: float
    firecrest_command_time: float
    firecrest_max_sessions: int
    firecrest_rest_mode: RestMode

    @classmethod
    def from_settings(cls, settings: SandboxSettings) -> Switches:
        """Take the initial positions from the settings."""
        return cls(**{f.name: getattr(settings, f.name) for f in dataclasses.fields(cls)})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the parser one option per setting."""
    hints = get_type_hints(SandboxSettings)
    for item in dataclasses.fields(SandboxSettings):
        flag = "--" + item.name.replace("_", "-")
        hint, text = hints[item.name], item.metadata["help"]
        if hint is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=item.default, help=text)
        elif choices := [choice for choice in get_args(hint) if isinstance(choice, str)]:
            parser.add_argument(flag, choices=choices, default=item.default, help=text)
        else:
            kind = hint if hint in (int, float, str) else Path
            parser.add_argument(flag, type=kind, default=item.default, help=text)


def from_arguments(arguments: argparse.Namespace) -> SandboxSettings:
    """Build the settings from what `add_arguments` made the parser read."""
    return SandboxSettings(**{f.name: getattr(arguments, f.name) for f in dataclasses.fields(SandboxSettings)})


def to_arguments(switches: Mapping[str, object]) -> list[str]:
    """Write switches given as keywords as a command line.

    Args:
        switches: Names of `SandboxSettings` fields with their values.
    """
    unknown = switches.keys() - {f.name for f in dataclasses.fields(SandboxSettings)}
    if unknown:
        raise TypeError(f"The sandbox has no such switch: {', '.join(sorted(unknown))}")
    arguments = []
    for name, value in switches.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            arguments.append(f"--{flag}={os.fspath(value) if isinstance(value, os.PathLike) else value}")
    return arguments
