"""Write the job for a site as the platform writes it, its quirks included."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from prefect_mantik.sandbox.backend_config import BackendConfig

LOG_NAME = "mantik.log"
SCRIPT_NAME = "mantik.sh"
_UNICORE_NAMES = {"GPUsPerNode": "GPUS"}
_SBATCH_NAMES = {
    "Queue": "partition",
    "Runtime": "time",
    "Nodes": "nodes",
    "TotalCPUs": "ntasks",
    "CPUsPerNode": "ntasks-per-node",
    "GPUsPerNode": "gpus-per-node",
    "MemoryPerNode": "mem",
    "Reservation": "reservation",
    "NodeConstraints": "constraint",
    "QoS": "qos",
}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def command_chain(config: BackendConfig, command: str) -> str:
    """Put what runs on the compute node into its order: modules, pre-commands, execution, post-commands.

    Args:
        config: The run's backend config.
        command: The entry point's command.
    """
    if config.apptainer is not None:
        image = config.apptainer.path if config.apptainer.remote else PurePosixPath(config.apptainer.path).name
        words = ["srun apptainer run", config.apptainer.options, image, command]
        command = " ".join(word for word in words if word)
    elif config.python is not None:
        command = f"source {config.python}/bin/activate && {command}"
    # A list of commands is joined by newlines before this, so that only its last line takes part in the chain.
    chain = " && ".join(part for part in (config.pre_compute, command, config.post_compute) if part)
    return f"module load {' '.join(config.modules)}\n{chain}" if config.modules else chain


def mantik_script(config: BackendConfig, command: str) -> str:
    """Write the script that is uploaded to a UNICORE site with the project.

    Args:
        config: The run's backend config.
        command: The entry point's command.
    """
    return (
        f'#!/bin/bash\necho "Submitted bash script"\ncat $(dirname "$(realpath "$0")")/{SCRIPT_NAME}\n'
        f"{command_chain(config, command)}\n"
    )


def unicore_job(config: BackendConfig, *, account: str | None, environment: Mapping[str, str]) -> dict[str, Any]:
    """Write the UNICORE job description.

    Args:
        config: The run's backend config.
        account: The compute budget account.
        environment: The run's own variables; those of the config win over them.
    """
    description: dict[str, Any] = {
        "Project": account,
        "Resources": {_UNICORE_NAMES.get(key, key): value for key, value in config.resources.items()},
        "Executable": f'source $(dirname "$(realpath "$0")")/{SCRIPT_NAME}',
        "Arguments": [],
        "Stdout": LOG_NAME,
        "Stderr": LOG_NAME,
        "Environment": {
            **environment,
            **config.variables,
            "MANTIK_WORKING_DIRECTORY": "$UC_WORKING_DIRECTORY",
        },
        "RunUserPrecommandOnLoginNode": True,
        "RunUserPostcommandOnLoginNode": True,
    }
    if config.pre_login:
        description["User precommand"] = config.pre_login
    if config.post_login:
        description["User postcommand"] = config.post_login
    return description


def slurm_script(
    config: BackendConfig, command: str, *, run_id: str, directory: Path, environment: Mapping[str, str]
) -> str:
    """Write the batch script for a FirecREST site.

    Args:
        config: The run's backend config.
        command: The entry point's command.
        run_id: The MLflow run's id.
        directory: The job's run directory.
        environment: The run's own variables; those of the config win over them.
    """
    lines = ["#!/bin/bash -l", f"#SBATCH --job-name='mantik-{run_id}'"]
    for key, value in config.resources.items():
        text = _slurm_time(value) if key == "Runtime" else str(value)
        if key != "MemoryPerNode" or int(value) >= 0:
            lines.append(f"#SBATCH --{_SBATCH_NAMES[key]}={text}")
    lines += [f"#SBATCH --{stream}={directory}/{LOG_NAME}" for stream in ("output", "error")]
    lines += ['echo "Submitted batch script"', f"cat {directory}/script.batch", f"cd {directory}"]
    # Without quotes, as the platform does: a value with a space in it does not arrive whole.
    variables = {**environment, **config.variables}
    lines += [f"export MANTIK_WORKING_DIRECTORY={directory}"]
    lines += [f"export {name}={value}" for name, value in variables.items()]
    return "\n".join([*lines, command_chain(config, command), ""])


def _slurm_time(runtime: str) -> str:
    if runtime == "0":
        return "0"
    seconds = int(runtime[:-1]) * _SECONDS[runtime[-1]]
    days, rest = divmod(seconds, 86400)
    return f"{days}-{rest // 3600:02}:{rest % 3600 // 60:02}:{rest % 60:02}"
