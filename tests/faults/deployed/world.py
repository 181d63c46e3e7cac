"""Two Prefect servers with a worker each, and one sandbox: where the trials take place."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from prefect_mantik.sandbox.process import SandboxProcess, start_sandbox
from tests.faults.deployed.books import Books
from tests.faults.deployed.prefect_api import PrefectApi
from tests.faults.deployed.processes import Children, Server
from tests.faults.deployed.setup_server import POOL
from tests.faults.deployed.together import together

CANCELLING_TIMEOUT = 20
"""Seconds after which the second server gives up a Cancelling flow run whose worker is gone; Prefect's own is 300."""


@dataclass
class Office:
    """A Prefect server, and what works for it.

    Attributes:
        server: The server.
        api: Its API.
        origin: The random id that our package gave it.
        worker: The worker of its pool.
    """

    server: Server
    api: PrefectApi
    origin: str
    worker: subprocess.Popen[bytes]


@dataclass
class World:
    """Everything that runs during the trials.

    Attributes:
        children: Starts and ends processes.
        sandbox: The sites, the platform and MLflow.
        books: What really happened there.
        offices: Prefect servers, by name.
    """

    children: Children
    sandbox: SandboxProcess
    books: Books
    offices: dict[str, Office] = field(default_factory=dict)

    def open_office(self, name: str, **settings: str) -> Office:
        """Start a Prefect server, make it ready, and give it a worker."""
        server = Server(self.children, name, **settings)
        server.start()
        server.wait_ready()
        env_file = str(self.sandbox.env_file)
        self.children.run(
            f"{name}-setup", "tests.faults.deployed.setup_server", env_file, api_url=server.api_url, timeout=180
        )
        api = PrefectApi(server.api_url)
        self.offices[name] = Office(server, api, api.origin(), server.worker(f"{name}-worker", POOL))
        return self.offices[name]


@contextlib.contextmanager
def made(names: tuple[str, ...] = ("first", "second")) -> Iterator[World]:
    """Start everything, and end it."""
    settings = {
        "first": {},
        "second": {
            "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_CANCELLING_TIMEOUT_SECONDS": str(CANCELLING_TIMEOUT),
            "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_LOOP_SECONDS": "5",
        },
    }
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as directory:
        children = Children(Path(directory))
        with contextlib.ExitStack() as stack:
            stack.callback(children.close)
            sandbox = stack.enter_context(start_sandbox(slots=64, queue_delay=0.3))
            world = World(children, sandbox, Books(sandbox))
            together([partial(world.open_office, name, **settings[name]) for name in names], len(names))
            yield world
