"""Saved blocks of the sandbox at a real Prefect server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.states import Running, Suspended

from prefect_mantik import RunHandle
from prefect_mantik.block_files import asave_blocks, read_block_file
from prefect_mantik.kept import LABEL, Execution, Kept, Wait
from prefect_mantik.ledger import FlowRunLedger
from prefect_mantik.loop import call
from prefect_mantik.sandbox.process import SandboxProcess
from prefect_mantik.sites.opening import SITE_BLOCKS
from tests.conftest import PrefectServer
from tests.flows.suspended import deployment_of
from tests.sandbox_jobs import mantik_site

BLOCKS = Path(__file__).parents[2] / "blocks" / "sandbox.yaml"


@pytest.fixture(scope="session")
def saved_blocks(prefect_server: PrefectServer, mantik_sandbox: SandboxProcess) -> None:
    """The blocks of blocks/sandbox.yaml, and a site that is asked through the platform only."""
    call(asave_blocks, read_block_file(BLOCKS), mantik_sandbox.env)
    mantik_site(mantik_sandbox, "cedar", ask_site=False).save("cedar-platform", overwrite=True)


@pytest.fixture
def only_sandbox_sites(saved_blocks: None, prefect_server: PrefectServer) -> None:
    """Whoever asks all saved sites would also ask those that other tests saved, and some of those never answer."""
    ours = {entry["name"] for entry in yaml.safe_load(BLOCKS.read_text())["blocks"]} | {"cedar-platform"}
    for document in prefect_server.request("POST", "/block_documents/filter", {"limit": 200}):
        if document["block_type"]["slug"] in SITE_BLOCKS and document["name"] not in ours:
            prefect_server.request("DELETE", f"/block_documents/{document['id']}")


@pytest.fixture
def sandbox(saved_blocks: None, mantik_sandbox: SandboxProcess) -> Iterator[SandboxProcess]:
    """The session's sandbox, well-behaved and empty before and after the test."""
    control = mantik_sandbox.control
    control.switch(queue_delay=0.2)
    yield mantik_sandbox
    control.clear_faults()
    for job in control.jobs(live=True):
        control.end_job(job["id"])
    control.switch(all_endpoints=False, run_appears="at-once", close_dead_runs=True)


@pytest.fixture
def suspended(prefect_server: PrefectServer) -> Iterator[Callable[..., UUID]]:
    """A flow run that is suspended with a key, and keeps some handles under another one, or the same.

    It is deleted with the test: watchers of later tests would go on asking for its runs.
    """
    deployment_of("killed", "served-by-nobody").apply()
    made: list[UUID] = []

    async def make(key: str, kept: Kept | str | None) -> UUID:
        async with get_client() as client:
            deployment = await client.read_deployment_by_name("killed/served-by-nobody")
            run = await client.create_flow_run_from_deployment(deployment.id, parameters={"mark": "none"})
            made.append(run.id)
            text = kept.model_copy(update={"flow_run": run.id}).written() if isinstance(kept, Kept) else kept
            if text:
                assert await FlowRunLedger(run.id).keep(LABEL, text)
            for state in (Running(), Suspended(pause_key=key)):
                await client.set_flow_run_state(run.id, state, force=True)
            return run.id

    yield lambda key, kept=None: call(make, key, kept)
    for id in made:
        prefect_server.request("DELETE", f"/flow_runs/{id}")


def kept_handles(handles: list[RunHandle], key: str = "mantik-a-1") -> Kept:
    execution = Execution(uuid4(), None, open=[Wait(handles, None)], key=key)
    return execution.kept()
