"""What a job finds around it at a site: a clean environment, `python`, `srun` and `module`."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
# What a process may need of this machine to start at all and to speak TLS; nothing of the user's.
_INHERITED = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")

# Takes options in their long form and the few short ones with a value that people use.
_SRUN = """#!/bin/sh
while [ $# -gt 0 ]; do
  case "$1" in
    --) shift; break ;;
    -n|-N|-c|-p|-t|-A|-G|-w) shift 2 ;;
    -*) shift ;;
    *) break ;;
  esac
done
exec "$@"
"""


def base_environment(home: Path) -> dict[str, str]:
    """Give the environment that anything the sandbox starts begins with.

    Args:
        home: The home directory of the process.
    """
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {"PATH": _SYSTEM_PATH, "HOME": str(home), "LANG": "C.UTF-8", **inherited}


class Surroundings:
    """The software of a site, installed once for all jobs."""

    def __init__(self, directory: Path, python: str) -> None:
        self._programs = directory / "bin"
        self._startup = directory / "startup.sh"
        self._programs.mkdir(parents=True, exist_ok=True)
        # A script, not a link: through a link a virtual environment would not be recognised as one.
        start_python = f'#!/bin/sh\nexec {shlex.quote(python)} "$@"\n'
        for name, text in (("python", start_python), ("python3", start_python), ("srun", _SRUN)):
            program = self._programs / name
            program.write_text(text)
            program.chmod(0o755)
        # A login shell resets PATH from the system's profile; bash reads this file after that.
        self._startup.write_text(
            f'export PATH={shlex.quote(str(self._programs))}:"$PATH"\nmodule() {{ echo "module $*"; }}\n'
        )

    def environment(self, home: Path, user: str) -> dict[str, str]:
        """Give the environment of a job.

        Args:
            home: The home directory of the site's user.
            user: The site's user name.
        """
        return {
            **base_environment(home),
            "USER": user,
            "LOGNAME": user,
            "BASH_ENV": str(self._startup),
            **dict.fromkeys(_ONE_THREAD, "1"),
        }
