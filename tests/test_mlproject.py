"""MLproject files: what is wrong with them, and the command of an entry point as a shell sees it."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prefect_mantik.errors import MLprojectInvalid
from prefect_mantik.mlproject import EntryPoint, MLproject, Parameter, entry_command, inspect_mlproject, parse_mlproject

GOOD = """\
name: digits
entry_points:
  main:
    parameters:
      in: path
      data-path: {type: string, default: ./data}
      batch-size: {type: int, default: 64}
      rate: {type: float, default: 7e-6}
    command: >
      python train.py {in} {data-path} --batch {batch-size} --rate {rate} ${{HOME}} {{}}
  test:
    command: pytest
"""


def project(command: str, **parameters: Any) -> MLproject:
    declared = {name: Parameter(**value) for name, value in parameters.items()}
    return MLproject(entry_points={"main": EntryPoint(command=command, parameters=declared)})


def refusal(given: MLproject, parameters: dict[str, Any], entry_point: str = "main") -> list[str]:
    with pytest.raises(MLprojectInvalid) as caught:
        entry_command(given, entry_point, parameters)
    assert pickle.loads(pickle.dumps(caught.value)).findings == caught.value.findings
    return caught.value.findings


# --- Commands -------------------------------------------------------------------------------------------------------


def test_a_command_with_defaults_and_names_of_every_kind() -> None:
    parsed = parse_mlproject(GOOD)
    assert parsed.name == "digits"
    assert parsed.entry_points["main"].parameters["batch-size"] == Parameter(type="int", default=64)
    expected = "python train.py 'a b' ./data --batch 32 --rate 7e-6 ${HOME} {}"
    assert entry_command(parsed, "main", {"in": "a b", "batch-size": 32}) == expected
    assert entry_command(parsed, "test", {}) == "pytest"


NASTY = ' a\'b "c" $HOME ${HOME} $(echo s) `echo t` \\n \\ , ; & * ! # {x} {{y}}\nsecond\t'
SHOW = f"{sys.executable} -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "


@pytest.mark.parametrize(
    "place", ["{x}", '"{x}"', "'{x}'", "a\\'{x}", "# it's\nshow {x}", "$(true 'a'){x}", '"it\'s {x}"']
)
@pytest.mark.parametrize("value", [NASTY, "", "plain", "it's"])
def test_values_arrive_literally_wherever_they_stand(place: str, value: str) -> None:
    command = entry_command(project("show " + place, x={}), "main", {"x": value})
    done = subprocess.run(
        ["bash"], input=f'show() {{ {SHOW}"$@"; }}\n{command}', capture_output=True, text=True, check=True
    )
    seen = json.loads(done.stdout.splitlines()[-1])
    before = {"a\\'{x}": "a'", '"it\'s {x}"': "it's "}.get(place, "")
    assert seen == [before + value]


@pytest.mark.parametrize(
    ("value", "text"), [(None, "None"), (True, "True"), (False, "False"), (3, "3"), (0.1, "0.1"), (1e-7, "1e-07")]
)
def test_values_are_the_text_that_python_makes_of_them(value: Any, text: str) -> None:
    assert entry_command(project("run {x}", x={}), "main", {"x": value}) == f"run {text}"


@pytest.mark.parametrize(
    "command", ['run "$(echo {x})"', "run `echo {x}`", "cat << E\n{x}\nE", "run $'{x}'", 'run "`{x}`"']
)
def test_where_no_quotes_help_only_plain_values_go(command: str) -> None:
    given = project(command, x={})
    assert entry_command(given, "main", {"x": "plain"}) == command.replace("{x}", "plain")
    assert "cannot be quoted safely" in refusal(given, {"x": "; rm"})[0]


# --- What cannot be asked -------------------------------------------------------------------------------------------


def test_everything_wrong_with_a_request_comes_at_once() -> None:
    findings = refusal(parse_mlproject(GOOD), {"rate": "fast", "batch-size": 1.5, "epochs": 3})
    assert findings == [
        "entry_points.main.parameters.epochs is given and not declared; declared are: in, data-path, batch-size, rate",
        "entry_points.main.parameters.in has no default and has to be given",
        "entry_points.main.parameters.batch-size must be of type int",
        "entry_points.main.parameters.rate must be of type float",
    ]


def test_an_unknown_entry_point_lists_the_known() -> None:
    (finding,) = refusal(parse_mlproject(GOOD), {}, "train")
    assert finding == "entry_points.train is no entry point of this MLproject; it has: main, test"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("run {y} {x}", "placeholder {y} that is not declared"),
        ("run ${HOME} {x}", "write ${{HOME}} for the shell's variable"),
        ("run {x:.2f} {x}", "placeholder {x:.2f}"),
        ("run {} {x}", "placeholder {}"),
        ("awk '{print $1}' {x}", "placeholder {print $1}"),
        ("run { {x}", "a single {"),
        ("run } {x}", "a single }"),
    ],
)
def test_templates_that_cannot_be_filled(command: str, said: str) -> None:
    (finding,) = refusal(project(command, x={}), {"x": 1})
    assert said in finding


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("float", [1, 0.5, "7e-6", "nan"], ["x", True, None, ""]),
        ("int", [1, "-3", "0"], ["1.0", 1.5, False, "x"]),
        ("bool", [True, "false", "1", 0], ["maybe", 2, None]),
        ("list[int]", ["[1, 2]", "1,2", "[]"], ["[1, x]", "1.5"]),
        ("list[list[float]]", ["1"], ["x"]),
        ("path", ["data", "/x", "s3://b/k"], ["", " "]),
        ("uri", ["s3://b/k", "file:/x"], ["data", "/x"]),
        ("string", ["", "x", 1, None], []),
        ("unknown", ["anything"], []),
    ],
)
def test_types(kind: str, good: list[Any], bad: list[Any]) -> None:
    given = project("run {x}", x={"type": kind, "default": "d"})
    for value in good:
        entry_command(given, "main", {"x": value})
    for value in bad:
        assert f"must be of type {kind}" in refusal(given, {"x": value})[0]


def test_no_value_can_hold_a_zero_byte() -> None:
    assert "no command can hold" in refusal(project("run {x}", x={}), {"x": "a\0b"})[0]


# --- Files ----------------------------------------------------------------------------------------------------------

# what is replaced by what, and the one finding: line, path, severity, what it says
ONE = [
    ("    command: pytest", "    command:", 12, "entry_points.test.command", "error", "what to run"),
    ("    command: pytest", "    {}", 11, "entry_points.test.command", "error", "what to run"),
    ("command: pytest", "command: pytest\n    parameters:", 13, "entry_points.test.parameters", "error", "empty"),
    ("command: pytest", "command: pytest\n    parameters: [a]", 13, "entry_points.test.parameters", "error", "object"),
    ("command: pytest", "command: pytest \\", 12, "entry_points.test.command", "error", "backslash"),
    ("command: pytest", "command: pytest {x}", 12, "entry_points.test.command", "error", "{x} that is not declared"),
    ("      in: path", "\tin: path", 5, "MLproject", "error", "holds a tab"),
    ("      in: path", "      in: 3", 5, "entry_points.main.parameters.in", "error", "a type"),
    (
        "default: 64",
        "default: many",
        7,
        "entry_points.main.parameters.batch-size",
        "error",
        "default that is not of type int",
    ),
    (
        "default: 64",
        "defalt: 64",
        7,
        "entry_points.main.parameters.batch-size.defalt",
        "error",
        "known here: type, default",
    ),
    ("type: int", "type: Int32", 7, "entry_points.main.parameters.batch-size", "advice", "not checked"),
    ("{{}}", "", 8, "", "", ""),
    ("{rate}", "1", 8, "entry_points.main.parameters.rate", "advice", "not used"),
    ("{rate}", '"{rate}"', 9, "entry_points.main.command", "advice", "within quotes"),
    ("name: digits", "nmae: digits", 1, "nmae", "advice", "not known"),
    ("name: digits", "name: digits\nname: d", 2, "name", "error", "twice"),
    ("name: digits", "python_env: x", 1, "", "", ""),
    ("name: digits", "name: [digits]", 1, "name", "error", "a text"),
    ("entry_points:", "entry_points: {}\nother:", 2, "entry_points", "error", "one entry point at least"),
]


@pytest.mark.parametrize(
    ("old", "new", "line", "path", "severity", "said"), ONE, ids=[" ".join(row[1].split()) for row in ONE]
)
def test_one_finding_with_its_line(old: str, new: str, line: int, path: str, severity: str, said: str) -> None:
    text = GOOD.replace(old, new)
    findings = [finding for finding in inspect_mlproject(text) if finding.path != "other"]
    if not path:
        assert findings == []
        return
    (finding,) = findings
    assert (finding.line, finding.path, finding.severity) == (line, path, severity)
    assert said in finding.message


@pytest.mark.parametrize("text", ["", "text", "entry_points: {main: {}}", "entry_points: {main: x}", "a: [", "name: x"])
def test_what_cannot_be_parsed_is_refused_with_its_name(text: str) -> None:
    with pytest.raises(MLprojectInvalid, match="sub/MLproject, "):
        parse_mlproject(text, where="sub/MLproject")


def test_one_entry_point_does_not_spoil_another() -> None:
    parsed = parse_mlproject(GOOD.replace("command: pytest", "command: pytest {x}"))
    assert entry_command(parsed, "main", {"in": "x"})


@pytest.mark.parametrize("name", ["mlproject.yaml", "MLProject", "MLproject.yml"])
def test_another_file_name_is_worth_a_word(name: str) -> None:
    (finding,) = inspect_mlproject(GOOD, where=f"sub/{name}")
    assert (finding.severity, name in finding.message) == ("advice", True)
    assert inspect_mlproject(GOOD, where="sub/MLproject") == []


def test_a_request_is_looked_at_with_lines() -> None:
    findings = inspect_mlproject(GOOD, entry_point="main", parameters={"rate": "x"})
    assert [(finding.line, finding.path.rpartition(".")[2]) for finding in findings] == [(5, "in"), (8, "rate")]


def test_the_sandboxs_own_project_is_fine() -> None:
    import prefect_mantik

    text = (Path(prefect_mantik.__file__).parent / "sandbox/project/MLproject").read_text()
    assert inspect_mlproject(text) == []
    assert entry_command(parse_mlproject(text), "fail", {"code": 4}) == "python trouble.py fail 4"
