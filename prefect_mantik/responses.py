"""What an answer of a server says beside its content: when to ask again, what time it is, why it refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

MAX_DETAIL = 400
"""Characters of a server's explanation that an error shows."""

MOST_QUIET = 3600.0
"""Seconds for which a server's wish not to be asked is heeded at most."""

_A_DATE = 1e8
"""From here on a number of seconds is a moment, counted from 1970, not a length of time."""

HTML_PAGE = "an HTML page"
"""How an explanation begins that a gateway gave, not the API."""


def retry_after(response: httpx.Response) -> float | None:
    """Seconds that a server asks to wait, an hour at most.

    From the header Retry-After in either of its forms (RFC 9110, 10.2.3), or from RateLimit-Reset, which some gateways
    send instead: as seconds, or as a Unix time.
    """
    told = (response.headers.get("Retry-After") or response.headers.get("RateLimit-Reset", "")).strip()
    if told.isdigit() and float(told) < _A_DATE:
        return min(float(told), MOST_QUIET)
    until = float(told) if told.isdigit() else _seconds(_http_date(told))
    return min(max(0.0, until - server_time(response).timestamp()), MOST_QUIET) if until else None


def server_time(response: httpx.Response) -> datetime:
    """The server's clock when it answered; ours where it does not say."""
    return _http_date(response.headers.get("Date", "")) or datetime.now(timezone.utc)


def _seconds(date: datetime | None) -> float | None:
    return date.timestamp() if date else None


def _http_date(text: str) -> datetime | None:
    """A date of HTTP, which is in UTC whether it says so or not."""
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=timezone.utc)


def explanation(response: httpx.Response) -> str:
    """What a server said of an error, from the forms that servers in this field use.

    FastAPI: `detail`, a text or a list of findings (never with the input that it repeats). MLflow, FirecREST and the
    compute backend: `message`. UNICORE: `errorMessage`. Identity providers: `error_description`. A gateway: an HTML
    page, of which the title is shown.
    """
    nothing = response.reason_phrase or "no explanation"
    try:
        body = response.json()
    except ValueError:
        return _page_title(response.text).strip() or nothing
    if isinstance(body, dict):
        known = (body.get(name) for name in ("detail", "message", "errorMessage", "error_description", "error"))
        body = next((text for text in known if text and isinstance(text, str | list)), "")
    if isinstance(body, list):
        body = "; ".join(_finding(item) for item in body)
    return str(body).strip() or nothing


def _finding(item: Any) -> str:
    if not isinstance(item, dict):
        return str(item)
    place = ".".join(str(part) for part in item.get("loc", []) if part != "body")
    return f"{place}: {item.get('msg', 'invalid')}" if place else str(item.get("msg", "invalid"))


def _page_title(text: str) -> str:
    if "<" not in text:
        return text
    title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
    return f"{HTML_PAGE}, {title.group(1).strip()!r}" if title else HTML_PAGE


def hidden(text: str, secrets: Sequence[str]) -> str:
    """A text without the secrets that it holds."""
    for secret in secrets:
        if secret:
            text = re.sub(re.escape(secret), "***", text, flags=re.IGNORECASE)
    return text


def shortened(text: str) -> str:
    """A text in one line that fits into an error."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_DETAIL else f"{line[:MAX_DETAIL]}…"


def cause(error: BaseException) -> str:
    """What an error says; its class where it says nothing."""
    return str(error) or type(error).__name__
