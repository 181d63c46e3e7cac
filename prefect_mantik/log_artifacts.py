"""The end of a run's log as a Markdown artifact in the Prefect UI, for flows that keep no files of logs."""

from __future__ import annotations

import hashlib
import re

from prefect.artifacts import acreate_markdown_artifact

from prefect_mantik.runs import RunHandle

LONGEST = 128 * 2**10
"""Characters of a log that an artifact holds: its end."""


async def publish_log(handle: RunHandle, text: str, is_whole: bool) -> None:
    """Write the end of a log as an artifact of the flow run that is executing.

    Args:
        handle: Which run.
        text: The end of its log, as plain text without tokens.
        is_whole: Whether that is the whole log.
    """
    await acreate_markdown_artifact(
        key=artifact_key(handle),
        markdown=log_markdown(handle, text, is_whole),
        description=f"End of the log of {handle.describe()}",
    )


def artifact_key(handle: RunHandle) -> str:
    """The same for each night of a run, and another for each run and attempt: [a-z0-9-]."""
    name, site = (re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") for text in (handle.name, handle.site_name))
    exact = (name, site) == (handle.name, handle.site_name) and len(name) <= 60
    mark = hashlib.sha256(f"{handle.name}\n{handle.site_name}".encode()).hexdigest()[:6]
    parts = ["mantik-log", name[:60].strip("-"), site[:40].strip("-"), "" if exact else mark]
    if handle.attempt > 1:
        parts.append(str(handle.attempt))
    return "-".join(part for part in parts if part)


def log_markdown(handle: RunHandle, text: str, is_whole: bool) -> str:
    """The end of a log as Markdown: a block of code that no backticks of the log can end."""
    shown = text[-LONGEST:]
    if len(shown) < len(text):
        shown = shown.partition("\n")[2] or shown
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", shown)), default=0))
    link = next(iter(handle.links.values()), "")
    where = f" ([{next(iter(handle.links))}]({link}))" if link else ""
    what = "The log" if is_whole and len(shown) == len(text) else "The end of the log"
    body = shown.rstrip("\n") or "(nothing was written)"
    return (
        f"{what} of `{_inline(handle.name)}` at `{_inline(handle.site_name)}`{where}:\n\n{fence}text\n{body}\n{fence}\n"
    )


def _inline(text: str) -> str:
    return " ".join(text.replace("`", "'").split())
