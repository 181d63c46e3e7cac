"""The MLproject file: the entry points of a training code, and the command that a run of one executes.

schema.py     what it holds, typed             reading.py   a text, checked and typed, with line numbers
command.py    the command of an entry point    types.py     what a parameter's type means
"""

from prefect_mantik.mlproject.command import entry_command
from prefect_mantik.mlproject.reading import inspect_mlproject, inspect_mlproject_file, parse_mlproject
from prefect_mantik.mlproject.schema import EntryPoint, MLproject, Parameter

__all__ = [
    "EntryPoint",
    "MLproject",
    "Parameter",
    "entry_command",
    "inspect_mlproject",
    "inspect_mlproject_file",
    "parse_mlproject",
]
