"""The compute backend config: every rule has a row, and every finding its path."""

from __future__ import annotations

import datetime
import pickle
from copy import deepcopy
from types import MappingProxyType
from typing import Any

import pytest
import yaml

from prefect_mantik.backend_config import (
    backend_kind,
    check_backend_config,
    inspect_backend_config,
    parse_backend_config,
    site_label,
    training_script,
    with_variables,
)
from prefect_mantik.errors import BackendConfigInvalid

UNICORE = """
UnicoreApiUrl: https://unicore.example.org:9112/SITE/rest/core
Environment:
  Apptainer: {Path: image.sif, Type: Local, Options: ["--nv"]}
  Modules: [CUDA, GCCcore/.11.2.0]
  Variables: {A: b, RATE: 7e-6, N: 3, DEBUG: true, EMPTY: ""}
  PreRunCommandOnLoginNode: ["echo $HOME"]
  PostRunCommandOnLoginNode: echo done
  PreRunCommandOnComputeNode: |
    cd $UC_WORKING_DIRECTORY
    ls *.txt
  PostRunCommandOnComputeNode: []
Resources: {Queue: batch, Runtime: 12h, Nodes: 2, TotalCPUs: "8", CPUsPerNode: 4, GPUsPerNode: 0, MemoryPerNode: 12GiB,
            Reservation: r, NodeConstraints: "gpu&mem", QoS: high}
Exclude: ["*.sif", "data/"]
"""
FIRECREST = """
Firecrest: {ApiUrl: https://api.example.org/ml/firecrest/v2, TokenUrl: https://auth.example.org/token, Machine: daint}
Environment: {Python: /users/ada/venv, PreRunCommandOnComputeNode: nvidia-smi}
Resources: {Queue: normal, Runtime: 0, MemoryPerNode: 64000}
"""
SSH = """
SSH: {Hostname: 192.0.2.1, Port: 22}
Environment: {Apptainer: {Path: /abs/image.sif, Type: remote, Options: --nv}, PreRunCommandOnLoginNode: ls}
Resources: {Queue: devel}
"""
GOOD = {"unicore": UNICORE, "firecrest": FIRECREST, "ssh": SSH}


def config(kind: str = "unicore") -> dict[str, Any]:
    return yaml.safe_load(GOOD[kind])


