"""The command `prefect-mantik`."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn
from uuid import UUID

import typer

from prefect_mantik.errors import MantikError

if TYPE_CHECKING:
    from prefect_mantik.backend_config import ConfigFinding

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


@app.command("doctor")
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False) -> None:
    """Log in at every saved account and site, and say what works. Ends with 1 where something does not."""
    with _one_line_errors():
        from prefect_mantik.doctor import Examined, examine, lines
        from prefect_mantik.loop import call

        width = min(shutil.get_terminal_size().columns, 120)

        def show(item: Examined) -> None:
            if not as_json:
                typer.echo("\n".join(lines([item], width)))

        examined = call(examine, show)
        if as_json:
            typer.echo(json.dumps([item.model_dump() for item in examined], indent=2))
        elif len(examined) == 1:
            typer.echo("No account or site is saved yet: `prefect-mantik blocks save FILE` saves some.")
    if not all(item.ok for item in examined):
        raise typer.Exit(1)


@app.command("runs")
def runs(
    flow_run: Annotated[UUID | None, typer.Option("--flow-run", help="Only those of this flow run.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also those that have ended.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List the jobs of this Prefect server at all saved sites, by flow run. Ends with 1 where a site is silent."""
    with _one_line_errors():
        from prefect_mantik import run_lists
        from prefect_mantik.loop import call

        listed = call(run_lists.take, flow_run, everything)
        if as_json:
            typer.echo(json.dumps(listed.records(), indent=2))
        else:
            typer.echo("\n".join(listed.lines(shutil.get_terminal_size().columns)))
        for sentence in listed.silent:
            typer.echo(f"prefect-mantik: {sentence}", err=True)
    if listed.silent:
        raise typer.Exit(1)


@app.command("cancel")
def cancel(
    jobs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[JOB]...", help="Ids of jobs, as `runs` shows them, or how they begin; or SITE/ID."),
    ] = None,
    flow_run: Annotated[UUID | None, typer.Option("--flow-run", help="All runs of this flow run.")] = None,
) -> None:
    """End jobs, or all runs of a flow run. Ends with 1 where something may be live."""
    if bool(jobs) == bool(flow_run):
        raise typer.BadParameter("name jobs, or a flow run with --flow-run")
    with _one_line_errors():
        from prefect_mantik import run_lists
        from prefect_mantik.loop import call

        ended = call(run_lists.cancel, jobs or [], flow_run)
        for handle in ended.cancelled:
            typer.echo(f"cancelled {handle.describe()} ({handle.remote_id})")
        for sentence in ended.left:
            typer.echo(f"prefect-mantik: {sentence}", err=True)
        if not ended.cancelled and not ended.left:
            typer.echo("nothing to cancel: no live job")
    if ended.left:
        raise typer.Exit(1)


@app.command("validate")
def validate(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Compute backend config, YAML or JSON.")],
    mlproject: Annotated[
        Path | None, typer.Argument(metavar="MLPROJECT", help="MLproject file of the code.", show_default=False)
    ] = None,
    entry_point: Annotated[
        str | None, typer.Option("--entry-point", help="Entry point to run; with -P it is main if not given.")
    ] = None,
    parameters: Annotated[
        list[str] | None, typer.Option("--parameter", "-P", metavar="NAME=VALUE", help="A parameter for it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """Check a compute backend config and an MLproject before anything is sent. Ends with 1 where there is an error."""
    if mlproject is None and (entry_point or parameters):
        raise typer.BadParameter("--entry-point and -P are for an MLproject: name its file too")
    values = dict(_name_and_value(text) for text in parameters or [])
    if parameters and not entry_point:
        entry_point = "main"
    with _one_line_errors():
        findings = _config_findings(config, mlproject, entry_point, values)
        if as_json:
            typer.echo(json.dumps([{"file": str(file), **asdict(finding)} for file, finding in findings], indent=2))
        else:
            _show(config, findings)
    if any(finding.severity == "error" for _, finding in findings):
        raise typer.Exit(1)


_LINES = textwrap.TextWrapper(80, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def _name_and_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise typer.BadParameter("-P takes NAME=VALUE")
    return name, value


def _config_findings(
    config: Path, mlproject: Path | None, entry_point: str | None, values: dict[str, str]
) -> list[tuple[Path, ConfigFinding]]:
    """Errors before advice; then by file, and by line."""
    from prefect_mantik.backend_config import inspect_backend_config
    from prefect_mantik.mlproject import entry_command, inspect_mlproject_file, parse_mlproject

    found: list[tuple[Path, ConfigFinding]] = []
    command = None
    if mlproject is not None:
        text, of_project = inspect_mlproject_file(mlproject, entry_point=entry_point, parameters=values)
        found = [(mlproject, finding) for finding in of_project]
        if entry_point and not any(finding.severity == "error" for finding in of_project):
            command = entry_command(parse_mlproject(text), entry_point, values)
    found = [(config, finding) for finding in inspect_backend_config(config, command=command)] + found
    return sorted(found, key=lambda item: (item[1].severity == "advice", item[0] != config, item[1].line or 0))


def _show(config: Path, findings: list[tuple[Path, ConfigFinding]]) -> None:
    """Print lines that an editor can jump to; those that are too long go on below, indented."""
    from prefect_mantik.backend_config import backend_kind, load_backend_config, site_label

    for file, finding in findings:
        place = f"{file}:{finding.line}" if finding.line else str(file)
        advised = "advice: " if finding.severity == "advice" else ""
        path = f"{finding.path}: " if finding.path else ""
        typer.echo(_LINES.fill(f"{place} {advised}{path}{finding.message}"))
    if not any(finding.severity == "error" for _, finding in findings):
        loaded = load_backend_config(config)
        kind = {"unicore": "UNICORE", "firecrest": "FirecREST", "ssh": "SSH"}[backend_kind(loaded)]
        typer.echo(f"{config} is fine for {kind} at {site_label(loaded)} (queue {loaded['Resources']['Queue']})")


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
