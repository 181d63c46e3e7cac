"""What the schema allows and a user will most likely regret."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from prefect_mantik.backend_config import rules
from prefect_mantik.backend_config.checking import part_of
from prefect_mantik.backend_config.findings import ConfigFinding

_GPU_QUEUE = re.compile(r"gpu|booster|(a|h|v|gh|gb)[12]00|mi[123]\d\d", re.IGNORECASE)

_RETIRED = {
    "UnicoreApiUrl": (r"zam2125\.", "names a gateway that was retired: https://unicore.fz-juelich.de/<SITE>/rest/core"),
    "Firecrest.ApiUrl": (
        r"://firecrest\.cscs\.ch|/firecrest/v1(/|$)",
        "names FirecREST's API of version 1, which was retired. Version 2: https://<host>/<platform>/firecrest/v2; "
        "at CSCS: https://api.cscs.ch/<hpc, ml or cw>/firecrest/v2, with tokens from "
        "https://auth.cscs.ch/auth/realms/firecrest-clients/protocol/openid-connect/token",
    ),
}

_UNICORE_PATH = re.compile(r"/rest/core/?$")

_RUN_ON = ("PreRunCommandOn", "PostRunCommandOn")


def advice(config: Mapping[str, Any]) -> Iterator[ConfigFinding]:
    """Say what a config, broken or not, will most likely not do as meant.

    Args:
        config: What the user's file holds.
    """
    for path, message in _advice(config):
        yield ConfigFinding(path, message, severity="advice")


def _advice(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield from _resources(config)
    yield from _retired(config)
    if isinstance(url := config.get("UnicoreApiUrl"), str) and not _UNICORE_PATH.search(url):
        yield "UnicoreApiUrl", "does not end in /rest/core: UNICORE's REST API is at https://<gateway>/<SITE>/rest/core"
    environment = part_of(config, "Environment")
    for name, value in part_of(environment, "Variables").items():
        if isinstance(value, bool):
            yield f"Environment.Variables.{name}", f'is true or false in YAML and arrives as the text "{value}"'
        elif isinstance(value, int | float):
            yield f"Environment.Variables.{name}", "is a number and arrives as Python writes it: put it in quotes"
    for key, value in environment.items():
        if str(key).startswith(_RUN_ON):
            yield from _commands(f"Environment.{key}", value, login_ignored="SSH" in config and "Login" in key)


def _resources(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    resources = part_of(config, "Resources")
    if not resources:
        return
    if "Runtime" not in resources:
        yield "Resources.Runtime", "is not given: the site's default may end the job early"
    if "GPUsPerNode" not in resources and _GPU_QUEUE.search(str(resources.get("Queue", ""))):
        yield "Resources.GPUsPerNode", "is not given, and the queue looks like one with GPUs"
    if "UnicoreApiUrl" in config and re.fullmatch("[1-9][0-9]*", str(resources.get("MemoryPerNode", ""))):
        yield "Resources.MemoryPerNode", "is a number of bytes for UNICORE: give it a unit, such as 12GiB"


def _retired(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for path in _RETIRED:
        *parents, key = path.split(".")
        if message := retired(path, str(part_of(config, *parents).get(key, ""))):
            yield path, message


def retired(path: str, url: str) -> str:
    """What to say of a URL that names a retired host or API; empty for any other.

    Args:
        path: Where in a config it stands, such as `Firecrest.ApiUrl`.
        url: The URL.
    """
    pattern, message = _RETIRED[path]
    return message if re.search(pattern, url) else ""


def _commands(path: str, value: Any, *, login_ignored: bool) -> Iterator[tuple[str, str]]:
    if login_ignored:
        yield path, "is never run with SSH: use the commands on the compute node"
    for index, text in enumerate(item for item in rules.command_list(value) if isinstance(item, str)):
        place = f"{path}[{index}]" if isinstance(value, list) else path
        if re.search(r"(^|[;&|]\s*)source/", text, re.MULTILINE):
            yield place, 'runs a program in a directory "source": is a space missing behind the word?'
        if re.search(r"(^|\s)#[^'\"\n]*$", text):
            yield place, "ends with a comment, in which the platform hides what comes next: put it on a line before"