def put(target: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *parents, last = path.split(".")
    for parent in parents:
        target = target[parent]
    target[last] = value
    return target


def findings_of(broken: Any) -> list[str]:
    with pytest.raises(BackendConfigInvalid) as caught:
        check_backend_config(broken)
    return caught.value.findings


@pytest.mark.parametrize("kind", GOOD)
def test_good_configs_pass_and_tell_their_kind(kind: str) -> None:
    given = config(kind)
    check_backend_config(given)
    check_backend_config(MappingProxyType(given))
    assert backend_kind(given) == kind
    assert given == config(kind)


# kind, path, value, what the one finding says
WRONG = [
    ("unicore", "UnicoreApiUrl", "http://unicore.example.org/SITE/rest/core", "plain http"),
    ("unicore", "UnicoreApiUrl", "unicore.example.org", "https://<gateway>/<SITE>/rest/core"),
    ("unicore", "UnicoreApiUrl", 1, "https://<gateway>"),
    ("firecrest", "Firecrest.ApiUrl", "https://ada:hunter2@api.example.org", "user name or password"),
    ("firecrest", "Firecrest.TokenUrl", "http://auth.example.org/token", "plain http"),
    ("firecrest", "Firecrest.Machine", "", "a text"),
    ("firecrest", "Firecrest", "https://api.example.org", "ApiUrl, TokenUrl, Machine"),
    ("ssh", "SSH.Hostname", None, "no value"),
    ("ssh", "SSH.Port", "ssh", "port"),
    ("ssh", "SSH.Port", 0, "port"),
    ("ssh", "SSH.Port", True, "port"),
    ("unicore", "Resources", [], "Queue, Runtime"),
    ("unicore", "Resources.Queue", 7, "a text"),
    ("unicore", "Resources.Queue", "batch\n", "one line"),
    ("unicore", "Resources.Queue", None, "no value"),
    ("unicore", "Resources.Runtime", "1h30m", "12h"),
    ("unicore", "Resources.Runtime", "90", "12h"),
    ("unicore", "Resources.Runtime", 90, "12h"),
    ("unicore", "Resources.Runtime", "12:00:00", "12h"),
    ("unicore", "Resources.Nodes", "x", "whole number"),
    ("unicore", "Resources.Nodes", 0, "whole number"),
    ("unicore", "Resources.Nodes", 1.5, "whole number"),
    ("unicore", "Resources.TotalCPUs", True, "whole number"),
    ("unicore", "Resources.CPUsPerNode", -1, "whole number"),
    ("unicore", "Resources.GPUsPerNode", "two", "whole number"),
    ("unicore", "Resources.MemoryPerNode", "12 gigabytes", "12GiB"),
    ("firecrest", "Resources.MemoryPerNode", "12GiB", "without a unit"),
    ("ssh", "Resources.MemoryPerNode", "12G", "without a unit"),
    ("unicore", "Resources.QoS", ["high"], "a text"),
    ("unicore", "Environment", "none", "must be an object"),
    ("unicore", "Environment.Python", "/venv", "either Apptainer or Python"),
    ("firecrest", "Environment.Python", "venv", "absolute"),
    ("firecrest", "Environment.Python", {"Path": "venv"}, "absolute"),
    ("firecrest", "Environment.Python", {}, "missing"),
    ("unicore", "Environment.Apptainer", {}, "missing"),
    ("unicore", "Environment.Apptainer", "image.sif", "must be an object"),
    ("unicore", "Environment.Apptainer.Type", "docker", "local or remote"),
    ("unicore", "Environment.Apptainer.Type", "Remote", "absolute"),
    ("unicore", "Environment.Apptainer.Options", {"nv": True}, "a text or a list"),
    ("unicore", "Environment.Modules", ["CUDA", 12], "a list"),
    ("unicore", "Exclude", [1], "a list"),
    ("unicore", "Environment.PreRunCommandOnComputeNode", ["ls \\"], "backslash"),
    ("unicore", "Environment.PreRunCommandOnComputeNode", [";\n"], "a text or a list"),
    ("unicore", "Environment.PreRunCommandOnComputeNode", "export MLFLOW_TRACKING_TOKEN=hunter2", "must not set"),
    ("unicore", "Environment.Apptainer.Options", "--env MLFLOW_TRACKING_PASSWORD=hunter2", "must not set"),
    ("unicore", "Environment.Variables.APPTAINERENV_MLFLOW_TRACKING_TOKEN", "hunter2", "not allowed"),
    ("unicore", "Environment.Variables", {True: "b"}, "put the name in quotes"),
    ("unicore", "Environment.Variables.A", "a\0b", "no variable can hold"),
    ("unicore", "Environment.Variables.A", datetime.date(2026, 1, 1), "in quotes, if it is a date"),
    ("firecrest", "Resources.Queue", "a b", "Slurm would split"),
    ("ssh", "Resources.NodeConstraints", "gpu#1", "Slurm would split"),
    ("unicore", "Environment.PreRunCommandOnComputeNode", 1, "a text or a list"),
    ("unicore", "Environment.PostRunCommandOnLoginNode", ["ls", None], "a text or a list"),
    ("firecrest", "Environment.PreRunCommandOnLoginNode", "ls", "not possible with Firecrest"),
    ("firecrest", "Environment.PostRunCommandOnLoginNode", ["ls"], "PostRunCommandOnComputeNode"),
    ("unicore", "Environment.Variables", ["A=b"], "names and values"),
    ("unicore", "Environment.Variables.A", ["b"], "a text, a number"),
    ("unicore", "Environment.Variables.A", None, "a text, a number"),
    ("unicore", "Environment.Variables.1A", "b", "a shell takes"),
    ("unicore", "Environment.Variables.A-B", "b", "a shell takes"),
    ("unicore", "Environment.Variables.MLFLOW_TRACKING_USERNAME", "hunter2", "not allowed"),
    ("unicore", "Environment.Variables.MLFLOW_TRACKING_PASSWORD", "hunter2", "not allowed"),
    ("unicore", "Environment.Variables.MLFLOW_TRACKING_TOKEN", "hunter2", "not allowed"),
    # unknown keys, with their names of today
    ("unicore", "SingularityImage", "image.sif", "Environment.Apptainer"),
    ("unicore", "Environment.Singularity", "image.sif", "Environment.Apptainer"),
    ("unicore", "Environment.SingularityImage", "image.sif", "Environment.Apptainer"),
    ("unicore", "PreRunCommand", {"Command": "ls", "ExecuteOnLoginNode": True}, "Environment.PreRunCommandOnLoginNode"),
    ("unicore", "Environment.PostRunCommand", {}, "Environment.PostRunCommandOnComputeNode"),
    ("unicore", "Environment.Environment", {"A": "b"}, "Environment.Variables"),
    ("unicore", "Resources.Project", "slai", "compute budget account"),
    ("unicore", "Environment.Options", ["--nv"], "Environment.Apptainer.Options"),
    ("unicore", "Modules", ["CUDA"], "Environment.Modules"),
    ("unicore", "PreRunCommandOnLoginNode", "ls", "Environment.PreRunCommandOnLoginNode"),
    ("unicore", "Resources.CPUs", 4, "Resources.TotalCPUs or Resources.CPUsPerNode"),
    ("unicore", "Resources.Memory", "1G", "Resources.MemoryPerNode"),
    ("unicore", "Resources.queue", "batch", "Resources.Queue"),
    ("unicore", "Resources.Colour", "red", "known here: Queue, Runtime"),
    ("firecrest", "Firecrest.Account", "slai", "known here: ApiUrl"),
]


@pytest.mark.parametrize(("kind", "path", "value", "said"), WRONG, ids=[f"{row[1]}={row[2]!r}" for row in WRONG])
def test_each_broken_rule_is_one_finding_with_its_path(kind: str, path: str, value: Any, said: str) -> None:
    broken = config(kind)
    put(broken, path, value)
    before = deepcopy(broken)
    (finding,) = findings_of(broken)
    assert finding.startswith((path, "Environment: a run has one", "Environment.Apptainer.Path", path + ".Path"))
    assert said in finding
    assert "hunter2" not in finding
    assert broken == before


@pytest.mark.parametrize("path", ["Resources.Queue", "Firecrest.ApiUrl", "Firecrest.TokenUrl", "Firecrest.Machine"])
def test_required_keys(path: str) -> None:
    broken = config("firecrest")
    del broken[path.split(".")[0]][path.split(".")[1]]
    assert findings_of(broken) == [f"{path} is missing"]


@pytest.mark.parametrize("keys", [[], ["UnicoreApiUrl", "SSH"], ["UnicoreApiUrl", "Firecrest", "SSH"]])
def test_exactly_one_kind(keys: list[str]) -> None:
    everything = config("unicore") | config("firecrest") | config("ssh")
    broken = {key: everything[key] for key in [*keys, "Resources"]}
    (finding,) = findings_of(broken)
    assert "exactly one of UnicoreApiUrl, Firecrest, SSH" in finding
    with pytest.raises(BackendConfigInvalid, match="exactly one"):
        backend_kind(broken)


def test_all_findings_come_at_once() -> None:
    broken = {
        "UnicoreApiUrl": "http://example.org",
        "Resources": {"Runtime": "long", "Nodes": "many"},
        "Environment": {"Modules": ["CUDA", 1], "Options": "--nv"},
        "Color": 1,
    }
    findings = findings_of(broken)
    starts = ["UnicoreApiUrl", "Resources.Queue", "Resources.Runtime", "Resources.Nodes"]
    starts += ["Environment.Modules", "Environment.Options", "Color"]
    assert [finding.split()[0].rstrip(":") for finding in findings] == starts


@pytest.mark.parametrize("nonsense", [None, [], "config.yaml", 3])
def test_something_else_is_no_config(nonsense: Any) -> None:
    assert findings_of(nonsense)[0].startswith("The config must be an object")


def test_loopback_may_be_plain_http() -> None:
    check_backend_config(config() | {"UnicoreApiUrl": "http://127.0.0.1:8080/DEMO-SITE/rest/core"})


def test_findings_survive_pickling() -> None:
    with pytest.raises(BackendConfigInvalid) as caught:
        check_backend_config({})
    assert pickle.loads(pickle.dumps(caught.value)).findings == caught.value.findings


# --- Variables ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("environment", [None, {}, {"Variables": {"A": "b"}}])
def test_variables_are_added_to_a_copy(environment: dict[str, Any] | None) -> None:
    given = {"Resources": {"Queue": "q"}, "Exclude": ["a"]} | (
        {"Environment": environment} if environment is not None else {}
    )
    before = deepcopy(given)
    copy = with_variables(MappingProxyType(given), {"MANTIK_RUN_KEY": "pm-1"})
    own = (environment or {}).get("Variables", {})
    assert copy == before | {"Environment": {"Variables": own | {"MANTIK_RUN_KEY": "pm-1"}}}
    copy["Exclude"].append("b")
    copy["Environment"]["Variables"]["A"] = "c"
    assert given == before


def test_what_a_yaml_alias_shares_is_not_shared_by_the_copy() -> None:
    given = yaml.safe_load("Environment: {Variables: &v {A: b}}\nOther: *v")
    copy = with_variables(given, {"B": "c"})
    assert copy == {"Environment": {"Variables": {"A": "b", "B": "c"}}, "Other": {"A": "b"}}


@pytest.mark.parametrize(
    ("own", "added", "said"),
    [
        ({"MANTIK_RUN_KEY": "mine"}, {"MANTIK_RUN_KEY": "pm-1"}, "MANTIK_RUN_KEY is set by prefect-mantik"),
        ({"MANTIK_RUN_KEY": "pm-1"}, {"MANTIK_RUN_KEY": "pm-1"}, "MANTIK_RUN_KEY is set by prefect-mantik"),
        ({"MLFLOW_TRACKING_TOKEN": "hunter2"}, {}, "not allowed"),
        ({}, {"MLFLOW_TRACKING_TOKEN": "hunter2"}, "not allowed"),
        ({}, {"MLFLOW_TRACKING_USERNAME": "hunter2"}, "not allowed"),
        ({}, {"MLFLOW_TRACKING_PASSWORD": "hunter2"}, "not allowed"),
        ({}, {"A B": "c"}, "a shell takes"),
        (None, {"A": "b"}, "no value"),
        (["A=b"], {"A": "b"}, "names and values"),
    ],
)
def test_variables_that_cannot_be_added(own: Any, added: dict[str, str], said: str) -> None:
    with pytest.raises(BackendConfigInvalid, match=said) as caught:
        with_variables({"Environment": {"Variables": own}}, added)
    assert "Environment.Variables" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_what_goes_to_the_platform_is_written_so_that_it_can_render_it() -> None:
    given = yaml.safe_load(
        """
        Environment:
          Modules: Stages/2024 CUDA
          PreRunCommandOnComputeNode: |
            cd $HOME
            ls *.txt;
          PostRunCommandOnComputeNode: ["echo a;", "find . -exec rm {} \\\\;\\n"]
        Exclude: "*.sif"
        """
    )
    assert with_variables(given, {}) == {
        "Environment": {
            "Modules": ["Stages/2024", "CUDA"],
            "PreRunCommandOnComputeNode": "cd $HOME\nls *.txt",
            "PostRunCommandOnComputeNode": ["echo a", "find . -exec rm {} \\;"],
            "Variables": {},
        },
        "Exclude": ["*.sif"],
    }


# --- Typed ----------------------------------------------------------------------------------------------------------


def test_a_config_becomes_typed() -> None:
    parsed = parse_backend_config(MappingProxyType(config() | {"Exclude": "data/"}))
    resources, environment = parsed.resources, parsed.environment
    assert (parsed.kind, parsed.site, parsed.exclude) == ("unicore", "SITE", ("data/",))
    assert (resources.runtime, resources.runtime_seconds, resources.total_cpus) == ("12h", 43200, 8)
    assert (resources.memory_per_node, resources.memory_kibibytes) == ("12GiB", 12 * 1024**2)
    assert environment.before_on_compute_node == ("cd $UC_WORKING_DIRECTORY\nls *.txt",)
    assert environment.after_on_login_node == ("echo done",)
    assert environment.modules == ("CUDA", "GCCcore/.11.2.0")
    assert environment.variables == {"A": "b", "RATE": "7e-6", "N": "3", "DEBUG": "True", "EMPTY": ""}
    assert environment.apptainer is not None
    assert (environment.apptainer.type, environment.apptainer.options) == ("local", ("--nv",))


@pytest.mark.parametrize("kind", GOOD)
def test_a_typed_config_is_written_as_it_was_read(kind: str) -> None:
    parsed = parse_backend_config(config(kind))
    written = parsed.model_dump(by_alias=True, exclude_defaults=True)
    check_backend_config(written)
    assert parse_backend_config(written) == parsed
    assert parsed.kind == kind
    assert parsed.site == site_label(config(kind))


def test_all_errors_come_before_anything_is_typed() -> None:
    with pytest.raises(BackendConfigInvalid) as caught:
        parse_backend_config({"UnicoreApiUrl": "no", "Resources": {"Nodes": "x"}})
    assert [finding.split()[0] for finding in caught.value.findings] == [
        "UnicoreApiUrl",
        "Resources.Queue",
        "Resources.Nodes",
    ]


def test_a_memory_unit_is_for_the_direct_road_to_slurm() -> None:
    given = config("firecrest")
    put(given, "Resources.MemoryPerNode", "12GiB")
    assert parse_backend_config(given).resources.memory_kibibytes == 12 * 1024**2


@pytest.mark.parametrize(
    ("given", "kibibytes"),
    [(64000, 64000 * 1024), ("0", 0), (-1, None), ("500K", 500), ("2GB", 2 * 1024**2), ("1TiB", 1024**3), (None, None)],
)
def test_memory(given: Any, kibibytes: int | None) -> None:
    resources = {"Queue": "q"} | ({} if given is None else {"MemoryPerNode": given})
    assert parse_backend_config(config() | {"Resources": resources}).resources.memory_kibibytes == kibibytes


@pytest.mark.parametrize(
    ("written", "runs"),
    [
        ("ls\n", "ls"),
        ("ls;", "ls"),
        ("ls ; ;\n\n", "ls"),
        ("find . -exec rm {} \\;\n", "find . -exec rm {} \\;"),
        ("a; b", "a; b"),
        ("a\r\nb\r\n", "a\nb"),
    ],
)
def test_line_ends_and_semicolons_at_the_end_of_a_command_are_taken_off(written: str, runs: str) -> None:
    parsed = parse_backend_config(config() | {"Environment": {"PreRunCommandOnComputeNode": written}})
    assert parsed.environment.before_on_compute_node == (runs,)


LIKELY_WRONG = [
    ("unicore", "Environment.Modules", ["CUDA;"], "holds a ;"),
    ("unicore", "Environment.Modules", ["module load CUDA"], '"module load" is put before'),
    ("unicore", "Environment.Apptainer.Path", "image.sif; ls", "holds a ;"),
    ("unicore", "Environment.Apptainer.Options", ["--nv; ls"], "options only"),
    ("firecrest", "Environment.Python", "/users/ada/venv/bin/activate", "/bin/activate is put behind it"),
    ("firecrest", "Environment.Python", "/users/ada/venv/bin/", "/bin/activate is put behind it"),
    ("firecrest", "Environment.Python", "/users/ada/venv;", "holds a ;"),
]


@pytest.mark.parametrize(("kind", "path", "value", "said"), LIKELY_WRONG)
def test_what_is_most_likely_wrong_is_advice_and_no_reason_to_refuse(
    kind: str, path: str, value: Any, said: str
) -> None:
    """Version 0.1 took these: a saved site must load, if only to cancel what runs there."""
    given = config(kind)
    environment = given.setdefault("Environment", {})
    if "Apptainer" in path:
        environment.setdefault("Apptainer", {"Path": "image.sif"})
        environment.pop("Python", None)
    put(given, path, value)
    check_backend_config(given)
    found = [finding for finding in inspect_backend_config(given) if finding.path.startswith(path)]
    assert [finding.severity for finding in found] == ["advice"]
    assert said in found[0].message


@pytest.mark.parametrize("python", ["/users/ada/venv", "/users/ada/venv/bin/activate", "/users/ada/venv/bin/python3"])
def test_a_virtual_environment_is_activated_however_it_is_named(python: str) -> None:
    given = config("unicore")
    given["Environment"] = {"Python": python}
    script = training_script(parse_backend_config(given), command="true", variables={})
    assert 'source "/users/ada/venv/bin/activate"' in script
