"""Whose the files of the site are, what of them an account may touch, and how failed commands are worded."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prefect_mantik.sandbox.firecrest.replies import FirecrestError
from prefect_mantik.sandbox.scheduler import Site

MAX_OPS_FILE_SIZE = 5242880

# What of a command's text decides about the status; the first that is found.
_STATUS_BY_TEXT = {
    "No such file or directory": 404,
    "Permission denied": 403,
    "Operation not permitted": 403,
    "File exists": 400,
    "invalid user": 400,
}


def command_failed(text: str, status: int = 1) -> FirecrestError:
    """Word the failure of a command as the server does.

    Args:
        text: What the command wrote to its standard error.
        status: Its exit status.
    """
    code = next((code for part, code in _STATUS_BY_TEXT.items() if part in text), 500)
    return FirecrestError(code, f"Remote process failed with exit status:{status} and error message:{text.strip()}")


@contextlib.contextmanager
def command(doing: str, status: int = 1) -> Iterator[None]:
    """Turn errors of the operating system into what a command would have said.

    Args:
        doing: What comes before the colon, e.g. "rm: cannot remove 'x'".
        status: The command's exit status.
    """
    try:
        yield
    except OSError as error:
        raise command_failed(f"{doing}: {os.strerror(error.errno or errno.EIO)}", status) from None


def words(text: str) -> list[Path]:
    """Read a path as the shell of the login node does: the server puts it between single quotes and escapes nothing.

    So quotes within a path vanish, and blanks outside of the quotes separate words. Of what else a shell would do with
    such a path the sandbox does nothing.

    Args:
        text: The path as it was sent.
    """
    try:
        found = shlex.split(f"'{text}'")
    except ValueError:
        end = "bash: -c: line 2: syntax error: unexpected end of file"
        raise command_failed(f"bash: -c: line 1: unexpected EOF while looking for matching `''\n{end}", 2) from None
    return [Path(word) for word in found]


@dataclass(frozen=True)
class Account:
    """A user of the site, as the site's files see it.

    All users of the sandbox are one and the same to the operating system, so the first directory below a file system
    tells whose a file is.
    """

    site: Site
    login: str

    @property
    def roots(self) -> list[Path]:
        """The site's file systems."""
        return [self.site.home(self.login).parent, self.site.scratch(self.login).parent]

    def check(self, path: str, system: str) -> str:
        """Refuse a path that lies in none of the file systems, and give it back otherwise.

        Args:
            path: The path as it was sent.
            system: The name of the system in the request.
        """
        if not path.startswith("/"):
            raise FirecrestError(400, f"The provided path ({path}) is not an absolute path.")
        plain = os.path.normpath(path).replace("//", "/")
        if not any(plain == str(root) or plain.startswith(f"{root}/") for root in self.roots):
            where = f"the defined filesystem paths for the requested system ({system})"
            raise FirecrestError(400, f"The provided path ({plain}) does not match any of {where}.")
        return path

    def owner(self, path: Path, *, follow: bool = False) -> str:
        """Name whose a file is.

        Args:
            path: The file.
            follow: Whether a link stands for what it points to.
        """
        _, parts = self._place(path, follow)
        return parts[0] if parts else "root"

    def look(self, path: Path, *, follow: bool = True) -> Path:
        """Give a file that is to be described, if the account may know of it.

        Args:
            path: The file.
            follow: Whether a link stands for what it points to.

        Raises:
            PermissionError: It may not.
        """
        root, parts = self._place(path, follow)
        if root is None or (len(parts) > 1 and self._foreign(root, parts)):
            raise _denied(path)
        return path

    def read(self, path: Path) -> Path:
        """Give a file or directory whose content is to be read, if the account may read it."""
        root, parts = self._place(path, follow=True)
        if root is None or self._foreign(root, parts):
            raise _denied(path)
        return path

    def change(self, path: Path, *, follow: bool = False) -> Path:
        """Give a file that is to be made, changed or removed, if the account may do that.

        Args:
            path: The file.
            follow: Whether a link stands for what it points to.
        """
        root, parts = self._place(path, follow)
        if root is not None and len(parts) > 1 and not (root / parts[0]).exists():
            raise FileNotFoundError(errno.ENOENT, "", str(path))
        if root is None or len(parts) < 2 or parts[0] != self.login:
            raise _denied(path)
        return path

    def _foreign(self, root: Path, parts: tuple[str, ...]) -> bool:
        return bool(parts) and parts[0] != self.login and (root / parts[0]).exists()

    def _place(self, path: Path, follow: bool) -> tuple[Path | None, tuple[str, ...]]:
        path = Path(os.path.normpath(path))
        real = Path(os.path.realpath(path)) if follow else Path(os.path.realpath(path.parent)) / path.name
        for root in map(Path, map(os.path.realpath, self.roots)):
            if real == root or root in real.parents:
                return root, real.relative_to(root).parts
        return None, ()


def _denied(path: Path) -> PermissionError:
    return PermissionError(errno.EACCES, "", str(path))
