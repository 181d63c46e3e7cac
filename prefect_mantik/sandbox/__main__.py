"""`python -m prefect_mantik.sandbox`: run a sandbox until Ctrl-C."""

from __future__ import annotations

import argparse
import functools
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from prefect_mantik.sandbox.errors import SandboxError
from prefect_mantik.sandbox.server import serve
from prefect_mantik.sandbox.settings import add_arguments, from_arguments


def main(argv: Sequence[str] | None = None, *, prog: str = "python -m prefect_mantik.sandbox") -> int:
    """Read the command line and run.

    Args:
        argv: The arguments; by default those of the process.
        prog: What the command is called in its help.
    """
    parser = argparse.ArgumentParser(prog=prog, description="Run a sandbox until Ctrl-C.")
    parser.add_argument("--env-file", type=Path, help="write the variables that point to the sandbox here")
    parser.add_argument("--with-parent", action="store_true", help="also end when standard input ends")
    parser.add_argument("--verbose", action="store_true", help="log what jobs and faults do")
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    if arguments.verbose:
        logging.getLogger("prefect_mantik.sandbox").setLevel(logging.INFO)
    echo = functools.partial(print, flush=True)
    try:
        return serve(
            from_arguments(arguments), env_file=arguments.env_file, echo=echo, with_parent=arguments.with_parent
        )
    except (SandboxError, OSError) as error:  # OSError: the port is taken, a directory cannot be written
        print(f"The sandbox cannot run: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
