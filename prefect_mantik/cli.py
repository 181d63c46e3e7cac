"""The command `prefect-mantik`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from prefect_mantik.errors import MantikError

app = typer.Typer(
    name="prefect-mantik",
    help="Machine-learning training on supercomputers from Prefect pipelines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
blocks_app = typer.Typer(help="Blocks as code.", no_args_is_help=True)
app.add_typer(blocks_app, name="blocks")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"prefect-mantik {metadata.version('prefect-mantik')}, prefect {metadata.version('prefect')}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show versions.")
    ] = False,
) -> None:
    """Options before any command."""


@blocks_app.command("save")
def save_blocks(
    files: Annotated[list[Path], typer.Argument(help="YAML files with blocks, see blocks/sandbox.yaml.")],
    env_file: Annotated[Path | None, typer.Option(help="File with the variables that the blocks need.")] = None,
) -> None:
    """Create or update blocks from files. Secrets come from variables, and are never shown."""
    with _one_line_errors():
        from prefect_mantik.block_files import asave_blocks, read_block_file
        from prefect_mantik.environment import read_variables
        from prefect_mantik.loop import call

        variables = read_variables(env_file)
        entries = [entry for path in files for entry in read_block_file(path)]
        for reference in call(asave_blocks, entries, variables):
            typer.echo(f"saved {reference}")


@app.command(
    "sandbox", context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)
def sandbox(context: typer.Context) -> None:
    """Run a platform, a tracking server and three sites on this machine until Ctrl-C (--help shows its options)."""
    with _one_line_errors():
        _need_sandbox_extra()
        from prefect_mantik.sandbox.__main__ import main

        raise typer.Exit(main(context.args, prog="prefect-mantik sandbox"))


@app.command("demo")
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the servers running afterwards, until Ctrl-C.")] = False,
) -> None:
    """Train a model at three sites of a sandbox of its own, compare, and keep the best."""
    with _one_line_errors():
        _need_sandbox_extra()
        from prefect_mantik.demo import run_demo

        raise typer.Exit(run_demo(keep=keep))


def _need_sandbox_extra() -> None:
    for distribution in ("mlflow", "scikit-learn", "uvicorn"):
        try:
            metadata.version(distribution)
        except metadata.PackageNotFoundError:
            _fail(f"The sandbox needs {distribution}: install the extra, pip install '.[sandbox]' in a checkout")


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Show an error that we or Prefect raise as what it says, without a traceback."""
    try:
        yield
    except MantikError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted", code=130)
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        from prefect_mantik.prefect_server import explain

        explanation = explain(error)
        if explanation is None:
            raise
        _fail(explanation)


def _fail(message: str, code: int = 1) -> NoReturn:
    typer.echo(f"prefect-mantik: {message}", err=True)
    sys.exit(code)
