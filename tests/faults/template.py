"""A process that has everything imported, and forks a victim for each line that it reads: importing takes seconds."""

from __future__ import annotations

import os
import select
import sys
import traceback
from pathlib import Path

from tests.faults import victim

PID, ENDED, STDERR = "pid", "ended", "stderr"


def _start(order: Path) -> int:
    child = os.fork()
    if child:
        victim.leave(order.parent / PID, str(child))
        return child
    code = 1
    try:
        os.setsid()
        output = os.open(order.parent / STDERR, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        victim.main(order)
        code = 0
    except BaseException:  # noqa: BLE001  # nothing may get back into the template
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Serve until standard input ends."""
    victim.import_everything()
    print("ready", flush=True)
    living: dict[int, Path] = {}
    rest = b""
    while True:
        if select.select([0], [], [], 0.01)[0]:
            if not (more := os.read(0, 65536)):
                break
            *lines, rest = (rest + more).split(b"\n")
            for line in lines:
                order = Path(line.decode())
                living[_start(order)] = order.parent
        for pid in list(living):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                victim.leave(living.pop(pid) / ENDED, str(os.waitstatus_to_exitcode(status)))
    for pid in living:
        os.kill(pid, 9)


if __name__ == "__main__":
    main()
