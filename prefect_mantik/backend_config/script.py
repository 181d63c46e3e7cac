"""The bash script of a job: what runs on the compute node, in which order, and what ends it.

A *step* is a command of the config, the loading of modules, the activation of an environment, or the entry point. Each
is written as it was given, on lines of its own; behind each stands a line that ends the script with the step's exit
code if it failed. So nothing has to be quoted or joined: comments, here-documents and loops stay what they are, which
`&&` between texts would not grant.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence

from prefect_mantik.backend_config.rules import VARIABLE_NAME
from prefect_mantik.backend_config.schema import BackendConfig

_STOP = """\
stop_on_failure() {
  local code=$?
  [ "$code" -eq 0 ] || exit "$code"
}
"""


def training_script(
    config: BackendConfig, *, command: str, variables: Mapping[str, str], before: Sequence[str] = ()
) -> str:
    """Write the bash script of a job: `mantik.sh`.

    Args:
        config: The compute backend config.
        command: The entry point's command, for a shell.
        variables: Variables of ours. They arrive literally, and win over the config's.
        before: Lines of bash that run before anything of the config's, as they are. The exit code of the last counts.

    Returns:
        The script. It ends with the exit code of the first step that fails.
    """
    return "#!/bin/bash\n" + training_body(config, command=command, variables=variables, before=before)


def training_body(
    config: BackendConfig, *, command: str, variables: Mapping[str, str], before: Sequence[str] = ()
) -> str:
    """The script without its first line, for a script that has one already."""
    environment = config.environment
    steps = [
        *_modules(environment.modules),
        *_commands(environment.before_on_compute_node),
        *_execution(config, command),
        *_commands(environment.after_on_compute_node),
    ]
    return _body(config, steps, variables, before)


def login_script(
    config: BackendConfig, commands: Sequence[str], *, variables: Mapping[str, str], before: Sequence[str] = ()
) -> str:
    """Write the bash script that runs commands on a login node.

    Args:
        config: The compute backend config, for its variables.
        commands: What to run.
        variables: As for `training_script`.
        before: As for `training_script`.

    Returns:
        The script. It ends with the exit code of the first step that fails.
    """
    return "#!/bin/bash\n" + _body(config, _commands(commands), variables, before)


def _body(config: BackendConfig, steps: Iterable[str], variables: Mapping[str, str], before: Sequence[str]) -> str:
    # One stream, for where a batch system opens the log twice, one half overwrites the other. And no input, for under
    # UNICORE it may be a pipe that never ends.
    head = ["exec < /dev/null 2>&1", _STOP, *_exports(config, variables)]
    first = ["\n".join(before)] if before else []
    return "\n".join([*head, "", *(f"{step}\nstop_on_failure" for step in [*first, *steps])]) + "\n"


# --- Variables ------------------------------------------------------------------------------------------------------


def _exports(config: BackendConfig, variables: Mapping[str, str]) -> Iterator[str]:
    """Ours first, so that the config's can name them."""
    own = dict(config.environment.variables)
    if config.resources.cpus_per_node is not None:
        own.setdefault("SRUN_CPUS_PER_TASK", str(config.resources.cpus_per_node))
    if "MANTIK_WORKING_DIRECTORY" not in variables:
        yield 'export MANTIK_WORKING_DIRECTORY="$PWD"'
        own.pop("MANTIK_WORKING_DIRECTORY", None)
    yield from (f"export {name}={shlex.quote(value)}" for name, value in variables.items())
    yield from (f"export {name}={_double_quoted(value)}" for name, value in own.items() if name not in variables)


def _double_quoted(text: str) -> str:
    """Quote a text so that the shell replaces `$NAME` and `${NAME}`, and nothing else."""
    escaped = re.sub(rf'[\\"`]|\$(?!{VARIABLE_NAME}|\{{{VARIABLE_NAME}\}})', r"\\\g<0>", text)
    return f'"{escaped}"'


# --- Steps ----------------------------------------------------------------------------------------------------------


def _modules(modules: Sequence[str]) -> Iterator[str]:
    if modules:
        # A login shell knows `module`; the shell that a batch system starts may not.
        yield f"type module > /dev/null 2>&1 || . /etc/profile\nmodule load {' '.join(modules)}"


_SHELL_WORDS = set("if then else elif fi for while until do done case esac select function coproc".split())  # noqa: SIM905
_GOES_ON = re.compile(r"<<|^\s*[|&]|[|&({]\s*$|^\s*[)}]")


def _commands(commands: Sequence[str]) -> Iterator[str]:
    """Give a step for each command, and for each line of one that is nothing but lines of commands."""
    for command in commands:
        lines = [line for line in command.split("\n") if line.strip()]
        yield from lines if all(map(_stands_alone, lines)) else [command]


def _stands_alone(line: str) -> bool:
    """Whether a line is surely a command of its own. In doubt it is not, and the text stays in one piece."""
    if line.lstrip().startswith("#"):
        return True
    try:
        words = shlex.split(line)
    except ValueError:  # a quote that is open, or a line that goes on
        return False
    balanced = all(line.count(one) == line.count(other) for one, other in ("()", "{}"))
    return balanced and "`" not in line and _SHELL_WORDS.isdisjoint(words) and not _GOES_ON.search(line)


def _execution(config: BackendConfig, command: str) -> Iterator[str]:
    environment = config.environment
    if environment.python:
        yield f"source {_double_quoted(environment.python.rstrip('/') + '/bin/activate')}"
    # Last, as profiles, modules and commands may have set them: MLflow prefers them to the token.
    yield "unset MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD"
    if environment.apptainer:
        # One word to srun, so that the whole of `a && b > c` runs in the container, once for each task.
        words = ["srun apptainer run", *environment.apptainer.options, _double_quoted(environment.apptainer.image)]
        yield " ".join([*words, "bash -c", shlex.quote(command)])
        return
    yield command
