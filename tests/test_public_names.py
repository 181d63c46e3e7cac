"""What `from prefect_mantik import ...` promises, and what an import costs."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import Task

import prefect_mantik
from prefect_mantik import TrainingJob, TrainingRun

SOURCE = ast.parse(Path(prefect_mantik.__file__).read_text(encoding="utf-8"))
WITHOUT_TWIN = {"select_best_run", "cancel_runs_of_flow", "reap_runs", "watch_runs"}
"""One asks nobody; one is a hook, which Prefect calls; two are flows."""


def names_for_type_checkers() -> dict[str, str]:
    """Name and home of everything that is imported for type checkers, as the file says it."""
    blocks = [node for node in SOURCE.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    for alias in (alias for node in imports for alias in node.names):
        assert alias.asname == alias.name, f"type checkers take {alias.name} for private without an alias"
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def test_type_checkers_and_python_see_the_same_names() -> None:
    assert prefect_mantik.__all__ == sorted(names_for_type_checkers())
    assert set(prefect_mantik.__all__) <= set(dir(prefect_mantik))


@pytest.mark.parametrize(("name", "home"), names_for_type_checkers().items())
def test_every_name_is_there_and_from_where_it_is_said_to_be(name: str, home: str) -> None:
    found = getattr(prefect_mantik, name)
    assert found is getattr(__import__(home, fromlist=[name]), name)
    assert inspect.getdoc(getattr(found, "fn", found))


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'submit_job'"):
        _ = prefect_mantik.submit_job  # type: ignore[attr-defined]


# --- Twins ----------------------------------------------------------------------------------------------------------


def plain(verb: Any) -> Callable[..., Any]:
    """The function of a task, or the function itself."""
    return getattr(verb, "fn", verb)


def verbs(home: Any, names: list[str]) -> dict[str, Callable[..., Any]]:
    found = {name: plain(getattr(home, name)) for name in names}
    return {name: verb for name, verb in found.items() if inspect.isfunction(verb)}


def twins(home: Any, names: list[str], prefix: str) -> list[Any]:
    """Pairs of a verb and its twin. The twin of `x` is `ax`, so a verb is a name that is no other one's twin."""
    found = verbs(home, names)
    first = [name for name in found if not (name[0] == "a" and name[1:] in found)]
    return [
        pytest.param(found[name], found.get(f"a{name}"), id=f"{prefix}{name}")
        for name in first
        if name not in WITHOUT_TWIN
    ]


def own(kind: type) -> list[str]:
    return [name for name in vars(kind) if not name.startswith("_") and name not in ("spec", "model_post_init")]


TWINS = [
    *twins(prefect_mantik, prefect_mantik.__all__, ""),
    *twins(TrainingJob, own(TrainingJob), "TrainingJob."),
    *twins(TrainingRun, own(TrainingRun), "TrainingRun."),
]


@pytest.mark.parametrize(("verb", "twin"), TWINS)
def test_every_verb_has_an_awaited_twin(verb: Callable[..., Any], twin: Callable[..., Any] | None) -> None:
    assert twin is not None
    assert inspect.iscoroutinefunction(twin)
    assert not inspect.iscoroutinefunction(verb)
    assert inspect.signature(twin) == inspect.signature(verb)  # parameters, defaults, annotations


def test_twins_are_tasks_of_the_same_name() -> None:
    tasks = [name for name in prefect_mantik.__all__ if isinstance(getattr(prefect_mantik, name), Task)]
    assert tasks
    for name in tasks:
        one = getattr(prefect_mantik, name)
        if name[0] != "a" or name[1:] not in tasks:
            twin = getattr(prefect_mantik, f"a{name}")
            settings = ("name", "task_run_name", "cache_policy", "retries")
            assert [getattr(one, key) for key in settings] == [getattr(twin, key) for key in settings]


def test_the_subjects_come_first_and_the_rest_by_keyword() -> None:
    for name in prefect_mantik.__all__:
        verb = plain(getattr(prefect_mantik, name))
        if not inspect.isfunction(verb) or name in ("cancel_runs_of_flow", "reap_runs", "watch_runs"):
            continue
        for parameter in inspect.signature(verb).parameters.values():
            if parameter.default is not parameter.empty:
                assert parameter.kind is parameter.KEYWORD_ONLY, f"{name}({parameter.name})"


def test_the_hook_has_the_argument_names_that_the_runner_passes() -> None:
    assert list(inspect.signature(prefect_mantik.cancel_runs_of_flow).parameters) == ["flow", "flow_run", "state"]


def test_annotations_of_the_verbs_can_be_resolved() -> None:
    for name in prefect_mantik.__all__:
        verb = plain(getattr(prefect_mantik, name))
        if inspect.isfunction(verb):
            assert "return" in typing.get_type_hints(verb), name


# --- What an import costs -------------------------------------------------------------------------------------------


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh process has loaded."""
    script = (
        f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("statement", "present", "absent"),
    [
        ("import prefect_mantik", {"prefect_mantik"}, {"prefect", "httpx", "pydantic", "mlflow", "yaml"}),
        ("from prefect_mantik import submit_run, TrainingJob", {"prefect"}, {"mlflow", "pyunicore", "firecrest"}),
        ("import prefect_mantik.cli", {"typer"}, {"prefect", "httpx", "mlflow"}),
        ("import prefect_mantik.sandbox.pytest_plugin", {"pytest"}, {"prefect", "httpx", "mlflow", "uvicorn"}),
        ("import prefect.server.api.server", {"prefect", "fastapi"}, set()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_import_loads_no_more_than_it_needs(statement: str, present: set[str], absent: set[str]) -> None:
    loaded = modules_after(statement)
    assert present <= loaded
    assert not absent & loaded
