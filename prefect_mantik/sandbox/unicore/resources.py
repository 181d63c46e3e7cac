"""What a UNICORE site offers of each resource, and how requests for them are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefect_mantik.sandbox.jobs import JobFailed
from prefect_mantik.sandbox.scheduler import QUEUES

_MEBIBYTE = 1024**2
_GIBIBYTE = 1024**3
_UNITS = {
    "": 1,
    "s": 1,
    "sec": 1,
    "m": 60,
    "min": 60,
    "h": 3600,
    "d": 86400,
    "k": 1024,
    "kb": 1024,
    "kib": 1024,
    "mb": _MEBIBYTE,
    "mib": _MEBIBYTE,
    "g": _GIBIBYTE,
    "gb": _GIBIBYTE,
    "gib": _GIBIBYTE,
}
_QUANTITY = re.compile(r"\s*((?:-?\d+(?:\.\d+)?)?)\s*([A-Za-z]*)\s*")
_WHOLE = re.compile(r"-?\d+")
_WITH_UNIT = {"Runtime", "MemoryPerNode"}
_NUMBERS = {"Nodes", "CPUsPerNode", "TotalCPUs", "GPUsPerNode", "Runtime", "MemoryPerNode"}
MEBIBYTE = _MEBIBYTE
_ALIASES = {"Memory": "MemoryPerNode"}
# Passed on to the batch system whatever they say.
_UNCHECKED = {"Project", "NodeConstraints", "QoS", "Exclusive", "Reservation", "ArraySize", "ArrayLimit"}


@dataclass(frozen=True)
class Resources:
    """Resources that a job asks for.

    Attributes:
        queue: The partition.
        values: The numbers of those that are one.
        listed: All of them, as the job's log gives them.
    """

    queue: str
    values: dict[str, int]
    listed: str

    def number(self, name: str) -> int:
        """Give a resource as jobs find it in their environment: -1 stands for none."""
        return self.values.get(name, -1)


def partitions(slots: int) -> dict[str, dict[str, tuple[int, int]]]:
    """Give the range of each resource in each partition.

    Args:
        slots: The nodes of the site.
    """
    whole = {
        "Nodes": (1, slots),
        "CPUsPerNode": (1, 64),
        "TotalCPUs": (1, 64 * slots),
        "GPUsPerNode": (0, 4),
        "Runtime": (1, 86400),
        "MemoryPerNode": (_MEBIBYTE, 256 * _GIBIBYTE),
    }
    return {QUEUES[0]: whole, QUEUES[1]: {**whole, "GPUsPerNode": (0, 1), "Runtime": (1, 7200)}}


def read_resources(given: Mapping[str, Any], project: str) -> Resources:
    """Read the resources of a job.

    Args:
        given: The `Resources` of the job description.
        project: The project named beside them.

    Raises:
        JobFailed: A value cannot be read.
    """
    asked = {_ALIASES.get(name, name): value for name, value in given.items()}
    if project:
        asked["Project"] = project
    chosen: dict[str, Any] = {"Queue": asked.pop("Queue", QUEUES[0]), **asked}
    whole_nodes = "TotalCPUs" not in asked
    if whole_nodes and not {"Nodes", "CPUsPerNode"} & asked.keys():
        chosen["CPUsPerNode"] = 1
    chosen.setdefault("Runtime", 3600)
    if whole_nodes:
        chosen.setdefault("Nodes", 1)
    values = {}
    for name in _NUMBERS & chosen.keys():
        number = _quantity(name, chosen[name])
        if number is not None:
            values[name] = chosen[name] = number
    listed = ", ".join(f"{name}={value}" for name, value in chosen.items())
    return Resources(str(chosen["Queue"]), values, listed)


def check_resources(given: Mapping[str, Any], resources: Resources, *, slots: int, projects: frozenset[str]) -> None:
    """Refuse what a site does not have.

    Args:
        given: The `Resources` of the job description.
        resources: The same, as they were read.
        slots: The nodes of the site.
        projects: Those it knows; empty stands for any.

    Raises:
        JobFailed: The site does not have them.
    """
    queue = resources.queue
    ranges = partitions(slots).get(queue)
    if ranges is None:
        raise JobFailed(_refused(f"Resource request <Queue = {queue}> is out of range."))
    for name in (_ALIASES.get(name, name) for name in given):
        if name == "Queue" or name in _UNCHECKED:
            continue
        if name not in ranges:
            raise JobFailed(_refused(f"Resource <{name}> is not available for partition <{queue}>"))
        lowest, highest = ranges[name]
        value = resources.values.get(name)
        if value is None or not lowest <= value <= highest:
            shown = given.get(name, "null") if value is None else value
            raise JobFailed(_refused(f"Resource request <{name}={shown}> is out of range."))
    project = resources.listed.partition("Project=")[2].partition(",")[0]
    if projects and project and project not in projects:
        cause = "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified"
        raise JobFailed(f"Submission to batch system failed: {cause}")


def _quantity(name: str, value: object) -> int | None:
    """Read a number with its unit; None is what only the check of the range refuses."""
    text = str(value)
    if name not in _WITH_UNIT:
        return int(text) if _WHOLE.fullmatch(text) else None
    found = _QUANTITY.fullmatch(text)
    if found is None:
        cause = f"java.lang.NumberFormatException: not a parsable value: {text}"
    elif found[1] and "." in found[1]:
        cause = f'java.lang.NumberFormatException: For input string: "{text}"'
    else:
        # `m` is a minute of time and a mebibyte of memory.
        factor = _MEBIBYTE if found[2] in ("M", "m") and name == "MemoryPerNode" else _UNITS.get(found[2].lower())
        if factor is not None and found[1]:
            return int(found[1]) * factor
        cause = f"java.lang.IllegalArgumentException: No conversion for unit '{found[2]}'"
    prefix = f"java.lang.IllegalArgumentException: Could not parse requested resource <{name}>"
    raise JobFailed(f"Processing failed: {prefix}: {cause}")


def _refused(cause: str) -> str:
    return f"Processing failed: eu.unicore.xnjs.ems.ExecutionException: {cause} (Invalid resource request)"
