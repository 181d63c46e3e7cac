"""Markdown as the Prefect UI shows it: tables whose cells hold any text, and links."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote


def cell(text: str, most: int | None = None) -> str:
    """Text as a Markdown table shows it literally.

    Args:
        text: Any text.
        most: Characters of it to show.
    """
    words = " ".join(text.split())
    if most is not None and len(words) > most:
        words = words[: most - 1] + "…"
    # An underscore within a word means nothing in Markdown.
    return re.sub(r"([\\`*\[\]<>|~&]|(?<!\w)_|_(?!\w))", r"\\\1", words)


def link(label: str, url: str) -> str:
    """A link with a label that is Markdown already; the label alone where there is no address of a page.

    What would end the address, the cell or the table is written as a URL writes it.
    """
    if not url.startswith(("http://", "https://")):
        return label
    # Letters of any language stay as they are: browsers take them.
    address = re.sub(r"[\s()<>|\\`\"]", lambda found: quote(found.group(), safe=""), url)
    return f"[{label}]({address})"


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already; the first row is its head."""
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def number(value: float) -> str:
    """A number as far as a person reads it."""
    return f"{value:.6g}"
