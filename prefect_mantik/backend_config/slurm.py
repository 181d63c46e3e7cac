"""The Slurm batch script of a training run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from prefect_mantik.backend_config.rules import SLURM_WORD, is_slurm_word
from prefect_mantik.backend_config.schema import BackendConfig, Resources
from prefect_mantik.backend_config.script import training_body
from prefect_mantik.backend_config.unicore import LOG
from prefect_mantik.errors import BackendConfigInvalid

_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"

_WHO = 'export USER="${USER:-$(id -un)}" PATH && export HOME="${HOME:-$(eval echo "~$USER")}"'
"""A job that came by Slurm's REST API knows none of the three."""


def slurm_script(
    config: BackendConfig,
    *,
    job_name: str,
    directory: str,
    command: str,
    variables: Mapping[str, str],
    account: str | None,
    before: Sequence[str] = (),
) -> str:
    """Write a training run as a batch script for Slurm.

    Args:
        config: The compute backend config.
        job_name: The job's name.
        directory: Absolute path of the run's directory at the site. It must be there when the job starts.
        command: The entry point's command, for a shell.
        variables: Variables of ours. They arrive literally, and win over the config's.
        account: The compute budget account.
        before: Lines of bash that run before anything of the config's, as they are.

    Returns:
        The script.

    Raises:
        BackendConfigInvalid: A value cannot stand in an `#SBATCH` line, or there are commands for the login node.
    """
    log = _log(directory)
    options = {"job-name": job_name, "account": account, **_resources(config.resources), "output": log, "error": log}
    # A job that is put back into the queue begins again: what it wrote before stays.
    given = {name: value for name, value in options.items() if value is not None} | {"open-mode": "append"}
    _check(config, given)
    lines = ["#!/bin/bash -l", *(f"#SBATCH --{name}={value}" for name, value in given.items())]
    lines += ["", _WHO, f"cd {shlex.quote(directory)} || exit"]
    return "\n".join(lines) + "\n" + training_body(config, command=command, variables=variables, before=before)


def slurm_fields(
    config: BackendConfig, *, job_name: str, directory: str, account: str | None, reads_directives: bool
) -> dict[str, Any]:
    """What a FirecREST server is told of a job in fields, beside its script.

    A server that runs `sbatch` makes options of them, which win over `SBATCH_*` variables of a login shell as `#SBATCH`
    lines do not. One that asks Slurm's REST API reads no `#SBATCH` lines, and gives the job no variables but those that
    are sent.

    Args:
        config: The compute backend config.
        job_name: The job's name.
        directory: Absolute path of the run's directory at the site.
        account: The compute budget account.
        reads_directives: Whether `#SBATCH` lines count.

    Returns:
        Fields of the job description of FirecREST's API (version 2), without script and directory.

    Raises:
        BackendConfigInvalid: The config asks for what no field can say. The job would run without it.
    """
    if not reads_directives:
        refuse_unsendable(config)
    resources, log = config.resources, _log(directory)
    fields = {
        "name": job_name,
        "account": account,
        "partition": resources.queue,
        "reservation": resources.reservation,
        "constraints": resources.node_constraints,
        "standardOutput": log,
        "standardError": log,
        "env": None if reads_directives else {"PATH": _PATH},
    }
    return {name: value for name, value in fields.items() if value is not None}


def refuse_unsendable(config: BackendConfig) -> None:
    """Refuse what `slurm_fields` cannot say.

    Raises:
        BackendConfigInvalid: The config asks for what no field can say. The job would run without it.
    """
    resources = config.resources
    unsendable = {
        "Runtime": resources.runtime is not None,
        "Nodes": (resources.nodes or 1) > 1,
        "TotalCPUs": (resources.total_cpus or 1) > 1,
        "CPUsPerNode": (resources.cpus_per_node or 1) > 1,
        "GPUsPerNode": bool(resources.gpus_per_node),
        "MemoryPerNode": resources.memory_kibibytes is not None,
        "QoS": resources.qos is not None,
    }
    findings = [
        f"Resources.{name} cannot be sent: FirecREST passes jobs of this system to Slurm's REST API, without #SBATCH "
        "lines. Leave it out, and what the partition gives by default counts"
        for name, given in unsendable.items()
        if given
    ]
    if findings:
        raise BackendConfigInvalid(findings)


def _log(directory: str) -> str:
    return f"{directory.rstrip('/')}/{LOG}"


def _check(config: BackendConfig, options: Mapping[str, str]) -> None:
    findings = [f"#SBATCH --{name} {SLURM_WORD}" for name, value in options.items() if not is_slurm_word(value)]
    if "%" in options["output"]:
        findings.append("#SBATCH --output must hold no %, which Slurm would replace")
    if config.environment.before_on_login_node or config.environment.after_on_login_node:
        findings.append("Environment: commands on the login node are not possible here: use those on the compute node")
    if findings:
        raise BackendConfigInvalid(findings)


def _resources(resources: Resources) -> dict[str, str | None]:
    numbers = {
        "nodes": resources.nodes,
        "ntasks": resources.total_cpus,
        "ntasks-per-node": resources.cpus_per_node,
        "gpus-per-node": resources.gpus_per_node,
    }
    return {
        "partition": resources.queue,
        "time": _time(resources.runtime_seconds),
        **{name: None if number is None else str(number) for name, number in numbers.items()},
        "mem": _memory(resources),
        "reservation": resources.reservation,
        "constraint": resources.node_constraints,
        "qos": resources.qos,
    }


def _time(seconds: int | None) -> str | None:
    if not seconds:
        return None if seconds is None else "0"
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}-{hours:02}:{minutes:02}:{seconds:02}"


def _memory(resources: Resources) -> str | None:
    kibibytes = resources.memory_kibibytes
    if kibibytes is None:
        return None
    return f"{kibibytes // 1024}M" if kibibytes % 1024 == 0 else f"{kibibytes}K"
