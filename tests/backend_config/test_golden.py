"""What configs are rendered to, word by word. `UPDATE_GOLDEN=1` writes the files anew; read the difference."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from prefect_mantik.backend_config import (
    BackendConfig,
    parse_backend_config,
    slurm_fields,
    slurm_script,
    training_script,
    unicore_job,
)

GOLDEN = Path(__file__).parent / "golden"
CONFIGS = """
apptainer:
  UnicoreApiUrl: https://unicore.fz-juelich.de/JUWELS/rest/core
  Resources: {Queue: booster, Runtime: 12h, Nodes: 2, CPUsPerNode: 4, GPUsPerNode: 4, MemoryPerNode: 12GiB, QoS: high}
  Environment:
    Apptainer: {Path: images/image.sif, Options: [--nv, "--bind $DATA:/data"]}
    Modules: [CUDA, GCCcore/.11.2.0]
    Variables: {GREETING: 'say "hi" to $USER & co', RATE: 7e-6, DEBUG: true}
    PreRunCommandOnLoginNode: |
      mkdir -p $SCRATCH/data
      cp *.csv $SCRATCH/data
    PostRunCommandOnLoginNode: echo finished;
    PreRunCommandOnComputeNode:
      - cd $MANTIK_WORKING_DIRECTORY
      - |
        for file in *.csv; do
          wc -l "$file"
        done
    PostRunCommandOnComputeNode: ls -l  # what came out
python:
  Firecrest: {ApiUrl: https://api.example.org/ml/firecrest/v2, TokenUrl: https://auth.example.org/token, Machine: daint}
  Resources: {Queue: normal, Runtime: 90m, Nodes: 1, TotalCPUs: 8, GPUsPerNode: 0, MemoryPerNode: 12GiB,
              Reservation: r1, NodeConstraints: gpu&mem, QoS: high}
  Environment: {Python: /users/$USER/venv/, Variables: {A: b}, PreRunCommandOnComputeNode: nvidia-smi}
rest:
  Firecrest: {ApiUrl: https://api.example.org/ml/firecrest/v2, TokenUrl: https://auth.example.org/token, Machine: daint}
  Resources: {Queue: normal, Nodes: 1, CPUsPerNode: 1, Reservation: r1, NodeConstraints: gpu&mem}
plain:
  UnicoreApiUrl: https://unicore.fz-juelich.de/JUWELS/rest/core
  Resources: {Queue: batch, Runtime: 0, MemoryPerNode: -1}
"""
OURS = {"MLFLOW_RUN_ID": "0af3", "MLFLOW_TRACKING_URI": "https://example.org/tracking", "PLAIN": "it's $5"}
COMMAND = "python train.py --rate 0.1 --name 'it'\"'\"'s' && ls *.pt > list.txt"
BEFORE = ("tar xzf code.tar.gz", "cd code")


def config(name: str) -> BackendConfig:
    return parse_backend_config(yaml.safe_load(CONFIGS)[name])


def job(name: str) -> dict[str, object]:
    return unicore_job(config(name), command=COMMAND, variables=OURS, account="slai", before=BEFORE)


def script_of(name: str, file: str) -> str:
    (text,) = [item["Data"] for item in job(name)["Imports"] if item["To"] == file]  # type: ignore[attr-defined]
    return str(text)


DIRECTORY = "/scratch/ada/mantik/0af3"


def slurm(name: str) -> str:
    return slurm_script(
        config(name), job_name="pm-1", directory=DIRECTORY, command=COMMAND, variables=OURS, account="s123"
    )


def fields(name: str, *, reads_directives: bool = False) -> str:
    found = slurm_fields(
        config(name), job_name="pm-1", directory=DIRECTORY, account="s123", reads_directives=reads_directives
    )
    return json.dumps(found, indent=2) + "\n"


FILES: dict[str, Callable[[], str]] = {
    "apptainer.sh": lambda: training_script(config("apptainer"), command=COMMAND, variables=OURS, before=BEFORE),
    "apptainer-before.sh": lambda: script_of("apptainer", "mantik-before.sh"),
    "apptainer-after.sh": lambda: script_of("apptainer", "mantik-after.sh"),
    "apptainer-job.json": lambda: json.dumps(job("apptainer") | {"Imports": "above"}, indent=2) + "\n",
    "python.sh": lambda: training_script(config("python"), command=COMMAND, variables=OURS),
    "python-slurm.sh": lambda: slurm("python"),
    "rest-fields.json": lambda: fields("rest"),
    "python-fields.json": lambda: fields("python", reads_directives=True),
    "rest-slurm.sh": lambda: slurm("rest"),
    "plain.sh": lambda: training_script(config("plain"), command=COMMAND, variables={}),
    "plain-job.json": lambda: json.dumps(job("plain") | {"Imports": "above"}, indent=2) + "\n",
}


@pytest.mark.parametrize("file", FILES)
def test_renderings(file: str) -> None:
    path, rendered = GOLDEN / file, FILES[file]()
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(rendered)
    assert rendered == path.read_text()


def test_the_job_brings_the_scripts_that_it_runs() -> None:
    assert script_of("apptainer", "mantik.sh") == FILES["apptainer.sh"]()
    names = {item["To"]: item for item in job("apptainer")["Imports"]}  # type: ignore[attr-defined]
    assert set(names) == {"mantik.sh", "mantik-before.sh", "mantik-after.sh"}
    assert [item["To"] for item in job("plain")["Imports"]] == ["mantik.sh"]  # type: ignore[attr-defined]


SCRIPTS = sorted(GOLDEN.glob("*.sh"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_bash_reads_them(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path: Path) -> None:
    shellcheck = shutil.which(
        "shellcheck", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    if shellcheck is None:
        pytest.skip("no shellcheck")
    # Not found: files of the site, and variables that the site sets. The user's own commands may be as they are.
    excluded = "SC1090,SC1091,SC2154,SC2086,SC2164,SC2035,SC2016,SC2320"
    done = subprocess.run([shellcheck, "-e", excluded, path], capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert done.returncode == 0


def test_every_golden_file_is_looked_at() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == set(FILES)
