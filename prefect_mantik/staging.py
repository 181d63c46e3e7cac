"""A run's code as one archive, for sites to which we send it ourselves.

What is packed is the directory of the MLproject file, its content at the archive's root, as the platform uploads it.
The same content gives the same bytes (with the same zlib), whoever packs it, wherever and whenever.

Left out, at any depth:

- what `Exclude` names: `name` or a glob means files of that name in any directory, `name/` means directories of that
  name; these are the platform's rules. With a `/` further in front (`data/*.csv`, `data/raw/`, `**/x.npy`) the whole
  path below the project's directory is meant, where the platform's client matches nothing.
- what tools leave behind (`LEFTOVERS`), and virtual environments under any name (they hold a `pyvenv.cfg`);
- what holds secrets (`SECRETS`), in git repositories too. Templates such as `.env.example` are packed.
- sockets, pipes and devices.

Symbolic links are packed as links and never followed. One that leads out of the project is an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import gzip
import os
import posixpath
import stat
import tarfile
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

from pydantic import SecretStr

from prefect_mantik.errors import ConfigurationError
from prefect_mantik.git import TIME_LIMIT, check_out
from prefect_mantik.log import run_logger
from prefect_mantik.runs import CodeDirectory, GitCode

MAX_BYTES = 500 * 2**20
"""Of the archive."""

LEFTOVERS = (
    *(".git", ".hg", ".svn", ".venv", ".tox", ".nox", "__pycache__", "mlruns", ".DS_Store"),
    *(".ipynb_checkpoints", ".mypy_cache", ".pytest_cache", ".ruff_cache"),
)
SECRETS = (".env", ".env.*", ".envrc", ".netrc", ".git-credentials", ".aws", ".mantik", ".ssh")
_TEMPLATES = (".env.dist", ".env.example", ".env.sample", ".env.template")

_MLPROJECT = "MLproject"
_MTIME = 315_619_200  # 1980-01-02: zip files, and so wheels built at the site, can hold nothing older
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_REPORT_AFTER = 5.0

_Kind = Literal["file", "folder", "link"]


@dataclass(frozen=True)
class StagedCode:
    """Code, packed.

    Attributes:
        mlproject: Text of the MLproject file.
        archive: The .tar.gz file.
        size: Of the archive, in bytes.
        commit: Of code from git, in full.
        files: How many files and links are in the archive.
        top_level: The names at the archive's root.
        image: The container image that goes along, which is not in the archive.
    """

    mlproject: str
    archive: Path
    size: int
    commit: str | None
    files: int
    top_level: frozenset[str]
    image: Path | None


@contextlib.asynccontextmanager
async def stage(
    code: GitCode | CodeDirectory,
    *,
    mlproject_path: str = _MLPROJECT,
    exclude: Sequence[str] = (),
    image: str | None = None,
    token: SecretStr | None = None,
    git_time_limit: float = TIME_LIMIT,
) -> AsyncIterator[StagedCode]:
    """Pack code into a temporary archive, which is gone when the block is left.

    Args:
        code: A directory of this machine, or a git repository at a branch, tag or commit.
        mlproject_path: Of the MLproject file, or of its folder, in the directory or repository.
        exclude: The compute backend config's `Exclude`.
        image: Path of a container image in the directory of the MLproject file, which is sent apart. `Exclude` does
            not apply to it, as on the platform.
        token: For a private git repository on https.
        git_time_limit: Seconds for fetching from git.

    Yields:
        The archive and what is known of it.

    Raises:
        ConfigurationError: There is no such directory, repository, ref or MLproject file, or it cannot be packed.
        ServiceUnavailable: The git server could not be reached.
    """
    scratch = tempfile.TemporaryDirectory(prefix="prefect-mantik-code-", ignore_cleanup_errors=True)
    try:
        place, commit = Path(scratch.name), None
        if isinstance(code, GitCode):
            root, name = place / "code", f"{code.url} at {code.ref}"
            commit = await check_out(code, root, token=token, time_limit=git_time_limit)
        else:
            root, name = Path(code.path), code.path
        patterns = (exclude,) if isinstance(exclude, str) else exclude
        packing = _Packing(root, name, mlproject_path, patterns, posixpath.normpath(image) if image else None)
        staged = replace(await _in_thread(packing, place / "code.tar.gz"), commit=commit)
        run_logger().info("Packed %d files of %s: %s.", staged.files, name, _amount(staged.size))
        yield staged
    finally:
        await asyncio.to_thread(scratch.cleanup)


async def _in_thread(packing: _Packing, archive: Path) -> StagedCode:
    """Pack in a thread. When cancelled, wait until it stopped: its directory is about to be removed."""
    work = asyncio.ensure_future(asyncio.to_thread(packing.pack, archive))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        packing.stop.set()
        await asyncio.gather(work, return_exceptions=True)
        raise


@dataclass(frozen=True)
class _Entry:
    name: str
    path: Path
    kind: _Kind
    size: int = 0


class _Stopped(Exception): ...


@dataclass
class _Packing:
    """One directory on its way into an archive, and the names of what is worth a warning."""

    root: Path
    name: str
    mlproject_path: str
    exclude: Sequence[str]
    image: str | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    remarks: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def pack(self, archive: Path) -> StagedCode:
        """Write the archive, and say what is in it."""
        mlproject = self._mlproject()
        project = mlproject.parent.resolve()
        try:
            image = self._image(project)
            entries = sorted(self._entries(project, project), key=lambda entry: os.fsencode(entry.name))
            text = mlproject.read_text(encoding="utf-8")
            size = self._write(entries, archive)
        except UnicodeDecodeError:
            raise ConfigurationError(f"{mlproject} is not UTF-8 text: save it as such.") from None
        except OSError as error:
            at = f", {error.filename}," if error.filename else ""
            raise ConfigurationError(
                f"{self.name}{at} cannot be packed: {error.strerror or error}. Name it in Exclude if the run does not "
                f"need it. If the disk of {archive.parent.parent} is full, set TMPDIR to a directory on another one."
            ) from None
        for remark, names in self.remarks.items():
            run_logger().warning("%s: %s (%s).", remark, _few(sorted(names)), self.name)
        return StagedCode(
            mlproject=text,
            archive=archive,
            size=size,
            commit=None,
            files=sum(entry.kind != "folder" for entry in entries),
            top_level=frozenset(entry.name for entry in entries if "/" not in entry.name),
            image=image,
        )

    def _image(self, project: Path) -> Path | None:
        if self.image is None:
            return None
        found = (project / self.image).resolve()
        if not found.is_relative_to(project) or not found.is_file():
            raise ConfigurationError(
                f"There is no container image {self.image} in the directory of the {_MLPROJECT} file of {self.name}. "
                "One that lies at the site already has `Type: remote` and an absolute path."
            )
        return found

    def _mlproject(self) -> Path:
        """Find the MLproject file, in the tree and nowhere else."""
        root = self.root.expanduser()
        if not root.is_dir():
            raise ConfigurationError(f"There is no directory {self.name} on this machine, which is to send its code.")
        found = given / _MLPROJECT if (given := root / self.mlproject_path).is_dir() else given
        if not found.parent.resolve().is_relative_to(root.resolve()):
            raise ConfigurationError(
                f"The path of the MLproject file, {self.mlproject_path!r}, leads out of {self.name}: give it relative "
                "to that, as in 'training/MLproject'."
            )
        if not found.is_file() or found.name.lower() != _MLPROJECT.lower():
            raise ConfigurationError(
                f"There is no {_MLPROJECT} file {found.relative_to(root).as_posix()} in {self.name}. {_there(found)} "
                f"Check the path, and that the file is called {_MLPROJECT}, without an ending."
            )
        if fatal := [pattern for pattern in self.exclude if _excludes(pattern, (found.name,), "file", found)]:
            raise ConfigurationError(
                f"Exclude of the compute backend config names the {_MLPROJECT} file itself, without which nothing can "
                f"run: make {', '.join(fatal)} narrower."
            )
        return found

    def _entries(self, project: Path, folder: Path) -> Iterator[_Entry]:
        if self.stop.is_set():
            raise _Stopped
        with os.scandir(folder) as scan:
            items = list(scan)
        for item in items:
            name = (path := Path(item.path)).relative_to(project).as_posix()
            kind = _kind(item)
            if self._left_out(path, name, kind or "file"):
                continue
            if kind is None:
                self.remarks["Not sent, since they are sockets, pipes or devices"].append(name)
                continue
            if kind == "link":
                self._check_link(project, path, name)
            yield _Entry(name, path, kind, item.stat().st_size if kind == "file" else 0)
            if kind == "folder":
                yield from self._entries(project, path)

    def _left_out(self, path: Path, name: str, kind: _Kind) -> bool:
        parts = tuple(name.split("/"))
        if name == self.image:
            return True
        if any(_excludes(pattern, parts, kind, path) for pattern in self.exclude):
            return True
        plain = parts[-1].lower()
        if plain not in _TEMPLATES and any(fnmatch.fnmatchcase(plain, pattern) for pattern in SECRETS):
            self.remarks["Not sent, since they may hold secrets"].append(name)
            return True
        return parts[-1] in LEFTOVERS or (kind == "folder" and (path / "pyvenv.cfg").is_file())

    def _check_link(self, project: Path, path: Path, name: str) -> None:
        target = os.readlink(path)
        by_name = PurePosixPath(os.path.normpath(os.path.join(os.path.dirname(name), target)))
        real = Path(os.path.realpath(path))  # resolve() raises on loops
        if os.path.isabs(target) or ".." in by_name.parts or not real.is_relative_to(project):
            raise ConfigurationError(
                f"The symbolic link {name} of {self.name} leads to {target}, which is not part of what is sent (the "
                "directory of the MLproject file), or only by a path of this machine: make it a relative link within "
                "that directory, copy the file there, or name the link in Exclude."
            )

    def _write(self, entries: Sequence[_Entry], archive: Path) -> int:
        with archive.open("wb") as file:
            check = self._checks(file, entries)
            with (
                gzip.GzipFile("", "wb", 6, file, mtime=0) as zipped,
                # Not PAX: every tar of every site takes GNU's, whatever bytes are in the names.
                tarfile.open(fileobj=zipped, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8") as tar,
            ):
                for entry in entries:
                    self._add(tar, entry, check)
            check()
            return file.tell()

    def _add(self, tar: tarfile.TarFile, entry: _Entry, check: Callable[[], None]) -> None:
        check()
        info = tarfile.TarInfo(entry.name)
        info.mtime, info.mode = _MTIME, 0o755
        if entry.kind != "file":
            info.type = tarfile.DIRTYPE if entry.kind == "folder" else tarfile.SYMTYPE
            info.linkname = os.readlink(entry.path) if entry.kind == "link" else ""
            tar.addfile(info)
            return
        # What was a file when we looked may be a link or a pipe by now.
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        with open(os.open(entry.path, flags), "rb") as content:
            now = os.fstat(content.fileno())
            if not stat.S_ISREG(now.st_mode):
                raise OSError(0, "it changed while it was packed", str(entry.path))
            info.size, info.mode = now.st_size, 0o755 if now.st_mode & stat.S_IXUSR else 0o644
            if now.st_size < 1024 and content.peek(64).startswith(_LFS_POINTER):
                self.remarks["Sent as the pointers that git LFS left in place of the files"].append(entry.name)
            tar.addfile(info, _Checked(content, check))

    def _checks(self, file: BinaryIO, entries: Sequence[_Entry]) -> Callable[[], None]:
        """What is asked between any two pieces: are we to stop, is it too big, has it taken long."""
        report = time.monotonic() + _REPORT_AFTER

        def check() -> None:
            nonlocal report
            if self.stop.is_set():
                raise _Stopped
            if file.tell() > MAX_BYTES:
                raise ConfigurationError(
                    f"The archive of {self.name} gets bigger than {_amount(MAX_BYTES)}. Biggest, before compression: "
                    f"{_biggest(entries)}. Name what the run does not need in Exclude of the compute backend "
                    "config ('name/' for directories), and put data on the site's file system."
                )
            if time.monotonic() > report:
                report = time.monotonic() + 4 * _REPORT_AFTER
                run_logger().info("Packing %s: %s so far.", self.name, _amount(file.tell()))

        return check


@dataclass
class _Checked:
    """A file that is read piece by piece, with a look around before each."""

    file: BinaryIO
    check: Callable[[], None]

    def read(self, size: int = -1) -> bytes:
        self.check()
        return self.file.read(size)


def _kind(item: os.DirEntry[str]) -> _Kind | None:
    return "link" if item.is_symlink() else "folder" if item.is_dir() else "file" if item.is_file() else None


def _there(missing: Path) -> str:
    folder = next(parent for parent in missing.parents if parent.is_dir())
    names = sorted(os.listdir(folder), key=lambda name: (not name.lower().startswith("mlproject"), name))
    return f"In {folder.name} there is: {_few(names) or 'nothing'}."


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def _excludes(pattern: str, parts: tuple[str, ...], kind: _Kind, path: Path) -> bool:
    """Whether an entry of `Exclude` means this; see the module's own text."""
    if pattern.endswith("/") != (kind == "folder" or (kind == "link" and pattern.endswith("/") and path.is_dir())):
        return False
    words = pattern.removeprefix("./").rstrip("/")
    return _match(parts if "/" in words else parts[-1:], tuple(words.strip("/").split("/")))


def _match(parts: tuple[str, ...], words: tuple[str, ...]) -> bool:
    if not words:
        return not parts
    if words[0] == "**":
        return _match(parts, words[1:]) or (bool(parts) and _match(parts[1:], words))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], words[0]) and _match(parts[1:], words[1:])


def _amount(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def _biggest(entries: Sequence[_Entry]) -> str:
    """The three biggest entries. Of a directory that one thing fills, that thing."""
    inside: dict[str, Counter[str]] = {}
    for entry in entries:
        path = PurePosixPath(entry.name)
        for part, above in zip((path, *path.parents), path.parents, strict=False):
            inside.setdefault(str(above), Counter())[str(part)] += entry.size
    shown = []
    for top in inside["."]:
        name, size = top, inside["."][top]
        while name in inside and (fill := inside[name].most_common(1)[0])[1] > 0.8 * size:
            name, size = fill
        shown.append((size, f"{name}{'/' if name in inside else ''} ({_amount(size)})"))
    return ", ".join(text for _, text in sorted(shown, reverse=True)[:3])
