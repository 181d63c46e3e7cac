"""A proxy in front of a server that keeps what clients really send."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import httpx

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding", "host"}


@dataclass(frozen=True)
class Request:
    """One request and its answer."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    content: bytes
    status: int
    answer: str

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.content)


@dataclass
class Recorder:
    """Passes everything on to `target`, on a free port of this machine.

    Attributes:
        target: Base URL of the real server.
        requests: What came, in the order of the answers.
    """

    target: str
    requests: list[Request] = field(default_factory=list)

    def named(self, method: str, ending: str) -> list[Request]:
        """The requests with a method to paths with an ending."""
        return [request for request in self.requests if request.method == method and request.path.endswith(ending)]

    @property
    def url(self) -> str:
        """Where to send requests."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Recorder:
        self._client = httpx.Client(base_url=self.target, timeout=60, trust_env=False)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._client.close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                pass

            def pass_on(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                answer = recorder._client.request(
                    self.command,
                    self.path,
                    content=content,
                    headers={name: value for name, value in headers.items() if name not in _HOP_BY_HOP},
                )
                path, _, query = self.path.partition("?")
                recorder.requests.append(
                    Request(self.command, path, query, headers, content, answer.status_code, answer.text)
                )
                self.send_response_only(answer.status_code)  # the server itself told the date
                for name, value in answer.headers.items():
                    if name not in _HOP_BY_HOP:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

            do_GET = do_POST = do_PUT = do_DELETE = pass_on

        return Handler
