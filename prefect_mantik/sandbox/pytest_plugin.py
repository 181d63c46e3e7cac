"""A sandbox as pytest fixtures.

`mantik_sandbox` is one sandbox for the whole test session; `start_mantik_sandbox` starts further ones with switches of
the test's own. This module is loaded in every pytest run where the package is installed: it imports nothing heavy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from prefect_mantik.sandbox.process import SandboxProcess


@pytest.fixture(scope="session")
def mantik_sandbox() -> Iterator[SandboxProcess]:
    """A running sandbox with the default switches, shared by all tests of the session."""
    from prefect_mantik.sandbox.process import start_sandbox

    with start_sandbox() as process:
        yield process


@pytest.fixture
def start_mantik_sandbox() -> Iterator[Callable[..., SandboxProcess]]:
    """Start sandboxes of the test's own: `start_mantik_sandbox(slots=1, run_name="unchanged")`."""
    from prefect_mantik.sandbox.process import start_sandbox

    with contextlib.ExitStack() as stack:

        def start(**switches: Any) -> SandboxProcess:
            return stack.enter_context(start_sandbox(**switches))

        yield start
