"""Stands in for `mlflow` where a test needs a sandbox of its own: starts at once, keeps runs in memory."""

import json
import os
import socketserver
import sys
import uuid
from http.server import BaseHTTPRequestHandler

STATUS: dict[str, str] = {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def address_string(self) -> str:
        return "unix"

    def do_GET(self) -> None:
        run_id = self.path.rpartition("run_id=")[2]
        self.answer({"run": {"info": {"run_id": run_id, "status": STATUS.get(run_id, "")}}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("runs/create"):
            body["run_id"] = uuid.uuid4().hex
        if "run_id" in body:
            STATUS[body["run_id"]] = body.get("status", "RUNNING")
        self.answer({"experiment_id": "1", "run": {"info": {"run_id": body.get("run_id")}}})

    def answer(self, content: dict) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


version, *arguments = sys.argv[1:]
if arguments == ["--version"]:
    print(f"mlflow, version {version}")
else:
    assert not [name for name in os.environ if name.startswith(("MANTIK_", "AWS_"))]
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    if version.startswith("2"):
        # gunicorn binds to "host:port", as one word.
        path = f"{given['--host'].removeprefix('unix:')}:{given['--port']}"
    else:
        path = given["--uvicorn-opts"].removeprefix("--uds ")
    Server(path, Handler).serve_forever()
