"""Where log lines go: to the run that is executing, if there is one."""

from __future__ import annotations

import logging
import re
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


_TOKEN = re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]*")


def without_tokens(text: str) -> str:
    """Hide bearer tokens (JWTs) in the log of a job: the platform's Slurm script prints itself, token and all."""
    return _TOKEN.sub("***", text)
