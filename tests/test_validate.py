"""`prefect-mantik validate`: what it prints and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from prefect_mantik.cli import app

GOOD = """\
UnicoreApiUrl: https://unicore.fz-juelich.de/JUWELS/rest/core
Resources: {Queue: booster, Runtime: 12h, GPUsPerNode: 4}
"""
MLPROJECT = """\
entry_points:
  main:
    parameters: {rate: float}
    command: python train.py --rate {rate}
  test:
    command: pytest
"""


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(GOOD)
    (tmp_path / "MLproject").write_text(MLPROJECT)
    return tmp_path


def validate(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["validate", *arguments])


@pytest.mark.parametrize(
    "arguments",
    [[], ["MLproject"], ["MLproject", "-P", "rate=7e-6"], ["MLproject", "--entry-point", "test"]],
    ids=" ".join,
)
def test_a_good_config_is_one_line(arguments: list[str]) -> None:
    result = validate("config.yaml", *arguments)
    assert result.output == "config.yaml is fine for UNICORE at JUWELS (queue booster)\n"
    assert result.exit_code == 0


def test_errors_before_advice_each_with_its_line_on_80_columns(files: Path) -> None:
    (files / "config.yaml").write_text(GOOD.replace("Runtime: 12h, ", "").replace("GPUs", "Gpus"))
    (files / "MLproject").write_text(MLPROJECT.replace("train.py", "train.py {epochs}"))
    result = validate("config.yaml", "MLproject", "-P", "rate=fast")
    assert result.output.splitlines() == [
        "config.yaml:2 Resources.GpusPerNode: is not known; it is Resources.GPUsPerNode",
        "    today",
        "MLproject:3 entry_points.main.parameters.rate: must be of type float",
        "MLproject:4 entry_points.main.command: has a placeholder {epochs} that is not",
        "    declared: add it to the parameters",
        "config.yaml:2 advice: Resources.Runtime: is not given: the site's default may",
        "    end the job early",
        "config.yaml:2 advice: Resources.GPUsPerNode: is not given, and the queue looks",
        "    like one with GPUs",
    ]
    assert max(map(len, result.output.splitlines())) <= 80
    assert result.exit_code == 1


def test_advice_alone_is_no_error(files: Path) -> None:
    (files / "config.yaml").write_text(GOOD.replace("Runtime: 12h, ", ""))
    result = validate("config.yaml")
    assert result.output.splitlines()[-1] == "config.yaml is fine for UNICORE at JUWELS (queue booster)"
    assert "config.yaml:2 advice: Resources.Runtime" in result.output
    assert result.exit_code == 0


def test_json_is_a_list(files: Path) -> None:
    assert json.loads(validate("config.yaml", "--json").output) == []
    (files / "config.yaml").write_text(GOOD + "Colour: red\n")
    result = validate("config.yaml", "MLproject", "--entry-point", "nope", "--json")
    first, second = json.loads(result.output)
    message = first.pop("message")
    assert first == {"file": "config.yaml", "line": 3, "path": "Colour", "severity": "error"}
    assert message.startswith("is not known; known here: UnicoreApiUrl")
    assert (second["file"], second["path"], second["line"]) == ("MLproject", "entry_points.nope", 1)
    assert result.exit_code == 1


def test_the_real_command_is_given_to_bash(files: Path) -> None:
    (files / "MLproject").write_text(MLPROJECT.replace("command: pytest", "command: pytest ("))
    assert validate("config.yaml", "MLproject").exit_code == 0
    result = validate("config.yaml", "MLproject", "--entry-point", "test")
    assert "bash cannot read: syntax error" in " ".join(result.output.split())
    assert result.exit_code == 1


@pytest.mark.parametrize("arguments", [["nothing.yaml"], ["config.yaml", "nothing"]])
def test_a_file_that_is_not_there(arguments: list[str]) -> None:
    result = validate(*arguments)
    assert "cannot be read: No such file" in " ".join(result.output.split())
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["config.yaml", "-P", "rate=1"], "name its file too"),
        (["config.yaml", "--entry-point", "main"], "name its file too"),
        (["config.yaml", "MLproject", "-P", "rate"], "NAME=VALUE"),
        ([], "CONFIG"),
    ],
)
def test_wrong_usage_ends_with_2(arguments: list[str], said: str) -> None:
    result = validate(*arguments)
    assert said in result.output
    assert result.exit_code == 2


def test_no_value_of_a_variable_is_shown(files: Path) -> None:
    (files / "config.yaml").write_text(
        GOOD + "Environment: {Variables: {PIN: 271828, MLFLOW_TRACKING_PASSWORD: hunter2}}\n"
    )
    result = validate("config.yaml")
    assert "hunter2" not in result.output
    assert "271828" not in result.output
