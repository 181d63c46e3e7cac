"""The Slurm batch script of a training run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from prefect_mantik.backend_config.rules import SLURM_WORD, is_slurm_word
from prefect_mantik.backend_config.schema import BackendConfig, Resources
from prefect_mantik.backend_config.script import training_body
from prefect_mantik.backend_config.unicore import LOG
from prefect_mantik.errors import BackendConfigInvalid


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
    log = f"{directory.rstrip('/')}/{LOG}"
    options = {"job-name": job_name, "account": account, **_resources(config.resources), "output": log, "error": log}
    given = {name: value for name, value in options.items() if value is not None}
    _check(config, given)
    lines = ["#!/bin/bash -l", *(f"#SBATCH --{name}={value}" for name, value in given.items())]
    lines += ["", f"cd {shlex.quote(directory)} || exit"]
    return "\n".join(lines) + "\n" + training_body(config, command=command, variables=variables, before=before)


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
