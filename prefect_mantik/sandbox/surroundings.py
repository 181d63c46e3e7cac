"""What a job finds around it at a site: a clean environment, `python`, `srun` and `module`."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from prefect_mantik.sandbox.jobs import Job

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
case "$1" in
  */*) ;;
  # Slurm looks for the program in the PATH that it was given, and it may have been given none.
  *) if ! printenv PATH >/dev/null; then
       echo "slurmstepd: error: execve(): $1: No such file or directory" >&2
       echo "srun: error: localhost: task 0: Exited with exit code 2" >&2
       note() { printf '%s %s %s %s\n' "$$" "$1" "$2" "$(date +%s)" >>"${0%/*}/../steps/$SLURM_JOB_ID"; }
       note begin "$1"; note end 2
       exit 2
     fi ;;
esac
[ -n "$SLURM_CLUSTER_NAME" ] || exec "$@"
# The batch system keeps account of the steps of its own jobs.
note() { printf '%s %s %s %s\n' "$$" "$1" "$2" "$(date +%s)" >>"${0%/*}/../steps/$SLURM_JOB_ID"; }
note begin "${1##*/}"
"$@"
code=$?
note end "$code"
exit "$code"
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
        self._bare_startup = directory / "bare.sh"
        self.steps = directory / "steps"
        self._programs.mkdir(parents=True, exist_ok=True)
        self.steps.mkdir(exist_ok=True)
        # A script, not a link: through a link a virtual environment would not be recognised as one.
        start_python = f'#!/bin/sh\nexec {shlex.quote(python)} "$@"\n'
        for name, text in (("python", start_python), ("python3", start_python), ("srun", _SRUN)):
            program = self._programs / name
            program.write_text(text)
            program.chmod(0o755)
        # A login shell resets PATH from the system's profile; bash reads this file after that.
        path = f'PATH={shlex.quote(str(self._programs))}:"$PATH"\n'
        module = 'module() { echo "module $*"; }\n'
        self._startup.write_text(f"export {path}{module}")
        # Not exported: what a shell finds by its own default its children do not find.
        own = 'unset BASH_ENV\n[ -z "$SANDBOX_HOME" ] || unset HOME SANDBOX_HOME\n'
        self._bare_startup.write_text(f"{path}{own}if shopt -q login_shell; then {module.strip()}; fi\n")

    def of_job(self, job: Job, home: Path, scratch: Path) -> dict[str, str]:
        """Give the environment of a job.

        Args:
            job: The job.
            home: The home directory of its user.
            scratch: The scratch directory of its user.
        """
        number = {"SLURM_JOB_ID": str(job.number)}
        if job.request.bare:
            return {**self._bare(job, home), **number, **job.request.variables}
        base = base_environment(home)
        if job.request.interpreter:
            # Others than bash do not read the start-up file.
            base["PATH"] = f"{self._programs}:{base['PATH']}"
        return {
            **base,
            "USER": job.owner,
            "LOGNAME": job.owner,
            "SCRATCH": str(scratch),
            "BASH_ENV": str(self._startup),
            **dict.fromkeys(_ONE_THREAD, "1"),
            **number,
            **job.request.variables,
        }

    def _bare(self, job: Job, home: Path) -> dict[str, str]:
        """Give what is there of an environment when a job is said to get none."""
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        # A shell without HOME would ask the system for it, and find the home of whoever runs the sandbox.
        homeless = job.request.login_shell and "HOME" not in job.request.variables
        homes = {"HOME": str(home), "SANDBOX_HOME": "1"} if homeless else {}
        return {**inherited, **homes, "BASH_ENV": str(self._bare_startup)}

    def steps_of(self, number: int) -> list[tuple[str, int, int | None, int | None]]:
        """Give the name, start, end and exit code of the steps that a job has begun.

        Args:
            number: The job's number.
        """
        try:
            lines = (self.steps / str(number)).read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return []
        steps: dict[str, tuple[str, int, int | None, int | None]] = {}
        for line in lines:
            process, _, rest = line.partition(" ")
            kind, _, rest = rest.partition(" ")
            what, _, moment = rest.rpartition(" ")
            if kind == "begin":
                steps[process] = (what, int(moment), None, None)
            elif process in steps:
                name, begun, _, _ = steps[process]
                steps[process] = (name, begun, int(moment), int(what))
        return list(steps.values())
