"""The status resources: systems, nodes, partitions, reservations and the caller."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Any

from starlette.responses import Response

from prefect_mantik.sandbox.firecrest.books import ACCOUNTS, PARTITIONS
from prefect_mantik.sandbox.firecrest.files import MAX_OPS_FILE_SIZE
from prefect_mantik.sandbox.firecrest.job_environment import NODE
from prefect_mantik.sandbox.firecrest.replies import json_reply
from prefect_mantik.sandbox.firecrest.service import Call, Deployment, System
from prefect_mantik.sandbox.firecrest.transfer_store import MAX_PART_SIZE, PREFIX

# The server looks at its systems this often, in seconds.
_PROBE_INTERVAL = 60
_CORES = 4
_MEMORY = 16000
_REFUSED = "[Errno 111] Connection refused"


async def systems(call: Call) -> Response:
    """Describe all systems."""
    return json_reply({"systems": [_system(system) for system in call.deployment.systems.values()]})


async def nodes(call: Call) -> Response:
    """List the nodes of the site."""
    site = call.at.site
    busy = sum(job.request.nodes for job in site.jobs if job.started is not None and not job.state.ended)
    over_ssh = call.at.mode == "ssh"
    listed = []
    for number in range(1, site.slots + 1):
        used = number <= busy
        name = NODE.format(site=site.name, number=number)
        listed.append(
            {
                "sockets": _CORES,
                "cores": _CORES if over_ssh else 1,
                "threads": _CORES if over_ssh else 1,
                "cpus": _CORES,
                "cpuLoad": 0.5,
                "freeMemory": _MEMORY if over_ssh else None,
                "features": "sandbox" if over_ssh else ["sandbox"],
                "name": name,
                "address": name,
                "hostname": name,
                "state": ["ALLOCATED" if used else "IDLE"],
                "partitions": list(PARTITIONS),
                "weight": 1,
                "allocMemory": 0,
                "allocCpus": _CORES if used else 0,
                "idleCpus": (0 if used else _CORES) if over_ssh else None,
            }
        )
    return json_reply({"nodes": listed})


async def partitions(call: Call) -> Response:
    """List the partitions of the site."""
    slots = call.at.site.slots
    state = "UP" if call.at.mode == "ssh" else ["UP"]
    listed = [{"name": name, "cpus": _CORES * slots, "totalNodes": slots, "partition": state} for name in PARTITIONS]
    return json_reply({"partitions": listed})


async def reservations(_: Call) -> Response:
    """List the reservations: there are none."""
    return json_reply({"reservations": []})


async def userinfo(call: Call) -> Response:
    """Describe the caller as a user of the site."""
    who = {"id": str(call.at.site.uid(call.login)), "name": call.login}
    accounts = [{"name": name, "default": name == ACCOUNTS[0]} for name in ACCOUNTS]
    return json_reply({"user": who, "group": who, "groups": [who], "accounts": accounts})


def liveness(deployment: Deployment) -> dict[str, Any]:
    """Say that the server is alive, and when it looked at its systems."""
    runs = {name: _iso(_last_probe()) for name in deployment.systems}
    return {"healthcheckRuns": runs, "lastUpdate": int(time.time() - _last_probe())}


def _system(system: System) -> dict[str, Any]:
    site, over_ssh = system.site, system.mode == "ssh"
    paths = {"users": site.directory / "home", "scratch": site.directory / "scratch"}
    timeout = system.switches.firecrest_command_timeout
    return {
        "name": system.name,
        "ssh": {
            "host": f"{site.name}-login",
            "port": 22,
            "proxyHost": None,
            "proxyPort": None,
            "maxClients": 100,
            "timeout": {
                "connection": 5,
                "login": 5,
                "commandExecution": max(1, int(timeout)),
                "idleTimeout": 60,
                "keepAlive": 5,
            },
        },
        "scheduler": {
            "type": "slurm",
            "connectionMode": system.mode,
            "version": "24.11.5",
            "apiUrl": None if over_ssh else f"http://{site.name}-login:6820",
            "apiVersion": None if over_ssh else "0.0.42",
            "timeout": 10,
        },
        "servicesHealth": _health(system, [str(path) for path in paths.values()]),
        "probing": {
            "services": {
                "ssh": {"timeout": 5},
                "scheduler": {"timeout": 10},
                "filesystem": {"timeout": 5},
                "s3": {"timeout": 10},
            },
            "intervalCheck": _PROBE_INTERVAL,
        },
        "lastHealthCheck": _iso(_last_probe()),
        "fileSystems": [
            {"path": str(path), "dataType": kind, "defaultWorkDir": kind == "users"} for kind, path in paths.items()
        ],
        "dataOperation": {
            "datatransfer_jobs_directives": ["#SBATCH --nodes=1", "#SBATCH --time=0-00:15:00"],
            "max_ops_file_size": MAX_OPS_FILE_SIZE,
            "data_transfer": _data_transfer(site.url),
        },
    }


def _data_transfer(url: str) -> dict[str, Any]:
    return {
        "serviceType": "s3",
        "name": "s3-storage",
        "privateUrl": "**********",
        "publicUrl": url.partition("/firecrest/")[0] + PREFIX,
        "accessKeyId": "**********",
        "secretAccessKey": "**********",
        "region": "us-east-1",
        "ttl": 604800,
        "tenant": None,
        "multipart": {
            "use_split": False,
            "max_part_size": MAX_PART_SIZE,
            "parallel_runs": 3,
            "tmp_folder": "tmp",
        },
        "bucketLifecycleConfiguration": {"days": 10},
    }


def _health(system: System, paths: list[str]) -> list[dict[str, Any]]:
    healthy = not system.site.unhealthy
    pinged = f"[{{'mode': 'primary', 'hostname': '{system.site.name}-login', 'pinged': 'UP'}}]"

    def service(kind: str, message: str | None, **more: str) -> dict[str, Any]:
        return {
            "serviceType": kind,
            "lastChecked": _iso(_last_probe()),
            "latency": 0.1,
            "healthy": healthy or kind == "s3",
            "message": message if healthy or kind == "s3" else _REFUSED,
            **more,
        }

    return [
        service("scheduler", pinged),
        service("ssh", None),
        *(service("filesystem", None, path=path) for path in paths),
        service("s3", None),
    ]


def _last_probe() -> float:
    return time.time() // _PROBE_INTERVAL * _PROBE_INTERVAL


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
