"""Very many training runs in one flow, over the three kinds of site: all finish, and every job is there once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from prefect_mantik.block_files import asave_blocks, read_block_file
from prefect_mantik.loop import call
from prefect_mantik.sandbox.process import start_sandbox
from tests.conftest import PrefectServer

RUNS = int(os.environ.get("SCALE_RUNS", "1000"))
BLOCKS = Path(__file__).parents[2] / "blocks" / "sandbox.yaml"

SECONDS_FOR_A_RUN = 6.0
"""A slow machine's: a job is several processes, of which each takes a core."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600 + SECONDS_FOR_A_RUN * RUNS)]


def test_one_flow_waits_for_very_many_runs(prefect_server: PrefectServer) -> None:
    with start_sandbox(slots=4, queue_delay=0.2) as sandbox:
        call(asave_blocks, read_block_file(BLOCKS), sandbox.env)
        environment = prefect_server.environment(PREFECT_LOGGING_LEVEL="WARNING")
        command = [sys.executable, "-m", "tests.scale.many_runs", str(RUNS)]
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, text=True, timeout=300 + SECONDS_FOR_A_RUN * RUNS
        )
        print(done.stdout)
        assert done.returncode == 0, done.stdout[-4000:]
        jobs = sandbox.control.jobs()
        keys = Counter(job["runKey"] or job["jobName"] for job in jobs)
        assert len(keys) == RUNS
        assert set(keys.values()) == {1}
        assert not [job for job in jobs if job["live"] or job["exitCode"] != 0]
