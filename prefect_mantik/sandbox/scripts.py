"""The files that the batch system puts beside those of a job: scripts, the process id, the exit code."""

from __future__ import annotations

import os
import time
from pathlib import Path

from prefect_mantik.sandbox.jobs import Job, JobRequest

EXIT_CODE_FILE = "UNICORE_SCRIPT_EXIT_CODE"
PID_FILE = "UNICORE_SCRIPT_PID"


def write_scripts(job: Job) -> Path:
    """Write what runs on the compute node, and give the file to start."""
    if job.request.spool is not None:
        job.request.spool.parent.mkdir(parents=True, exist_ok=True)
        return write_private(job.request.spool, job.request.script)
    # In the run directory, since scripts look for their neighbours; private, since they hold the job's token.
    if job.kind == "FirecREST":
        return write_private(job.directory / "script.batch", job.request.script)
    stamp = int(time.time() * 100)
    script = write_private(job.directory / f"UNICORE_Job_{stamp}", job.request.script)
    directives = f"#SBATCH --partition={job.request.queue}\n#SBATCH --nodes={job.request.nodes}\n"
    write_private(job.directory / f"bss_submit_{stamp}", f"#!/bin/bash\n{directives}\n./{script.name}\n")
    return script


def write_private(path: Path, text: str) -> Path:
    """Write a file that nobody else may read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    return path


def note_pid(job: Job, pid: int) -> None:
    """Leave the process id where UNICORE leaves it."""
    if job.kind == "UNICORE":
        (job.directory / PID_FILE).write_text(f"{pid}\n")


def exit_code(job: Job, of_shell: int, *, killed: bool) -> int | None:
    """Tell a job's exit code: a UNICORE script leaves it in a file and itself ends with 0.

    Args:
        job: The job.
        of_shell: With what its shell ended.
        killed: Whether it was killed from outside.
    """
    if job.kind != "UNICORE" or killed:
        return of_shell
    path = job.directory / EXIT_CODE_FILE
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        if job.request.leaves_exit_code:
            return None
        path.write_text(f"{of_shell}\n")
        return of_shell


def no_exit_code(request: JobRequest) -> str:
    """Say what UNICORE makes of a job that left no exit code."""
    if request.on_login_node:
        cause = "Execution was not completed (no exit code file found)"
        return f"{cause}, please check standard error file <{request.error}>"
    return "Job did not complete normally on BSS, please check standard error file and job log for more information."
