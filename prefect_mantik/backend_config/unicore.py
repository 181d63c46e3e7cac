"""The UNICORE job of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefect_mantik.backend_config.schema import BackendConfig
from prefect_mantik.backend_config.script import login_script, training_script

LOG = "mantik.log"

SITE_LOG = "mantik.err"
"""Of the shells and the batch system around the script: the script itself writes all it has into the log. Not the same
file: a server opens one for each stream, and lines get lost."""


def unicore_job(
    config: BackendConfig,
    *,
    command: str,
    variables: Mapping[str, str],
    account: str | None,
    before: Sequence[str] = (),
    gpu_resource: str = "GPUsPerNode",
) -> dict[str, Any]:
    """Describe a training run as a UNICORE job that waits for its files.

    `Executable` and `Arguments` are two plain words: servers differ in how they quote them. What runs is in scripts
    that come with the job.

    Args:
        config: The compute backend config.
        command: The entry point's command, for a shell.
        variables: Variables of ours. They arrive literally, and win over the config's. No secrets: the job's owner and
            the site's operators can read a job.
        account: The compute budget account.
        before: Lines of bash that run first, on the compute node and, where the config has commands for it, before
            that on the login node: running them twice must do no harm.
        gpu_resource: What the site calls GPUs per node. The platform sends `GPUS`.

    Returns:
        The job description, without name and tags.
    """
    environment = config.environment
    scripts = {"mantik.sh": training_script(config, command=command, variables=variables, before=before)}
    job: dict[str, Any] = {
        "Resources": _resources(config, gpu_resource),
        "Executable": "/bin/bash",
        "Arguments": ["mantik.sh"],
        "Stdout": LOG,
        "Stderr": SITE_LOG,
        "haveClientStageIn": "true",
    }
    if account:
        job["Project"] = account
    if environment.before_on_login_node:
        commands = environment.before_on_login_node
        scripts["mantik-before.sh"] = login_script(config, commands, variables=variables, before=before)
        job |= {"User precommand": "/bin/bash mantik-before.sh", "RunUserPrecommandOnLoginNode": True}
    if environment.after_on_login_node:
        scripts["mantik-after.sh"] = login_script(config, environment.after_on_login_node, variables=variables)
        job |= {"User postcommand": "/bin/bash mantik-after.sh", "RunUserPostcommandOnLoginNode": True}
    return job | {"Imports": [{"To": name, "Data": text} for name, text in scripts.items()]}


def _resources(config: BackendConfig, gpu_resource: str) -> dict[str, Any]:
    asked = config.resources.model_dump(by_alias=True, exclude_none=True)
    if "GPUsPerNode" in asked:
        asked[gpu_resource] = asked.pop("GPUsPerNode")
    if config.resources.memory_kibibytes is None:
        asked.pop("MemoryPerNode", None)
    if not config.resources.runtime_seconds:  # UNICORE knows no "unlimited": a site's range begins at a second
        asked.pop("Runtime", None)
    return asked
