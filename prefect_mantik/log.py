"""Where log lines go: to the run that is executing, if there is one."""

from __future__ import annotations

import logging
from typing import TypeAlias

from prefect.exceptions import MissingContextError
from prefect.logging import get_logger, get_run_logger

Logger: TypeAlias = "logging.Logger | logging.LoggerAdapter[logging.Logger]"


def run_logger() -> Logger:
    """The logger of the task or flow run that is executing; outside of one, Prefect's logger `prefect.mantik`."""
    try:
        return get_run_logger()
    except MissingContextError:
        return get_logger("mantik")
