"""A training that costs nothing: it logs a metric over plain HTTP, waits for a file, and ends."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

BRANCH = "quick"
METRIC = "loss"

_MLPROJECT = """\
name: quick
entry_points:
  quick:
    parameters:
      gate: {type: string, default: ""}
    command: "python quick.py {gate}"
"""
_QUICK = '''\
"""Log one metric, wait for a file (two minutes at most), close the MLflow run."""
import json, os, sys, time, urllib.error, urllib.request

def tell(path, **body):
    uri, token = os.environ["MLFLOW_TRACKING_URI"].rstrip("/"), os.environ.get("MLFLOW_TRACKING_TOKEN")
    if not token or not uri.startswith("http"):
        return
    for pause in (0.5, 1, 2, 4, 8, 16, 0):
        request = urllib.request.Request(
            uri + "/api/2.0/mlflow/" + path, json.dumps({"run_id": os.environ["MLFLOW_RUN_ID"], **body}).encode(),
            {"Content-Type": "application/json", "Authorization": "Bearer " + token},
        )
        try:
            return urllib.request.urlopen(request, timeout=20).read()
        except urllib.error.HTTPError as error:
            print(path, error, flush=True)
            if error.code < 500:  # a token that ended: the training goes on without, as any would
                return
            time.sleep(pause)
        except OSError as error:
            print(path, error, flush=True)
            time.sleep(pause)

tell("runs/update", status="RUNNING")
now = int(time.time() * 1000)
tell("runs/log-batch", metrics=[{"key": "loss", "value": 0.25, "timestamp": now, "step": 0}])
if sys.argv[1:] and sys.argv[1]:
    open(sys.argv[1] + "-logged", "w").close()
deadline = time.time() + 120
while sys.argv[1:] and sys.argv[1] and not os.path.exists(sys.argv[1]) and time.time() < deadline:
    time.sleep(0.1)
tell("runs/update", status="FINISHED", end_time=int(time.time() * 1000))
'''
_GIT = ("git", "-c", "user.name=Fault matrix", "-c", "user.email=faults@localhost", "-c", "init.defaultBranch=main")


def publish(repository: Path) -> None:
    """Add the training as a branch to the sandbox's code repository, unless it is there."""
    known = _git(repository, "branch", "--list", BRANCH)
    if known.strip():
        return
    with tempfile.TemporaryDirectory(prefix="quick-") as name:
        work = Path(name)
        _git(work, "init", "--quiet")
        (work / "MLproject").write_text(_MLPROJECT)
        (work / "quick.py").write_text(_QUICK)
        _git(work, "add", "--all")
        _git(work, "commit", "--quiet", "--message=A training that costs nothing")
        _git(work, "push", "--quiet", str(repository), f"HEAD:refs/heads/{BRANCH}")


def _git(directory: Path, *arguments: str) -> str:
    return subprocess.run([*_GIT, *arguments], cwd=directory, capture_output=True, check=True, text=True).stdout
