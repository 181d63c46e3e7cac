"""Deploys the patterns to the Prefect server of the environment."""

from __future__ import annotations

import asyncio

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.types.entrypoint import EntrypointType

from tests.faults.deployed.setup_server import POOL
from tests.faults.patterns.flows import PATTERNS, ours

PATTERNS_POOL = "patterns"


async def main() -> None:
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name=PATTERNS_POOL, type="process"))
    for each in PATTERNS.values():
        pool = POOL if each is ours else PATTERNS_POOL
        deployment = await each.ato_deployment(
            each.name, entrypoint_type=EntrypointType.MODULE_PATH, work_pool_name=pool
        )
        await deployment.aapply()


if __name__ == "__main__":
    asyncio.run(main())
