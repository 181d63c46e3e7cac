"""Where log lines go: to the run that is executing, if there is one; and how they word what people read."""

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


def duration(seconds: float) -> str:
    """A length of time as people say it, by its two largest units. Less than nothing is `0 s`: clocks differ."""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24:02d} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
