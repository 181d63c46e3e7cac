"""Counts what this process asks: of a real server there are no books to read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import httpx


@contextmanager
def requests_sent() -> Iterator[list[str]]:
    """The requests that go out meanwhile."""
    found, send = list[str](), httpx.AsyncClient.send

    async def counted(client: httpx.AsyncClient, request: httpx.Request, **options: Any) -> httpx.Response:
        found.append(f"{request.method} {request.url}")
        return await send(client, request, **options)

    with patch.object(httpx.AsyncClient, "send", counted):
        yield found
