"""The command `prefect-mantik`: what it prints, how it ends, and what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from prefect_mantik.cli import app

PASSWORD = "canary-Pw-c11"
COMMAND = [sys.executable, "-c", "from prefect_mantik.cli import app; app(prog_name='prefect-mantik')"]
LOGIN = "{type: mantik-credentials, name: cli, username: alice, password: {env: MANTIK_PASSWORD}}"


def cli(*arguments: str | Path) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def in_a_process(*arguments: str | Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def assert_one_line(stderr: str) -> None:
    """What is said of an error: one line of ours, no traceback, no log line beside it, no secret."""
    assert re.fullmatch(r"prefect-mantik: [^\n]+\n", stderr)
    assert PASSWORD not in stderr


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., list[Path]]:
    """A block file and the variables for it; gives the arguments of `blocks save`."""

    def make(entries: str = LOGIN, variables: str = f"export MANTIK_PASSWORD='{PASSWORD}'\n") -> list[Path]:
        blocks, env_file = tmp_path / "blocks.yaml", tmp_path / ".env"
        blocks.write_text(f"blocks: [{entries}]\n")
        env_file.touch(mode=0o600)
        env_file.write_text(variables)
        return [blocks, Path("--env-file"), env_file]

    return make


# --- Help and version -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], ["blocks", "demo", "sandbox"]),
        (["blocks"], ["save"]),
        (["blocks", "save"], ["--env-file", "files...", "Secrets come from variables"]),
        (["demo"], ["--keep"]),
    ],
    ids=" ".join,
)
def test_help_names_what_there_is(arguments: list[str], named: list[str]) -> None:
    result = cli(*arguments, "--help")
    assert result.exit_code == 0
    shown = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", result.output).split())
    assert [word for word in named if word not in shown] == []


def test_the_sandbox_shows_its_own_options(capfd: pytest.CaptureFixture[str]) -> None:
    result = cli("sandbox", "--help")
    assert result.exit_code == 0
    assert "--token-lifetime" in result.output + capfd.readouterr().out


def test_version_names_ours_and_prefects() -> None:
    result = cli("--version")
    assert result.exit_code == 0
    ours, prefect = (metadata.version(name) for name in ("prefect-mantik", "prefect"))
    assert result.output == f"prefect-mantik {ours}, prefect {prefect}\n"


@pytest.mark.parametrize("arguments", [["nothing"], ["blocks", "save"], ["blocks", "save", "a.yaml", "--env"]])
def test_wrong_usage_ends_with_2(arguments: list[str]) -> None:
    result = cli(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


@pytest.mark.parametrize("command", [["sandbox"], ["demo"]])
@pytest.mark.parametrize("code", [0, 3])
def test_an_exit_code_is_passed_on_and_is_no_trouble_with_prefect(
    monkeypatch: pytest.MonkeyPatch, command: list[str], code: int
) -> None:
    import prefect_mantik.demo
    import prefect_mantik.prefect_server
    import prefect_mantik.sandbox.__main__

    asked: list[BaseException] = []
    monkeypatch.setattr(prefect_mantik.demo, "run_demo", lambda keep: code)
    monkeypatch.setattr(prefect_mantik.sandbox.__main__, "main", lambda arguments, prog: code)
    monkeypatch.setattr(prefect_mantik.prefect_server, "explain", asked.append)
    result = cli(*command)
    assert result.exit_code == code
    assert asked == []


# --- blocks save ----------------------------------------------------------------------------------------------------


def test_blocks_save_names_what_it_saved(prefect_server: Any, files: Callable[..., list[Path]]) -> None:
    connection = (
        "{type: mantik-connection, name: cli, credentials: {block: mantik-credentials/cli},"
        " connection_id: {env: AN_ID}}"
    )
    variables = f"export MANTIK_PASSWORD='{PASSWORD}'\nexport AN_ID=0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9\n"
    given = files(f"{LOGIN}, {connection}", variables)
    done = in_a_process("blocks", "save", *given, env=prefect_server.environment())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "saved mantik-credentials/cli\nsaved mantik-connection/cli\n"
    assert {"mantik-credentials/cli", "mantik-connection/cli"} <= prefect_server.documents()


BAD: dict[str, tuple[str, str, str]] = {
    "a missing variable": (LOGIN, "", "MANTIK_PASSWORD is not set"),
    "an unknown type": ("{type: mantik-sight, name: x}", "", "no block type 'mantik-sight'"),
    "an unknown field": (LOGIN.replace("username", "user"), f"MANTIK_PASSWORD='{PASSWORD}'", "unknown field user"),
    "a bad URL": (
        LOGIN.replace("}}", "}, api_url: {env: MANTIK_PASSWORD}}"),
        f"MANTIK_PASSWORD='{PASSWORD}'",
        "mantik-credentials/cli: ",
    ),
    "a bad Connection ID": (
        LOGIN + ", {type: mantik-connection, name: x, connection_id: {env: MANTIK_PASSWORD},"
        " credentials: {block: mantik-credentials/cli}}",
        f"MANTIK_PASSWORD='{PASSWORD}'",
        "connection_id: ",
    ),
    "a bad line in the .env file": (LOGIN, f"MANTIK_PASSWORD = {PASSWORD}", "line 1"),
    "an error in the YAML": (LOGIN + ", {", "", "is not valid YAML"),
}


@pytest.mark.parametrize("case", BAD)
def test_blocks_save_says_in_one_line_what_is_wrong(files: Callable[..., list[Path]], case: str) -> None:
    entries, variables, said = BAD[case]
    result = cli("blocks", "save", *files(entries, variables))
    assert (result.exit_code, result.stdout) == (1, "")
    assert said in result.stderr
    assert_one_line(result.stderr)


def test_blocks_save_lists_all_missing_variables(files: Callable[..., list[Path]]) -> None:
    entry = LOGIN.replace("alice", "{env: MANTIK_USERNAME}")
    result = cli("blocks", "save", *files(entry, ""))
    assert result.exit_code == 1
    assert result.stderr.splitlines()[1:] == [
        f"  - {name} is not set, and the block file needs it." for name in ("MANTIK_PASSWORD", "MANTIK_USERNAME")
    ]


@pytest.mark.parametrize("missing", ["blocks.yaml", ".env"])
def test_blocks_save_names_a_file_that_is_not_there(files: Callable[..., list[Path]], missing: str) -> None:
    arguments = files()
    next(path for path in arguments if path.name == missing).unlink()
    result = cli("blocks", "save", *arguments)
    assert result.exit_code == 1
    assert f"{missing} cannot be read: No such file or directory" in result.stderr
    assert_one_line(result.stderr)


# --- A Prefect that does not work -----------------------------------------------------------------------------------


def test_a_prefect_that_cannot_be_reached_is_named(files: Callable[..., list[Path]]) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # bound, not listening: nobody else gets it, and nobody answers
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        done = in_a_process("blocks", "save", *files(), env={**os.environ, "PREFECT_API_URL": url})
    assert (done.returncode, done.stdout) == (1, "")
    assert_one_line(done.stderr)
    assert f"Prefect server at {url} cannot be reached" in done.stderr


BROKEN_PREFECT = '''
import sys

class Refuse:
    """Ends the import of Prefect's server as a FastAPI ends it that is too new for it."""

    def find_spec(self, name, path=None, target=None):
        if name == "prefect.server.api.concurrency_limits_v2":
            raise TypeError("Body() got an unexpected keyword argument 'min_items'")

