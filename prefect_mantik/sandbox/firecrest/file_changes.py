"""The commands that change files: mkdir, ln, chmod, chown, rm, base64 and tar."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from prefect_mantik.sandbox.firecrest.files import Account, command, command_failed
from prefect_mantik.sandbox.firecrest.replies import FirecrestError
from prefect_mantik.sandbox.firecrest.service import TIMED_OUT
from prefect_mantik.sandbox.surroundings import base_environment

# What a umask of 022 leaves, whatever the sandbox's own may be.
_UMASK = 0o022
_FILE_MODE, _DIRECTORY_MODE = 0o666 & ~_UMASK, 0o777 & ~_UMASK
TAR_FLAGS = {"none": "", "gzip": "z", "bzip2": "j", "xz": "J"}


def make_directory(account: Account, path: Path, *, parents: bool) -> None:
    """Make a directory.

    Args:
        account: Who asks.
        path: The directory.
        parents: Whether to make those above it too, and to be content if it is there.
    """
    missing = [directory for directory in (path, *path.parents) if not os.path.lexists(directory)]
    with command(f"mkdir: cannot create directory '{path}'"):
        account.look(path, follow=False)
        if parents and path.is_dir():
            return
        if path not in missing:
            raise FileExistsError(errno.EEXIST, "", str(path))
        for directory in reversed(missing if parents else [path]):
            account.site.check_quota(account.change(directory))
            directory.mkdir()
            directory.chmod(_DIRECTORY_MODE)


def make_link(account: Account, target: str, link: Path) -> None:
    """Make a symbolic link.

    Args:
        account: Who asks.
        target: What it points to; whether that is there does not matter.
        link: The link.
    """
    inside = link / Path(target).name if link.is_dir() else link
    with command(f"ln: failed to create symbolic link '{inside}'"):
        account.site.check_quota(account.change(inside))
        inside.symlink_to(target)


def change_mode(account: Account, path: Path, mode: str) -> None:
    """Change the permissions of a file.

    Args:
        account: Who asks.
        path: The file.
        mode: The new ones as an octal number.
    """
    if not re.fullmatch("[0-7]{1,4}", mode):
        raise command_failed(f"chmod: invalid mode: '{mode}'\nTry 'chmod --help' for more information.")
    with command(f"chmod: cannot access '{path}'"):
        account.look(path).stat()
    if account.owner(path, follow=True) != account.login:
        raise command_failed(f"chmod: changing permissions of '{path}': {os.strerror(errno.EPERM)}")
    path.chmod(int(mode, 8))


def change_owner(account: Account, path: Path, owner: str, group: str) -> None:
    """Give a file away, which nobody but root may.

    Args:
        account: Who asks.
        path: The file.
        owner: The new owner.
        group: The new group.
    """
    known = {*account.site.passwords, "root", ""}
    if owner not in known:
        raise command_failed(f"chown: invalid user: '{owner}:{group}'")
    if group not in known:
        raise command_failed(f"chown: invalid group: '{owner}:{group}'")
    with command(f"chown: cannot access '{path}'"):
        account.look(path).stat()
    if account.owner(path, follow=True) != account.login or not {owner, group} <= {account.login, ""}:
        raise command_failed(f"chown: changing ownership of '{path}': {os.strerror(errno.EPERM)}")


def remove(account: Account, paths: Sequence[Path]) -> None:
    """Remove files, and directories with all there is in them.

    Args:
        account: Who asks.
        paths: What to remove.
    """
    for path in paths:
        with command(f"rm: cannot remove '{path}'"):
            account.change(path)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def write(account: Account, path: Path, content: bytes) -> None:
    """Write a file, over one that may be there.

    Args:
        account: Who asks.
        path: The file.
        content: Its content.
    """
    with command(f"bash: line 1: {path}"):
        account.change(path, follow=True)
        new = not path.exists()
        path.open("wb").close()
        if new:
            path.chmod(_FILE_MODE)
    with command("base64: write error"):
        account.site.check_quota(path)
        path.write_bytes(content)


async def compress(
    account: Account, source: Path, target: Path, *, compression: str, pattern: str, dereference: bool, timeout: float
) -> None:
    """Pack a file or a directory.

    Args:
        account: Who asks.
        source: What to pack.
        target: The archive.
        compression: How to compress it.
        pattern: Packs only files whose path matches it; always with gzip then.
        dereference: Whether links stand for what they point to.
        timeout: Seconds after which the server gives up.
    """
    with command(f"tar: {source.parent}: Cannot open", 2):
        account.read(source.parent)
    with command(f"tar (child): {target}: Cannot open", 2):
        account.site.check_quota(account.change(target, follow=True))
    flag = "z" if pattern else TAR_FLAGS[compression]
    arguments = [*(["--dereference"] if dereference else []), f"-c{flag}f", str(target), "-C", str(source.parent)]
    if not pattern:
        await _tar(account, [*arguments, source.name], timeout)
        return
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise command_failed(f"find: failed to compile regular expression '{pattern}': {error}") from None
    files = (path for path in sorted(source.parent.rglob("*")) if path.is_file() and not path.is_symlink())
    names = [f"./{path.relative_to(source.parent)}" for path in files]
    chosen = "\0".join(name for name in names if wanted.fullmatch(name)).encode()
    await _tar(account, [*arguments, "--null", "--files-from", "-"], timeout, chosen)


async def extract(account: Account, source: Path, target: Path, *, compression: str, timeout: float) -> None:
    """Unpack an archive.

    Args:
        account: Who asks.
        source: The archive.
        target: The directory to unpack it into.
        compression: How it is compressed.
        timeout: Seconds after which the server gives up.
    """
    with command(f"tar (child): {source}: Cannot open", 2):
        account.read(source)
    with command(f"tar: {target}: Cannot open", 2):
        account.site.check_quota(account.change(target / source.name).parent)
    await _tar(account, [f"-x{TAR_FLAGS[compression]}f", str(source), "-C", str(target)], timeout)


async def _tar(account: Account, arguments: list[str], timeout: float, names: bytes | None = None) -> None:
    process = await asyncio.create_subprocess_exec(
        "tar",
        *arguments,
        env=base_environment(account.site.home(account.login)) | {"LC_ALL": "C"},
        stdin=asyncio.subprocess.DEVNULL if names is None else asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        umask=_UMASK,
    )
    try:
        _, errors = await asyncio.wait_for(process.communicate(names), timeout)
    except asyncio.TimeoutError:
        raise FirecrestError(408, TIMED_OUT) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise command_failed(errors.decode(errors="replace"), process.returncode)
