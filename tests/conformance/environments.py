"""Virtual environments for programs that cannot live beside Prefect, built once under `build/venvs/`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

VENVS = Path(__file__).parents[2] / "build" / "venvs"
BUILD_TIMEOUT = 1200
QUESTION_TIMEOUT = 120


@dataclass(frozen=True)
class Environment:
    """What to install, and with which Python.

    Attributes:
        name: Directory below `build/venvs`.
        requirements: As pip takes them, the main one first.
        pythons: Versions that can run it, best first.
    """

    name: str
    requirements: tuple[str, ...]
    pythons: tuple[str, ...]

    def programs(self) -> Path:
        """The environment's `bin`, built unless it is there; the test is skipped where that is not possible."""
        directory = VENVS / self.name
        stamp, recipe = directory / ".built", "\n".join(self.requirements)
        if not (stamp.is_file() and stamp.read_text() == recipe):
            self._build(directory)
            stamp.write_text(recipe)
        return directory / "bin"

    def _build(self, directory: Path) -> None:
        began = time.monotonic()
        print(f"building {directory}: {', '.join(self.requirements)}", flush=True)
        shutil.rmtree(directory, ignore_errors=True)
        directory.parent.mkdir(parents=True, exist_ok=True)
        python = self._python()
        uv = shutil.which("uv")
        make = [uv, "venv", "--quiet", f"--python={python}"] if uv else [python, "-m", "venv"]
        _run([*make, str(directory)], BUILD_TIMEOUT, check=True)
        inside = str(directory / "bin" / "python")
        install = [uv, "pip", "install", "--quiet", f"--python={inside}"] if uv else [inside, *_PIP]
        done = _run([*install, *self.requirements], BUILD_TIMEOUT)
        if done.returncode:
            # Whether the index is to blame, or the requirements: the main one alone must at least be there.
            probe = _run([*install, "--dry-run", "--no-deps", self.requirements[0]], QUESTION_TIMEOUT)
            if probe.returncode:
                pytest.skip(
                    f"the package index cannot be reached for {self.name}: {probe.stdout.strip().splitlines()[-1:]}"
                )
            pytest.fail(f"{self.name} does not install:\n{done.stdout[-3000:]}")
        print(f"built {directory} in {time.monotonic() - began:.0f} s", flush=True)

    def _python(self) -> str:
        for version in self.pythons:
            for program in _pythons(version):
                # Version managers put programs on the PATH that only say they are not installed.
                if _run([program, "-c", "import venv"], QUESTION_TIMEOUT).returncode == 0:
                    return program
        pytest.skip(f"{self.name} needs Python {' or '.join(self.pythons)}, and there is none")


_PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")


def _pythons(version: str) -> Iterator[str]:
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        yield sys.executable
    if found := shutil.which(f"python{version}"):
        yield found
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from (str(path) for path in sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}")))


def _run(command: list[str], timeout: float, *, check: bool = False) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=check,
    )


OFFICIAL_CLIENT = Environment(
    name="mantik-0.5.11",
    # Its dependency `fs` needs pkg_resources, which setuptools dropped.
    requirements=("mantik[all]==0.5.11", "setuptools<81"),
    pythons=("3.11", "3.10"),
)

MLFLOW_2 = Environment(
    name="mlflow-2.2.2",
    # As on the day of its release.
    requirements=("mlflow==2.2.2", "setuptools<81", "sqlparse<0.4.4"),
    pythons=("3.10", "3.11"),
)

MLFLOW_2_TODAY = Environment(
    name="mlflow-2.2.2-today",
    # As pip installs it today: from sqlparse 0.4.4 on, this MLflow refuses filters with IN.
    requirements=("mlflow==2.2.2", "setuptools<81", "sqlparse>=0.5"),
    pythons=("3.10", "3.11"),
)
