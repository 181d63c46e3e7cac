"""Saved blocks of the sandbox at a real Prefect server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_mantik.block_files import asave_blocks, read_block_file
from prefect_mantik.loop import call
from prefect_mantik.sandbox.process import SandboxProcess
from tests.conftest import PrefectServer

BLOCKS = Path(__file__).parents[2] / "blocks" / "sandbox.yaml"


@pytest.fixture(scope="session")
def saved_blocks(prefect_server: PrefectServer, mantik_sandbox: SandboxProcess) -> None:
    """The blocks of blocks/sandbox.yaml."""
    call(asave_blocks, read_block_file(BLOCKS), mantik_sandbox.env)


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
