"""Turn what a site is sent (a UNICORE job description, a Slurm script) into something to run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from prefect_mantik.sandbox.jobs import JobRequest

DEFAULT_WALLTIME = 3600.0
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SBATCH = re.compile(r"^#SBATCH\s+--([a-z-]+)=(.*)$", re.MULTILINE)
_EXPORT = re.compile(r"^export ([A-Za-z_][A-Za-z0-9_]*)=(.*)$", re.MULTILINE)


def from_unicore(description: Mapping[str, Any]) -> JobRequest:
    """Read a UNICORE job description.

    Args:
        description: The job description as a site is sent it.
    """
    resources = description.get("Resources", {})
    environment = {name: str(value) for name, value in description.get("Environment", {}).items()}
    exports = "".join(f"export {name}={_double_quoted(value)}\n" for name, value in environment.items())
    # The user's variables come after the site's own: they may refer to $UC_WORKING_DIRECTORY, which double quotes
    # leave to the shell.
    prologue = f'export UC_WORKING_DIRECTORY="$PWD"\n{exports}'
    arguments = "".join(f" {argument}" for argument in description.get("Arguments", ()))
    before, after = description.get("User precommand", ""), description.get("User postcommand", "")
    return JobRequest(
        name=str(description.get("Name", "UNICORE_Job")),
        queue=str(resources.get("Queue", "batch")),
        nodes=int(resources.get("Nodes", 1)),
        walltime=_unicore_seconds(str(resources.get("Runtime", "0"))),
        script=f"{prologue}{description['Executable']}{arguments}\n",
        before=f"{prologue}{before}\n" if before else "",
        after=f"{prologue}{after}\n" if after else "",
        environment=environment,
        output=str(description.get("Stdout", "stdout")),
        description=description,
    )


def from_slurm(script: str) -> JobRequest:
    """Read a Slurm batch script.

    Args:
        script: The script with its `#SBATCH` lines.
    """
    options = {name: value.strip().strip("'\"") for name, value in _SBATCH.findall(script)}
    return JobRequest(
        name=options.get("job-name", "sbatch"),
        queue=options.get("partition", "batch"),
        nodes=int(options.get("nodes", 1)),
        walltime=_slurm_seconds(options.get("time", "0")),
        script=script,
        login_shell=script.partition("\n")[0].rstrip().endswith(" -l"),
        environment=dict(_EXPORT.findall(script)),
        output=options.get("output", "slurm.out"),
    )


def _double_quoted(value: str) -> str:
    return '"' + re.sub(r'(["`])', r"\\\1", value) + '"'


def _unicore_seconds(text: str) -> float:
    number, unit = (text[:-1], _UNITS[text[-1]]) if text[-1:] in _UNITS else (text, 1)
    return float(number) * unit or DEFAULT_WALLTIME


def _slurm_seconds(text: str) -> float:
    days, _, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if len(parts) < 3:  # Slurm reads a lone number as minutes
        parts = [0, *parts, 0][-3:] if len(parts) == 1 else [0, *parts]
    hours, minutes, seconds = parts
    return float(int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds) or DEFAULT_WALLTIME
