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
