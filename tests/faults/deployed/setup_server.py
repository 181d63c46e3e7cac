"""Makes a fresh Prefect server ready: `python -m tests.faults.deployed.setup_server ENV_FILE`.

Saves the blocks of blocks/sandbox.yaml, with jobs that sleep and sites that settle fast, and deploys the flows of the
trials to the work pools.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.types.entrypoint import EntrypointType

from prefect_mantik.block_files import BlockEntry, asave_blocks, read_block_file
from prefect_mantik.ledger import origin
from prefect_mantik.loop import acall
from prefect_mantik.sandbox.env_file import read_env_file
from tests.faults.deployed import flows
from tests.faults.deployed.processes import ROOT

POOL, DOOMED = "faults", "doomed"
SETTLE = 3.0
"""Seconds without a job that prove that there is none: the sandbox shows jobs at once."""

LATE, LATE_SETTLE = 35.0, 50.0
"""Seconds after which a site takes a job whose connection it cut, and what a site is said to need to settle."""

_BLOCKS = ROOT / "blocks" / "sandbox.yaml"


def entries() -> list[BlockEntry]:
    """The blocks of the sandbox with the changes of the trials, and three sites more."""
    given = [entry.model_dump() for entry in read_block_file(_BLOCKS)]
    late = [{**block, "name": f"{block['name']}-late"} for block in given if block["name"] in ("birch", "cedar")]
    return [_changed(block) for block in [*given, *late, *_more(), *map(_job, late)]]


def _job(site: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "training-job",
        "name": f"train-{site['name']}",
        "project": {"block": "mantik-project/sandbox"},
        "site": {"block": f"{site['type']}/{site['name']}"},
    }


def _more() -> list[dict[str, Any]]:
    """Cedar behind the platform, cedar in REST mode, alder by UNICORE: each has a route of its own that takes jobs."""
    sandbox = {"block": "mantik-credentials/sandbox"}
    batch = {"Resources": {"Queue": "batch", "Runtime": "10m", "Nodes": 1}}
    where = {
        "ApiUrl": {"env": "MANTIK_SANDBOX_CEDAR_URL"},
        "TokenUrl": {"env": "MANTIK_SANDBOX_CEDAR_TOKEN_URL"},
        "Machine": "cedar",
    }
    sites: list[dict[str, Any]] = [
        {
            "type": "mantik-site",
            "name": "cedar-behind",
            "connection": {"block": "mantik-connection/cedar"},
            "backend_config": {"Firecrest": where, **batch},
        },
        {
            "type": "firecrest-site",
            "name": "cedar-rest",
            "api_url": {"env": "MANTIK_SANDBOX_CEDAR_URL"},
            "token_url": {"env": "MANTIK_SANDBOX_CEDAR_TOKEN_URL"},
            "system": "cedar-rest",
            "login": {"block": "firecrest-credentials/sandbox"},
            "root": {"env": "MANTIK_SANDBOX_CEDAR_ROOT"},
            "backend_config": {"Resources": {"Queue": "batch"}},
        },
        {
            "type": "unicore-site",
            "name": "alder-direct",
            "api_url": {"env": "MANTIK_SANDBOX_ALDER_URL"},
            "login": {"block": "unicore-credentials/sandbox"},
            "backend_config": batch,
        },
    ]
    connection = {
        "type": "mantik-connection",
        "name": "cedar",
        "provider": "FirecREST",
        "connection_id": {"env": "MANTIK_CONNECTION_ID_CEDAR"},
        "credentials": sandbox,
    }
    return [connection, *sites, *map(_job, sites)]


def _changed(block: dict[str, Any]) -> BlockEntry:
    if block["type"] == "training-job":
        block = {**block, "entry_point": "sleep", "parameters": {}}
    elif block["type"].endswith("-site"):
        block = {**block, "settle": LATE_SETTLE if block["name"].endswith("-late") else SETTLE}
    return BlockEntry(**block)


async def main(env_file: Path) -> None:
    await acall(asave_blocks, entries(), read_env_file(env_file))
    await acall(origin)
    async with get_client() as client:
        for pool in (POOL, DOOMED):
            await client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
    for name, each in flows.SHAPES.items():
        deployment = await each.ato_deployment(name, entrypoint_type=EntrypointType.MODULE_PATH, work_pool_name=POOL)
        await deployment.aapply()
    doomed = await flows.held.ato_deployment(DOOMED, entrypoint_type=EntrypointType.MODULE_PATH, work_pool_name=DOOMED)
    await doomed.aapply()
    try:
        from prefect_mantik.flows.reap_runs import reap_runs
    except ImportError:
        return
    deployment = await reap_runs.ato_deployment(
        "reaper", entrypoint_type=EntrypointType.MODULE_PATH, work_pool_name=POOL
    )
    await deployment.aapply()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
