"""Whether bash can read what will run. Nothing is executed."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

from prefect_mantik.backend_config import rules
from prefect_mantik.backend_config.checking import part_of
from prefect_mantik.backend_config.findings import ConfigFinding
from prefect_mantik.backend_config.schema import BackendConfig
from prefect_mantik.backend_config.script import login_script, training_script


def script_findings(config: BackendConfig, command: str) -> Iterator[ConfigFinding]:
    """Let bash read the scripts that a config makes.

    Args:
        config: The config.
        command: The entry point's command.

    Yields:
        Where bash stumbles; nothing where there is no bash on this machine.
    """
    if complaint := bash_complaint(command):
        yield ConfigFinding("", f"gets a command that bash cannot read: {complaint}")
        return
    environment = config.environment
    scripts = [
        training_script(config, command=command, variables={}),
        login_script(config, environment.before_on_login_node, variables={}),
        login_script(config, environment.after_on_login_node, variables={}),
    ]
    for script in scripts:
        if complaint := bash_complaint(script):
            yield ConfigFinding("Environment", f"makes a script that bash cannot read: {complaint}")


def command_findings(config: Mapping[str, Any]) -> Iterator[ConfigFinding]:
    """Let bash read each command of a config, which may be broken in other ways.

    Args:
        config: What the user's file holds.

    Yields:
        Where bash stumbles; nothing where there is no bash on this machine.
    """
    for key, value in part_of(config, "Environment").items():
        texts = rules.command_list(value)
        if "RunCommandOn" not in str(key) or not all(isinstance(text, str) for text in texts):
            continue
        if complaint := bash_complaint("\n".join(texts)):  # as a whole: a loop may be spread over a list
            alone = [bash_complaint(text) for text in texts]
            index = next((index for index, said in enumerate(alone) if said), 0)
            place = f"[{index}]" if isinstance(value, list) and any(alone) else ""
            yield ConfigFinding(f"Environment.{key}{place}", f"cannot be read by bash: {alone[index] or complaint}")


def bash_complaint(script: str) -> str | None:
    """What bash says of a script's syntax; None where it has nothing to say, or there is no bash."""
    bash = shutil.which("bash")
    if bash is None:
        return None
    done = subprocess.run(
        [bash, "-n"],
        input=script.encode(errors="replace"),
        capture_output=True,
        env={"LC_ALL": "C"},  # of its own: no functions from here, and messages in English
        check=False,
        timeout=20,
    )
    if done.returncode == 0:
        return None
    first = done.stderr.decode(errors="replace").partition("\n")[0]
    return re.sub(r"^.*?: line \d+: ", "", first) or "syntax error"
