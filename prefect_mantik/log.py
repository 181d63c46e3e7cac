"""Where log lines go: to the run that is executing, if there is one; and how they word what people read."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import MissingContextError
from prefect.logging import get_logger, get_run_logger
from prefect.logging.loggers import flow_run_logger

Logger: TypeAlias = "logging.Logger | logging.LoggerAdapter[logging.Logger]"

_elsewhere: ContextVar[Logger | None] = ContextVar("elsewhere", default=None)


@contextmanager
def logging_to(flow_run: FlowRun) -> Iterator[None]:
    """Let lines go to the log of another flow run, such as one that has no process now."""
    token = _elsewhere.set(flow_run_logger(flow_run))
    try:
        yield
    finally:
        _elsewhere.reset(token)


def run_logger() -> Logger:
    """The logger of the task or flow run that is executing; outside of one, Prefect's logger `prefect.mantik`."""
    if (elsewhere := _elsewhere.get()) is not None:
        return elsewhere
    try:
        return get_run_logger()
    except MissingContextError:
        return get_logger("mantik")


# After an m too: what colours text ends with it. At the end of a text half a token is one, too.
_TOKEN = re.compile(r"(?:\b|(?<=m))eyJ[\w-]+(?:\.[\w-]+\.[\w-]*(?:\.[\w-]+){0,2}|(?:\.[\w-]*)?\Z)")

_CUT_WORD = re.compile(r"\A(?:[.-]|\x1b\[[\d;:]*m)*\w(?:[\w.-]|\x1b\[[\d;:]*m)*")


def without_tokens(text: str, *, is_cut: bool = False) -> str:
    """Hide bearer tokens (JWTs) in the log of a job: the platform's Slurm script prints itself, token and all.

    Args:
        text: Of the log.
        is_cut: Whether the text begins anywhere: then its first word is left out, for it may be the end of a token.
    """
    return _TOKEN.sub("***", _CUT_WORD.sub("", text) if is_cut else text)


def duration(seconds: float) -> str:
    """A length of time as people say it, by its two largest units. Less than nothing is `0 s`: clocks differ."""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24:02d} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
