"""The whole pipeline on one machine: a sandbox, a Prefect server, saved blocks and the flow. No account anywhere."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

from prefect_mantik.environment import variables_for_child
from prefect_mantik.errors import MantikError
from prefect_mantik.sandbox.process import SandboxProcess, start_sandbox
from prefect_mantik.sandbox.watchdog import Watchdog

START_TIMEOUT = 180.0

_JOBS = ("train-alder", "train-birch", "train-cedar")


def run_demo(*, keep: bool = False) -> int:
    """Run the demo and return its exit code. Everything it starts ends with it.

    Args:
        keep: Leave the servers running afterwards, until Ctrl-C, to look at them in a browser.
    """
    began = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="prefect-mantik-demo-") as directory, contextlib.ExitStack() as stack:
        watchdog = Watchdog()  # ends what we started even if we are killed
        stack.callback(watchdog.close)
        watchdog.remove_at_end(Path(directory))
        _say("starting a sandbox (platform, MLflow, three sites) and a Prefect server ...", began)
        server = stack.enter_context(_prefect_server(Path(directory), watchdog))
        sandbox = stack.enter_context(start_sandbox(timeout=START_TIMEOUT))
        environment = server.wait_ready()
        _say(f"ready: platform {sandbox.url}, MLflow {sandbox.tracking_uri}, Prefect {server.url}", began)
        _run([sys.executable, "-m", "prefect_mantik.demo", "save", str(sandbox.env_file)], environment)
        _say("training at alder through the platform, at birch by UNICORE, at cedar by FirecREST ...", began)
        code = _run([sys.executable, "-m", "prefect_mantik.demo", "train"], environment, may_fail=True)
        if keep:
            _keep(sandbox, server, began)
    return code


class _PrefectServer:
    """A Prefect server of the demo's own, as a child process: the user's is left alone."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._environment = {
            **variables_for_child("PREFECT_", "MANTIK_", "MLFLOW_"),
            # Where a proxy is set: it has no way to this machine's loopback.
            **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost"),
            "PREFECT_HOME": str(home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_API_HOST": "127.0.0.1",
            "PREFECT_SERVER_API_PORT": str(port),
            "PREFECT_UI_API_URL": f"{self.url}/api",
            "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        }
        self._log = home / "server.log"
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "prefect", "server", "start"],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process, the head of a process group of its own."""
        return self._process.pid

    def wait_ready(self) -> dict[str, str]:
        """Wait until it answers, and return the environment that points to it."""
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                from prefect_mantik.prefect_server import why_server_cannot_start

                last = (self._log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
                raise MantikError(why_server_cannot_start() or f"the Prefect server did not start: {last}")
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/api/health", timeout=5, trust_env=False).is_success:
                    return {**self._environment, "PREFECT_API_URL": f"{self.url}/api"}
            time.sleep(0.2)
        raise MantikError(f"the Prefect server did not answer within {START_TIMEOUT:.0f} s")

    def stop(self) -> None:
        """End it and all its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@contextlib.contextmanager
def _prefect_server(home: Path, watchdog: Watchdog) -> Iterator[_PrefectServer]:
    server = _PrefectServer(home)
    watchdog.add(server.pid)
    try:
        yield server
    finally:
        server.stop()
        watchdog.remove(server.pid)


def _run(command: list[str], environment: Mapping[str, str], *, may_fail: bool = False) -> int:
    code = subprocess.run(command, env=dict(environment), stdin=subprocess.DEVNULL, check=False).returncode
    if code and not may_fail:
        raise MantikError(f"the demo's step `{' '.join(command[3:4])}` ended with exit code {code}")
    return code


def _keep(sandbox: SandboxProcess, server: _PrefectServer, began: float) -> None:
    _say(f"Prefect UI {server.url}, MLflow {sandbox.control.login_url()} (opens once). Ctrl-C ends all.", began)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()


def _say(text: str, began: float) -> None:
    print(f"[{time.monotonic() - began:5.1f} s] {text}", flush=True)


def block_file() -> Path:
    """The sandbox's block file: in an installed package beside us, in a checkout in `blocks/`."""
    packaged = Path(__file__).parent / "sandbox" / "blocks.yaml"
    return packaged if packaged.exists() else Path(__file__).parents[1] / "blocks" / "sandbox.yaml"


def _save(env_file: Path) -> int:
    from prefect_mantik.block_files import asave_blocks, read_block_file
    from prefect_mantik.environment import read_variables
    from prefect_mantik.loop import call

    saved = call(asave_blocks, read_block_file(block_file()), read_variables(env_file))
    print(f"saved {len(saved)} blocks: {', '.join(saved)}", flush=True)
    return 0


def _train() -> int:
    from prefect_mantik.flows.train_across_sites import train_across_sites

    best = train_across_sites(jobs=list(_JOBS), metric="val_loss", mode="min", model_name="digits")
    print(
        f"demo: {best['runs']} runs at {best['sites']} sites, {best['finished']} finished, best {best['best_site']} "
        f"{best['metric']}={best['value']:.4f}, model {best['model']} v{best['version']}",
        flush=True,
    )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(_save(Path(sys.argv[2])) if sys.argv[1] == "save" else _train())
    except MantikError as error:
        sys.exit(f"demo: {error}")
