"""What a Prefect server gets from its clients: a proxy that counts requests, and the rows of its database."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

_REQUEST = re.compile(rb"^(GET|POST|PUT|PATCH|DELETE) (\S+) HTTP/1\.1\r\n")
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")


class Proxy:
    """Hands bytes on to a server, websockets too, and counts the requests among them.

    Args:
        url: The server's API.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = parts.hostname or "127.0.0.1", parts.port or 80
        self.counts: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        server = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop)
        self.url = f"http://127.0.0.1:{server.result(10).sockets[0].getsockname()[1]}{parts.path}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            await asyncio.gather(self._pass(reader, far_writer, True), self._pass(far_reader, writer, False))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ours: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if ours and (found := _REQUEST.match(data)):
                    path = _ID.sub("#", found[2].decode().partition("?")[0])
                    self.counts[f"{found[1].decode()} {path}"] += 1
                writer.write(data)
                await writer.drain()
        writer.close()

    def calls(self) -> Counter[str]:
        """The calls of the API so far, without the opening of websockets."""
        return Counter({what: count for what, count in self.counts.items() if "/events/" not in what})


def rows(database: Path) -> Counter[str]:
    """Rows of each table."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
        names = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
        return Counter({name: connection.execute(f'select count(*) from "{name}"').fetchone()[0] for name in names})


def our_events(database: Path) -> int:
    """Events by which processes that wait tell each other."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
        query = "select count(*) from events where event like 'prefect-mantik.%'"
        return int(connection.execute(query).fetchone()[0])


@contextlib.contextmanager
def prefect_server() -> Iterator[tuple[str, Path]]:
    """A server of its own: its API, and its SQLite file."""
    from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_DATABASE_CONNECTION_URL
    from prefect.testing.utilities import prefect_test_harness

    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    with prefect_test_harness(server_startup_timeout=120):
        database = str(PREFECT_SERVER_DATABASE_CONNECTION_URL.value()).partition(":///")[2]
        yield str(PREFECT_API_URL.value()), Path(database)
