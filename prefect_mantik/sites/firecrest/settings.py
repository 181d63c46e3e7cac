"""What the block of a FirecREST site tells the runtime."""

from __future__ import annotations

from typing import NamedTuple

from prefect_mantik.backend_config import BackendConfig
from prefect_mantik.sites.base import Pace


class Settings(NamedTuple):
    """What a site's block says, besides who logs in and where."""

    reference: str | None
    name: str
    root: str
    config: BackendConfig
    account: str
    settle: float
    fail_if_stuck: bool
    pace: Pace = Pace()
