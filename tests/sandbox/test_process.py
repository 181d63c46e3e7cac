import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path

import httpx
import pytest

from prefect_mantik.sandbox.env_file import read_env_file, write_env_file
from prefect_mantik.sandbox.errors import SandboxError
from prefect_mantik.sandbox.process import start_sandbox

from .box import FAKE_MLFLOW, Box


def processes_with(text):
    """Ids of the processes that name a text in their command line or environment."""
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit() and int(directory.name) != os.getpid():
            try:
                seen = (directory / "cmdline").read_bytes() + (directory / "environ").read_bytes()
            except OSError:
                continue
            if text.encode() in seen:
                found.append(int(directory.name))
    return found


def state_directory(process):
    return re.search(r"state: +(\S+)", process.output())[1]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_behind(start_light, number):
    process = start_light()
    box = Box(process)
    config = box.config(Environment={"PreRunCommandOnComputeNode": ["(trap '' TERM; sleep 63) &", "echo begun"]})
    runs = [box.submit("sleep", backendConfig=config), box.submit("sleep", site="cedar")]
    for run in runs:
        box.running(run)
    state = state_directory(process)
    deadline = time.monotonic() + 20
    while len(processes_with(state)) <= 4:  # the sandbox, MLflow, and two jobs with what they started
        assert time.monotonic() < deadline, processes_with(state)
        time.sleep(0.05)
    begun = time.monotonic()
    os.kill(process.pid, number)
    while processes_with(state) or Path(state).exists():
        assert time.monotonic() - begun < 5, processes_with(state)
        time.sleep(0.05)
    assert process.wait(5) == (-signal.SIGKILL if number == signal.SIGKILL else 0)


def test_stop_is_clean(start_light, tmp_path, capfd):
    state = tmp_path / "state"
    rules = tmp_path / "faults.json"
    rules.write_text(json.dumps([{"action": "status", "route": "/projects/*/data", "status": 418}]))
    process = start_light(version="2.2.2", state_dir=state, faults=rules, run_name="unchanged", all_endpoints=True)
    box = Box(process)
    assert box.http.get(box.runs_path.replace("runs", "data")).status_code == 418
    assert box.control.call("GET", "/switches")["run_name"] == "unchanged"
    assert state.stat().st_mode & 0o777 == 0o700
    box.ended(box.submit())
    printed = process.output()
    for secret in (box.env["MANTIK_PASSWORD"], box.env["MANTIK_SANDBOX_CONTROL_TOKEN"]):
        assert secret not in printed
    assert "Traceback" not in printed
    assert process.env_file.stat().st_mode & 0o777 == 0o600
    assert process.stop() == 0
    assert state.exists()
    again = Box(start_light(state_dir=state))
    assert again.ended(again.submit())["state"] == "COMPLETED"


def test_listens_on_loopback_only(box):
    port = int(box.process.url.rpartition(":")[2])
    listening = {line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines() if line.split()[3] == "0A"}
    assert [address for address in listening if address.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]


def test_env_file_can_be_sourced(box, tmp_path):
    path = tmp_path / "with space" / ".env"
    path.parent.mkdir()
    path.write_text("export MANTIK_SANDBOX_CONTROL_URL='old'\n")
    path.chmod(0o644)
    values = {**box.env, "TRICKY": 'it\'s $HOME `x` "y" \\ z'}
    write_env_file(path, values)
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]
    assert read_env_file(path) == values
    script = f'set -eu; source "{path}"; {sys.executable} -c "import json, os; print(json.dumps(dict(os.environ)))"'
    seen = json.loads(subprocess.check_output(["bash", "-c", script], env={"PATH": "/usr/bin:/bin"}))
    assert {name: seen[name] for name in values} == values


def test_env_file_of_somebody_else_is_left_alone(tmp_path):
    path = tmp_path / ".env"
    path.write_text("export MANTIK_PASSWORD='a real one'\n")
    with pytest.raises(SandboxError, match="was not written by a sandbox"):
        write_env_file(path, {"MANTIK_PASSWORD": "x"})
    assert "a real one" in path.read_text()
    with pytest.raises(SandboxError, match="there is no folder"):
        write_env_file(tmp_path / "missing" / ".env", {})
    assert not (tmp_path / "missing").exists()


def test_env_file_names_everything(box):
    names = {
        "MANTIK_USERNAME",
        "MANTIK_PASSWORD",
        "MANTIK_API_URL",
        "MANTIK_UNICORE_USERNAME",
        "MANTIK_UNICORE_PASSWORD",
        "MLFLOW_TRACKING_URI",
        "MANTIK_COMPUTE_BUDGET_ACCOUNT",
        "MANTIK_PROJECT_ID",
        "MANTIK_EXPERIMENT_REPOSITORY_ID",
        "MANTIK_CODE_REPOSITORY_ID",
        "MANTIK_DATA_REPOSITORY_ID",
        "MANTIK_FIRECREST_CLIENT_ID",
        "MANTIK_FIRECREST_CLIENT_SECRET",
        "MANTIK_SANDBOX_CEDAR_TOKEN_URL",
        "MANTIK_SANDBOX_CEDAR_ROOT",
        "MANTIK_SANDBOX_CONTROL_URL",
        "MANTIK_SANDBOX_CONTROL_TOKEN",
    }
    for site in ("ALDER", "BIRCH", "CEDAR"):
        names |= {f"MANTIK_CONNECTION_ID_{site}", f"MANTIK_SANDBOX_{site}_URL"}
    assert box.env.keys() == names


def test_failed_start_says_why(start_light, tmp_path):
    (tmp_path / "faults.json").write_text('[{"action": "sing"}]')
    with pytest.raises(RuntimeError, match="is not a list of fault rules"):
        start_light(faults=tmp_path / "faults.json")
    with pytest.raises(TypeError, match="no such switch: colour"):
        start_light(colour="red")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(RuntimeError, match="in use") as failure:
            start_light(port=taken.getsockname()[1])
        assert "Traceback" not in str(failure.value)
    with pytest.raises(RuntimeError, match="MLflow did not become ready"):
        start_sandbox(mlflow_command=f"{sys.executable} {FAKE_MLFLOW} 3.0.0 unknown")


def test_sandbox_imports_nothing_else_of_the_package():
    code = """
import sys, prefect_mantik.sandbox.__main__, prefect_mantik.sandbox.process
ours = [m for m in sys.modules if m.startswith("prefect_mantik.") and not m.startswith("prefect_mantik.sandbox")]
print(ours, [m for m in sys.modules if m == "prefect" or m == "mlflow" or m == "fastapi"])
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[] []"


def test_plugin_is_cheap():
    code = "import pytest, sys; import prefect_mantik.sandbox.pytest_plugin; print('httpx' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_plugin_fixture(tmp_path):
    command = f"{sys.executable} {FAKE_MLFLOW} 3.0.0"
    test = f"def test(start_mantik_sandbox):\n    assert start_mantik_sandbox(mlflow_command={command!r}).url\n"
    (tmp_path / "test_theirs.py").write_text(test)
    installed = any(found.value.endswith("sandbox.pytest_plugin") for found in entry_points(group="pytest11"))
    plugin = [] if installed else ["-p", "prefect_mantik.sandbox.pytest_plugin"]
    run = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", *plugin, str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_answers_are_fast_enough(box):
    # Nothing is measured here but that no call of the platform waits for a poll or a sleep of ours.
    begun = time.monotonic()
    with httpx.Client(base_url=box.process.url, headers=box.http.headers, trust_env=False) as client:
        for _ in range(50):
            client.get(box.runs_path.replace("runs", "data"))
    assert time.monotonic() - begun < 2
