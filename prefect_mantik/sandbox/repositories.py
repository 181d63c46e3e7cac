"""Git repositories that the platform fetches code from."""

from __future__ import annotations

import asyncio
import fnmatch
import io
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from prefect_mantik.sandbox.errors import ApiError
from prefect_mantik.sandbox.surroundings import base_environment

_IDENTITY = ("-c", "user.name=Mantik sandbox", "-c", "user.email=sandbox@localhost")


class Git:
    """Runs git without the user's own configuration."""

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self._environment: Mapping[str, str] = {
            **base_environment(home),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
        }

    def run(self, directory: Path, *arguments: str) -> bytes:
        """Run a git command and give its output."""
        done = subprocess.run(
            ["git", *_IDENTITY, *arguments], cwd=directory, env=self._environment, capture_output=True, check=True
        )
        return done.stdout

    def publish(self, source: Path, repository: Path) -> None:
        """Make a repository with the branch `main` from a directory, unless it is there already."""
        if (repository / ".git").exists():
            return
        shutil.copytree(source, repository, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        self.run(repository, "init", "--quiet", "--initial-branch=main")
        self.run(repository, "add", "--all")
        self.run(repository, "commit", "--quiet", "--message=The sandbox's project")

    async def export(self, uri: str, reference: str, target: Path) -> str:
        """Fetch one branch or commit into an empty directory and give the commit.

        Args:
            uri: The repository's URI.
            reference: A branch, a tag or a commit.
            target: Where its files go.
        """
        return await asyncio.to_thread(self._export, uri, reference, target)

    def _export(self, uri: str, reference: str, target: Path) -> str:
        repository = Path(uri.removeprefix("file://"))
        if reference.startswith("-"):
            raise ApiError(400, f"Branch or commit {reference!r} not found in the code repository")
        try:
            commit = (
                self.run(repository, "rev-parse", "--verify", "--quiet", f"{reference}^{{commit}}").decode().strip()
            )
        except subprocess.CalledProcessError:
            raise ApiError(400, f"Branch or commit {reference!r} not found in the code repository") from None
        archive = self.run(repository, "archive", "--format=tar", commit)
        target.mkdir(parents=True)
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(target, filter="data")
        return commit


def remove_excluded(directory: Path, patterns: Sequence[str]) -> None:
    """Remove what a config's `Exclude` names from a copy of the project.

    Args:
        directory: The copy.
        patterns: Names or globs relative to the directory; with a `/` at the end: any directory of that name.
    """
    for path in sorted(directory.rglob("*"), reverse=True):
        relative = path.relative_to(directory).as_posix()
        for pattern in patterns:
            if path.is_dir() and not path.is_symlink():
                if pattern.endswith("/") and fnmatch.fnmatch(path.name, pattern[:-1]):
                    shutil.rmtree(path)
                    break
            elif fnmatch.fnmatch(relative, pattern):
                path.unlink()
                break
