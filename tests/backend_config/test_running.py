"""Rendered scripts, really run by bash: what the command saw, in which order steps ran, and how it all ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prefect_mantik.backend_config import parse_backend_config, slurm_script, training_script, unicore_job

SHOW = f"""{sys.executable} -c 'import json, os; json.dump(dict(os.environ), open("seen.json", "w"))'"""
STUBS = {
    "srun": '#!/bin/bash\necho "srun $1"\nexec "$@"\n',
    # apptainer run [options] <image> <command ...>
    "apptainer": '#!/bin/bash\nshift\nwhile [[ "$1" == -* ]]; do echo "option $1"; shift; done\n'
    'echo "image $1"\nshift\nIN_IMAGE=yes exec "$@"\n',
}
NASTY = '  a\'b "c" `echo t` $(echo s) $5 $$ $ ${A:-b} \\n \\ , ; # !x *\nsecond line\t'


class Site:
    """A directory in which scripts run, with `module`, `srun` and `apptainer` that tell what they were given."""

    def __init__(self, root: Path) -> None:
        self.directory, self.bin = root / "job dir", root / "bin"
        self.directory.mkdir()
        self.bin.mkdir()
        for name, text in STUBS.items():
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)

    def run(
        self, script: str, name: str = "mantik.sh", stdin: str = "", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        (self.directory / name).write_text(script)
        given = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "HOME": "/home/ada",
            "UC_WORKING_DIRECTORY": str(self.directory),
            "BASH_FUNC_module%%": '() { echo "module $*"; [ "$2" != nope ]; }',
        }
        return subprocess.run(
            ["/bin/bash", name],
            cwd=self.directory,
            env=given | variables,
            input=stdin,
            text=True,
            capture_output=True,
            check=False,
        )

    @property
    def seen(self) -> dict[str, str]:
        seen: dict[str, str] = json.loads((self.directory / "seen.json").read_text())
        return seen


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def config(environment: dict[str, Any] | None = None, **resources: Any) -> Any:
    return parse_backend_config(
        {
            "UnicoreApiUrl": "https://unicore.example.org/SITE/rest/core",
            "Resources": {"Queue": "batch"} | resources,
            "Environment": environment or {},
        }
    )


def script(environment: dict[str, Any] | None = None, command: str = "echo train", **more: Any) -> str:
    return training_script(config(environment), command=command, variables=more.pop("variables", {}), **more)


# --- Variables ------------------------------------------------------------------------------------------------------


def test_everything_but_names_arrives_literally_from_the_config(site: Site) -> None:
    variables = {"NASTY": NASTY, "NAMED": "${HOME}/x:$HOME:$NOT_THERE:", "LONE": "$", "N": 3}
    done = site.run(script({"Variables": variables}, SHOW))
    assert (done.returncode, done.stdout) == (0, "")
    assert site.seen["NASTY"] == NASTY
    assert site.seen["NAMED"] == "/home/ada/x:/home/ada::"
    assert (site.seen["LONE"], site.seen["N"]) == ("$", "3")


def test_ours_arrive_literally_and_win(site: Site) -> None:
    text = script({"Variables": {"A": "theirs", "B": "$A!"}}, SHOW, variables={"A": NASTY + "$HOME"})
    assert site.run(text).returncode == 0
    assert site.seen["A"] == NASTY + "$HOME"
    assert site.seen["B"] == NASTY + "$HOME!"


def test_the_working_directory_is_told_and_cannot_be_overridden_by_the_config(site: Site) -> None:
    site.run(script({"Variables": {"MANTIK_WORKING_DIRECTORY": "/elsewhere"}}, SHOW))
    assert site.seen["MANTIK_WORKING_DIRECTORY"] == str(site.directory)


@pytest.mark.parametrize(
    ("own", "ours", "expected"),
    [({}, {}, "4"), ({"SRUN_CPUS_PER_TASK": 2}, {}, "2"), ({}, {"SRUN_CPUS_PER_TASK": "1"}, "1")],
)
def test_srun_is_told_the_cpus(site: Site, own: dict[str, Any], ours: dict[str, str], expected: str) -> None:
    text = training_script(config({"Variables": own}, CPUsPerNode=4), command=SHOW, variables=ours)
    site.run(text)
    assert site.seen["SRUN_CPUS_PER_TASK"] == expected


# --- Order and ends -------------------------------------------------------------------------------------------------

ALL = {
    "Modules": ["CUDA", "GCCcore/.11.2.0"],
    "PreRunCommandOnComputeNode": ["echo before 1", "echo before 2  # a comment"],
    "PostRunCommandOnComputeNode": "echo after",
}


def test_the_order_of_steps(site: Site) -> None:
    done = site.run(script(ALL, "echo train >&2", before=["echo unpack 1", "echo unpack 2"]))
    assert done.stdout.splitlines() == [
        "unpack 1",
        "unpack 2",
        "module load CUDA GCCcore/.11.2.0",
        "before 1",
        "before 2",
        "train",
        "after",
    ]
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("change", "command", "ran", "code"),
    [
        ({"before": ["echo unpack", "(exit 7)"]}, "echo train", ["unpack"], 7),
        ({"Modules": ["nope"]}, "echo train", ["module load nope"], 1),
        ({"PreRunCommandOnComputeNode": ["echo a", "(exit 5)", "echo b"]}, "echo train", ["a"], 5),
        ({"PreRunCommandOnComputeNode": "echo a\n(exit 5)\necho b\n"}, "echo train", ["a"], 5),
        ({"PreRunCommandOnComputeNode": "# it's for a\necho a\n(exit 5)\necho b\n"}, "echo train", ["a"], 5),
        ({"PreRunCommandOnComputeNode": "for i in 1 2; do\n(exit $i)\ndone"}, "echo train", [], 2),
        ({}, "echo train; (exit 3)", ["train"], 3),
        ({}, "false && echo train", [], 1),
        ({"PostRunCommandOnComputeNode": ["false # x", "echo b"]}, "echo train", ["train"], 1),
        ({}, "kill -9 $$", [], -9),
    ],
)
def test_a_failing_step_ends_the_script_with_its_code(
    site: Site, change: dict[str, Any], command: str, ran: list[str], code: int
) -> None:
    before = change.pop("before", [])
    done = site.run(script({"PostRunCommandOnComputeNode": "echo after"} | change, command, before=before))
    assert (done.stdout.split("\n")[:-1], done.returncode) == (ran, code)


@pytest.mark.parametrize(
    "text",
    [
        "cat << EOF\n  it's (here\nEOF",
        "if true; then\n  echo '  it'\"'\"'s (here'\nfi",
        "echo '  it'\"'\"'s (here' \\\n  | cat",
        "true &&\necho '  it'\"'\"'s (here'",
        'echo "  it\'s (here"',
        'show() {\n  echo "$1"\n}\nshow "  it\'s (here"',
        'x=$(true\n  echo "  it\'s (here"\n  true)\necho "$x"',
        'x=`true\n  echo "  it\'s (here"`\necho "$x"',
        'x=$(\n  echo "  it\'s (here"\n)\necho "$x"',
        '(\n  echo "  it\'s (here"\n)',
    ],
)
def test_texts_of_many_lines_stay_what_they_are(site: Site, text: str) -> None:
    done = site.run(script({"PreRunCommandOnComputeNode": text + "\n"}))
    assert (done.stdout, done.returncode) == ("  it's (here\ntrain\n", 0)


def test_commands_are_the_shells(site: Site) -> None:
    (site.directory / "a.csv").touch()
    environment = {
        "PreRunCommandOnComputeNode": ["cd /", 'cd $UC_WORKING_DIRECTORY 2> /dev/null || cd "$UC_WORKING_DIRECTORY"'],
        "PostRunCommandOnComputeNode": "echo ${HOME} $(echo sub) *.csv",
    }
    done = site.run(script(environment, "pwd"))
    assert done.stdout.splitlines() == [str(site.directory), "/home/ada sub a.csv"]


def test_a_command_that_reads_its_input_does_not_hang(site: Site) -> None:
    assert site.run(script(command="cat; echo read"), stdin="more").stdout == "read\n"


def test_a_shell_without_modules_reads_the_profile_first(site: Site) -> None:
    done = site.run(script({"Modules": "CUDA"}), **{"BASH_FUNC_module%%": "() { echo mine; }"})
    assert done.stdout == "mine\ntrain\n"
    assert "type module > /dev/null 2>&1 || . /etc/profile\nmodule load CUDA\n" in script({"Modules": "CUDA"})


# --- Environments ---------------------------------------------------------------------------------------------------


def test_a_container_runs_the_whole_command(site: Site) -> None:
    environment = {"Apptainer": {"Path": "deep/my image.sif", "Options": ["--nv", "--bind=$HOME"]}} | ALL
    command = "echo $IN_IMAGE 'it'\"'\"'s' > out.txt && cat out.txt; exit 4"
    done = site.run(script(environment, command))
    assert done.stdout.splitlines()[-5:] == [
        "srun apptainer",
        "option --nv",
        "option --bind=/home/ada",
        "image my image.sif",
        "yes it's",
    ]
    assert done.returncode == 4


def test_a_remote_image_keeps_its_path(site: Site) -> None:
    done = site.run(script({"Apptainer": {"Path": "/images/$HOME/x.sif", "Type": "Remote"}}))
    assert "image /images//home/ada/x.sif\n" in done.stdout


def test_a_virtual_environment_is_active_in_the_command(site: Site, tmp_path: Path) -> None:
    activate = tmp_path / "my venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text("VENV=active\n")
    done = site.run(
        script({"Python": f"{tmp_path}/my venv/", "PostRunCommandOnComputeNode": "echo $VENV"}, "echo $VENV")
    )
    assert done.stdout == "active\nactive\n"


def test_a_missing_virtual_environment_ends_it(site: Site) -> None:
    done = site.run(script({"Python": "/not/there"}))
    assert (done.returncode, "train" in done.stdout) == (1, False)


# --- On login nodes, and by Slurm -----------------------------------------------------------------------------------


def test_scripts_for_the_login_node(site: Site) -> None:
    environment = {
        "Variables": {"A": "b"},
        "PreRunCommandOnLoginNode": ["echo login $A", "(exit 6)", "echo no"],
        "PostRunCommandOnLoginNode": "echo out $OURS",
    }
    job = unicore_job(
        config(environment), command="true", variables={"OURS": "$x"}, account=None, before=["echo unpack"]
    )
    files = {item["To"]: item["Data"] for item in job["Imports"]}
    before, after = (site.run(files[name], name) for name in ("mantik-before.sh", "mantik-after.sh"))
    assert (before.stdout, before.returncode) == ("unpack\nlogin b\n", 6)
    assert (after.stdout, after.returncode) == ("out $x\n", 0)
    assert "Project" not in job


def test_a_slurm_script_runs_in_its_directory(site: Site, tmp_path: Path) -> None:
    elsewhere = tmp_path / "run"
    elsewhere.mkdir()
    given = config({"Variables": {"A": "b"}})
    text = slurm_script(
        given, job_name="j", directory=str(elsewhere), command="pwd; echo $A", variables={}, account=None
    )
    assert site.run(text).stdout == f"{elsewhere}\nb\n"
    assert "#SBATCH --account" not in text
    missing = text.replace(str(elsewhere), "/not/there")
    assert site.run(missing).returncode == 1