sys.meta_path.insert(0, Refuse())
'''


@pytest.fixture
def with_broken_prefect(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "sitecustomize.py").write_text(BROKEN_PREFECT)
    return {**os.environ, "PYTHONPATH": str(tmp_path / "broken")}


def test_a_prefect_that_cannot_start_its_server_names_fastapi(
    files: Callable[..., list[Path]], with_broken_prefect: dict[str, str]
) -> None:
    assert "PREFECT_API_URL" not in with_broken_prefect
    done = in_a_process("blocks", "save", *files(), env=with_broken_prefect)
    assert (done.returncode, done.stdout) == (1, "")
    assert_one_line(done.stderr)
    assert f"fastapi {metadata.version('fastapi')}" in done.stderr
    assert "min_items" in done.stderr
    assert "pip install 'fastapi" in done.stderr


# --- Ctrl-C ---------------------------------------------------------------------------------------------------------


def processes_with(marker: str) -> list[int]:
    """Processes in whose environment or command line a text stands."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            texts = (directory / "environ").read_bytes() + (directory / "cmdline").read_bytes()
            if marker.encode() in texts and "\nState:\tZ" not in (directory / "status").read_text():
                found.append(int(directory.name))
    return found


def until(done: Callable[[], Any], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.fixture
def started_sandbox(tmp_path: Path, with_broken_prefect: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A sandbox of the command line, in a group of its own as a terminal has it; all it keeps lies in `tmp_path`."""
    arguments = ["sandbox", "--env-file", str(tmp_path / "sandbox.env"), "--state-dir", str(tmp_path / "state")]
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        env=with_broken_prefect,  # the sandbox has no business with Prefect
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    yield process
    for pid in processes_with(str(tmp_path)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
def test_ctrl_c_ends_the_sandbox_and_all_its_processes(started_sandbox: subprocess.Popen[str], tmp_path: Path) -> None:
    assert until(lambda: (tmp_path / "sandbox.env").exists() or started_sandbox.poll() is not None, 60)
    assert len(processes_with(str(tmp_path))) > 1  # at least the tracking server beside it
    os.killpg(started_sandbox.pid, signal.SIGINT)
    began = time.monotonic()
    output, errors = started_sandbox.communicate(timeout=25)
    assert started_sandbox.returncode in (0, 130), errors
    assert until(lambda: not processes_with(str(tmp_path)), 5)
    assert time.monotonic() - began < 15
    assert "Traceback" not in output + errors
    assert "fastapi" not in errors
