"""One sandbox for all tests of this folder; what a test needs otherwise it switches at run time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from prefect_mantik.sandbox.process import SandboxProcess, start_sandbox

from .box import DEFAULTS, FAKE_MLFLOW, OPEN, Box
from .rest import Cedar, Rest

FIRECREST_DEFAULTS = {
    "firecrest_token_lifetime": 300,
    "firecrest_command_timeout": 5,
    "firecrest_command_time": 0,
    "firecrest_max_sessions": 0,
    "firecrest_rest_mode": "hybrid",
}


@pytest.fixture(scope="session")
def one_sandbox() -> Iterator[Box]:
    # The variables stand for credentials in the user's shell: nothing of them may reach a job.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANTIK_PASSWORD", "the-users-own-secret")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "the-users-own-secret")
        process = start_sandbox(queue_delay=0.1, grace=0.5)
    with process:
        yield Box(process)


@pytest.fixture
def box(one_sandbox: Box) -> Iterator[Box]:
    one_sandbox.login()
    one_sandbox.control.switch(**DEFAULTS)
    one_sandbox.control.reset_requests()
    yield one_sandbox
    one_sandbox.control.clear_faults()
    one_sandbox.control.switch(**DEFAULTS)


@pytest.fixture
def rest(box: Box) -> Iterator[Rest]:
    """The REST API of alder."""
    with Rest(box, "alder") as rest:
        yield rest
    box.control.change_site("alder", **OPEN)
    for job in box.control.jobs(live=True):
        box.control.end_job(job["id"], "VANISHED")


@pytest.fixture
def cedar(box: Box) -> Iterator[Cedar]:
    """FirecREST's API of cedar."""
    with Cedar(box) as cedar:
        yield cedar
    box.control.change_site("cedar", **OPEN, unhealthy=False, accounting_down=False)
    box.control.switch(**FIRECREST_DEFAULTS)
    for job in box.control.jobs(live=True):
        box.control.end_job(job["id"], "VANISHED")


@pytest.fixture
def start_light() -> Iterator[Callable[..., SandboxProcess]]:
    """Start further sandboxes with a stand-in for MLflow that is up at once."""
    started = []

    def start(version: str = "3.0.0", **switches: Any) -> SandboxProcess:
        command = f"{sys.executable} {FAKE_MLFLOW} {version}"
        process = start_sandbox(mlflow_command=command, queue_delay=0, **switches)
        started.append(process)
        return process

    yield start
    for process in started:
        process.stop()
