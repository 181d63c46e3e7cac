"""Configs as users write them: lines, advice, and the lessons of the configs that were seen."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from prefect_mantik.backend_config import (
    Apptainer,
    BackendConfig,
    ConfigFinding,
    Environment,
    Firecrest,
    Resources,
    Ssh,
    inspect_backend_config,
    load_backend_config,
    retired,
    shell,
)
from prefect_mantik.errors import BackendConfigInvalid

GOOD = """\
UnicoreApiUrl: https://unicore.fz-juelich.de/JUWELS/rest/core
Resources:
  Queue: batch
  Runtime: 12h
Environment:
  Modules: [CUDA, GCCcore/.11.2.0]
  Variables:
    A: b
  PreRunCommandOnComputeNode:
    - ls *.txt
    - cd $UC_WORKING_DIRECTORY
"""
FIRECREST = """\
Firecrest: {ApiUrl: https://api.cscs.ch/ml/firecrest/v2, TokenUrl: https://auth.example.org/token, Machine: daint}
Resources: {Queue: normal, Runtime: 12h}
"""


def briefly(findings: list[ConfigFinding]) -> list[tuple[int | None, str, str]]:
    return [(finding.line, finding.path, finding.severity) for finding in findings]


@pytest.mark.parametrize("text", [GOOD, FIRECREST, GOOD.replace("\n", "\r\n")])
def test_nothing_is_said_of_a_good_config(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode())
    assert inspect_backend_config(text) == inspect_backend_config(path) == []
    assert load_backend_config(path)["Resources"]["Runtime"] == "12h"


# what is replaced by what, and the one finding: line, path, severity, what it says
ONE = [
    ("Queue: batch", "Queue: [a]", 3, "Resources.Queue", "error", "a text"),
    ("  Queue: batch\n", "", 2, "Resources.Queue", "error", "missing"),
    ("Resources:", "Resource:", 1, "Resources", "error", "missing"),
    ("Queue: batch", "Queue: batch\n  Queue: batch", 4, "Resources.Queue", "error", "twice, first in line 3"),
    ("- ls *.txt", "- ls (", 10, "Environment.PreRunCommandOnComputeNode[0]", "error", "bash: syntax error"),
    ("- ls *.txt", "- if true", 10, "Environment.PreRunCommandOnComputeNode[0]", "error", "unexpected end"),
    ("- ls *.txt", "- echo 'open", 10, "Environment.PreRunCommandOnComputeNode[0]", "error", "unexpected EOF"),
    ("[CUDA,", "[CUDA;,", 6, "Environment.Modules", "advice", "holds a ;"),
    ("[CUDA,", "[{", None, "", "error", "not valid YAML"),
    ("    A: b", "\tA: b", 8, "", "error", "holds a tab"),
    ("    A: b", "    A: *b", 8, "", "error", "undefined alias"),
    ("    A: b", "    A: \0", 8, "", "error", "character that YAML does not allow"),
    ("    A: b", "    A: 2026-13-01", None, "", "error", "in quotes"),
    (
        "    A: b",
        "    MLFLOW_TRACKING_TOKEN: hunter2",
        8,
        "Environment.Variables.MLFLOW_TRACKING_TOKEN",
        "error",
        "own",
    ),
    ("Modules: [", "SingularityImage: [", 6, "Environment.SingularityImage", "error", "Environment.Apptainer today"),
    ("  Runtime: 12h\n", "", 2, "Resources.Runtime", "advice", "end the job early"),
    ("Queue: batch", "Queue: dc-gpu", 2, "Resources.GPUsPerNode", "advice", "GPUs"),
    ("Queue: batch", "Queue: develbooster", 2, "Resources.GPUsPerNode", "advice", "GPUs"),
    (
        "Queue: batch",
        "Queue: batch\n  MemoryPerNode: 64000",
        4,
        "Resources.MemoryPerNode",
        "advice",
        "bytes for UNICORE",
    ),
    ("unicore.fz-juelich.de", "zam2125.zam.kfa-juelich.de:9112", 1, "UnicoreApiUrl", "advice", "retired"),
    ("A: b", "A: 7.0e-6", 8, "Environment.Variables.A", "advice", "number"),
    ("A: b", "A: yes", 8, "Environment.Variables.A", "advice", 'text "True"'),
    ("- ls *.txt", "- source/p/venv/bin/activate", 10, "Environment.PreRunCommandOnComputeNode[0]", "advice", "space"),
    ("- ls *.txt", "- 'ls # all'", 10, "Environment.PreRunCommandOnComputeNode[0]", "advice", "comment"),
]


@pytest.mark.parametrize(
    ("old", "new", "line", "path", "severity", "said"), ONE, ids=[" ".join(row[1].split()) for row in ONE]
)
def test_one_finding_with_its_line(old: str, new: str, line: int | None, path: str, severity: str, said: str) -> None:
    text = GOOD.replace(old, new)
    if old == "Resources:":
        findings = [finding for finding in inspect_backend_config(text) if finding.path == path]
    else:
        findings = inspect_backend_config(text)
    (finding,) = findings
    assert (finding.path, finding.severity) == (path, severity)
    assert said in finding.message
    assert line in (None, finding.line)
    assert "hunter2" not in finding.describe()


@pytest.mark.parametrize("ending", ["\n", ";\n", " ;;\n\n", ""])
@pytest.mark.parametrize("style", ["|", ">", "|+"])
def test_what_yaml_leaves_at_the_end_of_a_command_is_no_matter(style: str, ending: str) -> None:
    text = GOOD + f"  PostRunCommandOnComputeNode: {style}\n    echo one{ending}"
    assert inspect_backend_config(text) == []


def test_a_loop_may_be_spread_over_a_list() -> None:
    loop = "- 'for x in a b; do'\n    - echo $x\n    - done"
    assert inspect_backend_config(GOOD.replace("- ls *.txt", loop)) == []


def test_everything_is_said_at_once() -> None:
    text = GOOD.replace("batch", "booster\n  CPUs: 2").replace("12h", "12").replace("- ls *.txt", "- ls (")
    assert briefly(inspect_backend_config(text)) == [
        (4, "Resources.CPUs", "error"),
        (5, "Resources.Runtime", "error"),
        (11, "Environment.PreRunCommandOnComputeNode[0]", "error"),
        (2, "Resources.GPUsPerNode", "advice"),
    ]


@pytest.mark.parametrize(
    ("change", "path", "severity"),
    [
        (
            {"Resources": {"Queue": "normal", "Runtime": "1h", "MemoryPerNode": "12GiB"}},
            "Resources.MemoryPerNode",
            "advice",
        ),
        ({"Environment": {"PreRunCommandOnLoginNode": "ls"}}, "Environment.PreRunCommandOnLoginNode", "error"),
    ],
)
def test_firecrest(change: dict[str, Any], path: str, severity: str) -> None:
    api = {
        "ApiUrl": "https://api.cscs.ch/ml/firecrest/v2",
        "TokenUrl": "https://auth.example.org/t",
        "Machine": "daint",
    }
    base = {"Firecrest": api, "Resources": {"Queue": "normal", "Runtime": "1h"}}
    assert briefly(inspect_backend_config(base | change)) == [(None, path, severity)]


@pytest.mark.parametrize("url", ["https://firecrest.cscs.ch", "https://api.example.org/firecrest/v1"])
def test_firecrest_of_version_1_is_retired(url: str) -> None:
    (finding,) = inspect_backend_config(FIRECREST.replace("https://api.cscs.ch/ml/firecrest/v2", url))
    assert (finding.line, finding.path, finding.severity) == (1, "Firecrest.ApiUrl", "advice")
    assert finding.message == retired("Firecrest.ApiUrl", url)


@pytest.mark.parametrize(
    ("path", "url", "named"),
    [
        ("Firecrest.ApiUrl", "https://firecrest.cscs.ch", ["https://<host>/<platform>/firecrest/v2"]),
        ("Firecrest.ApiUrl", "https://firecrest.cscs.ch/v2", ["https://api.cscs.ch/<hpc, ml or cw>/firecrest/v2"]),
        ("Firecrest.ApiUrl", "https://api.example.org/firecrest/v1", ["https://auth.cscs.ch/auth/realms/"]),
        ("Firecrest.ApiUrl", "https://api.example.org/firecrest/v1/", ["version 1, which was retired"]),
        (
            "UnicoreApiUrl",
            "https://zam2125.zam.kfa-juelich.de:9112/JUWELS/rest/core",
            ["https://unicore.fz-juelich.de/"],
        ),
    ],
)
def test_what_is_retired_names_what_is_there_now(path: str, url: str, named: list[str]) -> None:
    message = retired(path, url)
    assert [part for part in named if part not in message] == []


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("Firecrest.ApiUrl", "https://api.cscs.ch/hpc/firecrest/v2"),
        ("Firecrest.ApiUrl", "https://api.roihu.csc.fi/v1"),  # version 2, whatever it is called there
        ("UnicoreApiUrl", "https://unicore.fz-juelich.de/JUWELS/rest/core"),
    ],
)
def test_what_is_there_is_not_retired(path: str, url: str) -> None:
    assert retired(path, url) == ""


def test_ssh_has_one_road_only_and_no_login_node() -> None:
    given = {"SSH": {"Hostname": "h"}, "Resources": {"Queue": "q", "Runtime": "1h", "MemoryPerNode": "1G"}}
    given["Environment"] = {"PostRunCommandOnLoginNode": "ls"}
    assert briefly(inspect_backend_config(given)) == [
        (None, "Resources.MemoryPerNode", "error"),
        (None, "Environment.PostRunCommandOnLoginNode", "advice"),
    ]


# --- JSON, YAML's own ways, and files -------------------------------------------------------------------------------


def test_json_with_tabs_has_lines_and_its_own_numbers() -> None:
    given = {"UnicoreApiUrl": "https://u.example.org/S/rest/core", "Resources": {"Queue": "q", "Runtime": "1h"}}
    text = json.dumps(given | {"Environment": {"Variables": {"RATE": 1e-6}}}, indent="\t")
    (finding,) = inspect_backend_config(text.replace("1e-06", "1e-6"))
    assert (finding.line, finding.path) == (9, "Environment.Variables.RATE")
    assert inspect_backend_config(text.replace('"RATE"', '"RATE": 1, "RATE"'))[0].message.startswith("is given twice")
    assert [finding.line for finding in inspect_backend_config(text.replace('"q",', '"q"'))] == [5]


def test_anchors_aliases_and_merges() -> None:
    text = "x: &r {Queue: q, Runtime: 1h}\nUnicoreApiUrl: https://u.example.org/S/rest/core\n"
    text += "Resources: {<<: *r, Nodes: 0}\n"
    assert briefly(inspect_backend_config(text)) == [(1, "x", "error"), (3, "Resources.Nodes", "error")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("# nothing", "is empty"),
        ("just text", "must be an object"),
        ("- a", "must be an object"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("[" * 5000, "nested too deeply"),
        ("a: " + "x" * 300_000, "longer than"),
        ("a: &a {b: *a}", "exactly one"),
        (
            "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 50)}]" for i in range(1, 9))]),
            "exactly",
        ),
    ],
)
def test_texts_that_are_no_config_are_answered(text: str, said: str) -> None:
    assert any(said in finding.describe() for finding in inspect_backend_config(text))


@pytest.mark.parametrize(
    ("content", "said"), [(None, "cannot be read: No such file"), (b"a: b\nc: \xff", "line 2: The config is not UTF-8")]
)
def test_files_that_cannot_be_read(content: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_bytes(content)
    (finding,) = inspect_backend_config(path)
    assert said in finding.describe()


@pytest.mark.parametrize(
    ("entry", "found"),
    [("*.yaml", True), ("config.yaml", True), ("./conf*", True), ("**/*.yaml", True), ("*", True), ("config/", False)],
)
def test_an_exclusion_of_the_config_itself(entry: str, found: bool, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(GOOD + f"Exclude: [data/, '{entry}']\n")
    assert briefly(inspect_backend_config(path)) == ([(12, "Exclude[1]", "error")] if found else [])


def test_load_lists_all_errors_with_lines_and_no_advice(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(GOOD.replace("batch", "booster\n  CPUs: 2").replace("12h", "12"))
    with pytest.raises(BackendConfigInvalid) as caught:
        load_backend_config(path)
    starts = ["config.yaml, line 4: Resources.CPUs", "config.yaml, line 5: Resources.Runtime"]
    assert [" ".join(finding.split()[:4]) for finding in caught.value.findings] == starts


def test_without_bash_nothing_is_said_of_syntax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell.shutil, "which", lambda name: None)
    assert inspect_backend_config(GOOD.replace("- ls *.txt", "- ls (")) == []


def test_a_command_that_bash_cannot_read() -> None:
    (finding,) = inspect_backend_config(GOOD, command="python (")
    assert "command that bash cannot read: syntax error" in finding.describe()


def test_reading_bash_executes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "env").write_text(f"touch {tmp_path}/executed\n")
    monkeypatch.setenv("BASH_ENV", str(tmp_path / "env"))
    inspect_backend_config(GOOD.replace("- ls *.txt", f"- touch {tmp_path}/executed $(touch {tmp_path}/executed)"))
    assert not (tmp_path / "executed").exists()


# --- The user's page ------------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs" / "backend-config.md").read_text()
EXAMPLES = re.findall(r"```(?:yaml|json)\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("text", EXAMPLES, ids=["unicore", "firecrest", "ssh"])
def test_examples_of_the_page_are_fine(text: str) -> None:
    assert inspect_backend_config(text) == []


def test_the_page_names_every_key() -> None:
    models: list[Any] = [BackendConfig, Firecrest, Ssh, Resources, Environment, Apptainer]
    keys = [str(field.alias) for model in models for field in model.model_fields.values()]
    assert [key for key in keys if f"`{key}`" not in PAGE and f"`{key}:" not in PAGE] == []
