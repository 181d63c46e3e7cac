"""What a batch system is asked for."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_mantik.backend_config import (
    BackendConfig,
    Resources,
    parse_backend_config,
    refuse_unsendable,
    slurm_fields,
    slurm_script,
    unicore_job,
)
from prefect_mantik.errors import BackendConfigInvalid


def config(**resources: Any) -> BackendConfig:
    return parse_backend_config(
        {"UnicoreApiUrl": "https://unicore.example.org/SITE/rest/core", "Resources": {"Queue": "q"} | resources}
    )


def slurm(given: BackendConfig, **changed: Any) -> str:
    arguments: dict[str, Any] = {"job_name": "pm-1", "directory": "/run", "account": "s1", "command": "true"}
    return slurm_script(given, **{**arguments, "variables": {}, **changed})


def options(**resources: Any) -> dict[str, str]:
    lines = [line for line in slurm(config(**resources)).splitlines() if line.startswith("#SBATCH --")]
    return dict(line.removeprefix("#SBATCH --").split("=", 1) for line in lines)


@pytest.mark.parametrize(
    ("key", "value", "option", "written"),
    [
        ("Runtime", "90s", "time", "0-00:01:30"),
        ("Runtime", "90m", "time", "0-01:30:00"),
        ("Runtime", "25h", "time", "1-01:00:00"),
        ("Runtime", "2d", "time", "2-00:00:00"),
        ("Runtime", 0, "time", "0"),
        ("Nodes", "2", "nodes", "2"),
        ("TotalCPUs", 8, "ntasks", "8"),
        ("CPUsPerNode", 4, "ntasks-per-node", "4"),
        ("GPUsPerNode", 0, "gpus-per-node", "0"),
        ("MemoryPerNode", 64000, "mem", "64000M"),
        ("MemoryPerNode", "12GiB", "mem", "12288M"),
        ("MemoryPerNode", "500K", "mem", "500K"),
        ("MemoryPerNode", 0, "mem", "0M"),
        ("MemoryPerNode", -1, "mem", None),
        ("Reservation", "r", "reservation", "r"),
        ("NodeConstraints", "gpu&mem", "constraint", "gpu&mem"),
        ("QoS", "high", "qos", "high"),
        ("Runtime", None, "time", None),
    ],
)
def test_slurm_options(key: str, value: Any, option: str, written: str | None) -> None:
    assert options(**({} if value is None else {key: value})).get(option) == written


@pytest.mark.parametrize("word", ["a b", "a\nb", 'a"b', "a#b", "a\\b", "a'b"])
@pytest.mark.parametrize("name", ["job_name", "account", "directory"])
def test_what_slurm_would_split_is_refused(name: str, word: str) -> None:
    with pytest.raises(BackendConfigInvalid, match="Slurm would split"):
        slurm(config(), **{name: word})


def test_a_queue_that_slurm_would_split_is_refused() -> None:
    with pytest.raises(BackendConfigInvalid, match=r"#SBATCH --partition .* Slurm would split"):
        slurm(config(Queue="a b"))


def test_a_pattern_in_the_directory_is_refused() -> None:
    with pytest.raises(BackendConfigInvalid, match="no %"):
        slurm(config(), directory="/run/%j")


def test_commands_for_a_login_node_are_not_lost() -> None:
    given = {"UnicoreApiUrl": "https://u.example.org/S/rest/core", "Resources": {"Queue": "q"}}
    with_login = parse_backend_config(given | {"Environment": {"PreRunCommandOnLoginNode": "ls"}})
    with pytest.raises(BackendConfigInvalid, match="login node"):
        slurm(with_login)


# --- Where no #SBATCH line counts -----------------------------------------------------------------------------------


def fields(account: str | None = "s1", directory: str = "/run", **resources: Any) -> dict[str, Any]:
    return slurm_fields(
        config(**resources), job_name="pm-1", directory=directory, account=account, reads_directives=False
    )


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({}, {}),
        ({"Reservation": "r", "NodeConstraints": "gpu&mem"}, {"reservation": "r", "constraints": "gpu&mem"}),
        ({"Nodes": 1, "TotalCPUs": 1, "CPUsPerNode": "1", "GPUsPerNode": 0, "MemoryPerNode": -1}, {}),
    ],
)
def test_what_can_be_said_in_fields(asked: dict[str, Any], sent: dict[str, Any]) -> None:
    found = fields(**asked)
    path = found.pop("env")
    ours = {"standardOutput": "/run/mantik.log", "standardError": "/run/mantik.log"}
    assert found == {"name": "pm-1", "account": "s1", "partition": "q", **ours, **sent}
    assert set(path) == {"PATH"}
    assert {"/usr/bin", "/bin"} <= set(path["PATH"].split(":"))


def test_no_account_is_no_field() -> None:
    assert "account" not in fields(account=None)


@pytest.mark.parametrize("directory", ["/run", "/run/"])
def test_the_log_is_the_one_of_the_script(directory: str) -> None:
    log = fields(directory=directory)["standardOutput"]
    assert f"#SBATCH --output={log}\n" in slurm(config(), directory=directory)


UNSENDABLE = {
    "Runtime": "1h",
    "Nodes": 2,
    "TotalCPUs": 2,
    "CPUsPerNode": 2,
    "GPUsPerNode": 1,
    "MemoryPerNode": "12GiB",
    "QoS": "high",
}


@pytest.mark.parametrize("name", UNSENDABLE)
def test_what_no_field_can_say_is_refused_by_its_name(name: str) -> None:
    for check in (
        lambda: refuse_unsendable(config(**{name: UNSENDABLE[name]})),
        lambda: fields(**{name: UNSENDABLE[name]}),
    ):
        with pytest.raises(BackendConfigInvalid, match=f"Resources.{name} cannot be sent: .*Leave it out") as caught:
            check()
        assert len(caught.value.findings) == 1


def test_all_that_no_field_can_say_is_named_at_once() -> None:
    with pytest.raises(BackendConfigInvalid) as caught:
        refuse_unsendable(config(**UNSENDABLE))
    assert [finding.split()[0] for finding in caught.value.findings] == [f"Resources.{name}" for name in UNSENDABLE]


def test_each_resource_is_sent_or_refused() -> None:
    """One that is added and forgotten here would be lost."""
    sent = {"queue", "reservation", "node_constraints"}
    refused = {"runtime", "nodes", "total_cpus", "cpus_per_node", "gpus_per_node", "memory_per_node", "qos"}
    assert set(Resources.model_fields) == sent | refused


@pytest.mark.parametrize("value", [0, "0", "1m"])
def test_any_runtime_is_a_wish_that_would_be_lost(value: Any) -> None:
    with pytest.raises(BackendConfigInvalid, match=r"Resources\.Runtime"):
        refuse_unsendable(config(Runtime=value))


# --- UNICORE --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({"Runtime": "12h"}, {"Runtime": "12h"}),
        ({"Runtime": 0}, {}),
        ({"Nodes": "2", "CPUsPerNode": 4}, {"Nodes": 2, "CPUsPerNode": 4}),
        ({"MemoryPerNode": "12GiB"}, {"MemoryPerNode": "12GiB"}),
        ({"MemoryPerNode": -1}, {}),
        ({"GPUsPerNode": 4}, {"GPUsPerNode": 4}),
    ],
)
def test_unicore_resources(asked: dict[str, Any], sent: dict[str, Any]) -> None:
    job = unicore_job(config(**asked), command="true", variables={}, account="slai")
    assert job["Resources"] == {"Queue": "q"} | sent
    assert job["Project"] == "slai"


def test_a_site_may_call_its_gpus_otherwise() -> None:
    job = unicore_job(config(GPUsPerNode=4), command="true", variables={}, account=None, gpu_resource="GPUS")
    assert job["Resources"] == {"Queue": "q", "GPUS": 4}


def test_where_directives_count_nothing_is_refused_and_no_variable_is_sent() -> None:
    asked = config(Runtime="1h", Nodes=2, GPUsPerNode=4)
    found = slurm_fields(asked, job_name="pm-1", directory="/run", account="s1", reads_directives=True)
    assert found == {
        "name": "pm-1",
        "account": "s1",
        "partition": "q",
        "standardOutput": "/run/mantik.log",
        "standardError": "/run/mantik.log",
    }
