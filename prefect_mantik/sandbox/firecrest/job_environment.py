"""What a job is told about itself: the variables of Slurm, and the placeholders in the names of its files."""

from __future__ import annotations

import time
from pathlib import Path

from prefect_mantik.sandbox.jobs import JobRequest
from prefect_mantik.sandbox.scheduler import Site

NODE = "{site}{number:03}"
# What Slurm puts for the place in an array of a job that is in none.
_NO_INDEX = 4294967294


def node_names(site: str, count: int) -> str:
    """Give the first nodes of a site as Slurm lists them.

    Args:
        site: The site.
        count: How many.
    """
    return NODE.format(site=site, number=1) if count == 1 else f"{site}[001-{count:03}]"


def expand(text: str, number: int, array: tuple[int, int] | None, request: JobRequest, owner: str) -> str:
    """Put a job's own values for the placeholders of a file's name.

    Args:
        text: The file's name.
        number: The job's number.
        array: The number of the array that it is a task of, and its place there.
        request: The job.
        owner: Its user.
    """
    values = {
        "%": "%",
        "A": str(array[0] if array else number),
        "a": str(array[1] if array else _NO_INDEX),
        "j": str(number),
        "J": str(number),
        "n": "0",
        "s": "batch",
        "t": "0",
        "u": owner,
        "x": request.name,
    }
    done, rest = "", text
    while "%" in rest:
        before, _, rest = rest.partition("%")
        width = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        letter = rest[len(width) : len(width) + 1]
        value = values.get(letter, f"%{width}{letter}")
        done += before + (value.zfill(int(width)) if width and value.isdigit() else value)
        rest = rest[len(width) + 1 :]
    return done + rest


def slurm_variables(
    site: Site, request: JobRequest, account: str, owner: str, workdir: Path, number: int
) -> dict[str, str]:
    """Give what Slurm puts into the environment of every job.

    Args:
        site: The site.
        request: The job.
        account: What it is charged to.
        owner: Its user.
        workdir: Where it runs.
        number: Its number.
    """
    nodes, now = node_names(site.name, request.nodes), int(time.time())
    variables = {
        "ENVIRONMENT": "BATCH",
        "HOSTNAME": node_names(site.name, 1),
        "SLURMD_NODENAME": node_names(site.name, 1),
        "SLURM_CLUSTER_NAME": site.name,
        "SLURM_CPUS_ON_NODE": "1",
        "SLURM_JOBID": str(number),
        "SLURM_JOB_ACCOUNT": account,
        "SLURM_JOB_END_TIME": str(now + int(request.walltime)),
        "SLURM_JOB_ID": str(number),
        "SLURM_JOB_NODELIST": nodes,
        "SLURM_JOB_NUM_NODES": str(request.nodes),
        "SLURM_JOB_PARTITION": request.queue,
        "SLURM_JOB_QOS": "normal",
        "SLURM_JOB_START_TIME": str(now),
        "SLURM_JOB_UID": str(site.uid(owner)),
        "SLURM_JOB_USER": owner,
        "SLURM_LOCALID": "0",
        "SLURM_NNODES": str(request.nodes),
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": nodes,
        "SLURM_PROCID": "0",
        "TMPDIR": "/tmp",  # noqa: S108 (as Slurm sets it)
    }
    if request.bare:
        return variables
    return {
        **variables,
        "SHELL": "/bin/bash",
        "SLURM_GET_USER_ENV": "1",
        "SLURM_JOB_NAME": request.name,
        "SLURM_SUBMIT_DIR": str(site.home(owner)),
        "SLURM_SUBMIT_HOST": f"{site.name}-login",
    }


def array_variables(array: tuple[int, int], indices: tuple[int, ...]) -> dict[str, str]:
    """Give what Slurm tells the tasks of an array.

    Args:
        array: The array's number and the task's place there.
        indices: All places.
    """
    return {
        "SLURM_ARRAY_JOB_ID": str(array[0]),
        "SLURM_ARRAY_TASK_ID": str(array[1]),
        "SLURM_ARRAY_TASK_COUNT": str(len(indices)),
        "SLURM_ARRAY_TASK_MAX": str(indices[-1]),
        "SLURM_ARRAY_TASK_MIN": str(indices[0]),
    }
