import json
import time
from pathlib import Path
from typing import Any

import pytest

from .rest import Cedar

REST = "cedar-rest"
NEVER = 4294967294
API_ERROR = "Unexpected Slurm API response. status:500 message:"


def bash(*lines: str) -> str:
    return "\n".join(["#!/bin/bash", *lines, ""])


def codes(job: Any) -> tuple[Any, Any, Any]:
    status = job["status"]
    return status["state"], status["exitCode"], status["interruptSignal"]


def test_a_job_from_its_submission_to_its_end(cedar: Cedar) -> None:
    cedar.control.switch(queue_delay=0.4)
    script = bash("#SBATCH -J restok", "#SBATCH -o rest-%j.out", "#SBATCH -p nope -t 7", "sleep 0.3")
    job = cedar.firecrest.submit(REST, cedar.home, script_str=script)["jobId"]
    waiting = cedar.firecrest.job_info(REST, job)[0]
    assert (waiting["name"], codes(waiting)) == ("", ("PENDING", 0, None))
    assert waiting["time"] == {"elapsed": None, "start": 0, "end": 0, "suspended": 0, "limit": 3600}
    assert (waiting["tasks"], waiting["group"], waiting["nodes"], waiting["killRequestUser"]) == (None, None, "", None)
    assert (waiting["allocationNodes"], waiting["partition"]) == (0, "batch")
    running = cedar.until(job, "RUNNING", REST)
    assert (running["name"], codes(running)) == ("allocation", ("RUNNING", 0, None))
    assert (running["time"]["end"], running["killRequestUser"], running["group"]) == (0, "", cedar.login)
    assert (running["tasks"][0]["id"], codes(running["tasks"][0])) == (f"{job}.batch", ("RUNNING", 0, None))
    assert codes(cedar.over(job, REST)) == ("COMPLETED", 0, None)
    metadata = cedar.firecrest.job_metadata(REST, job)[0]
    assert metadata["script"] == script
    assert metadata["standardOutput"] == f"{cedar.home}/slurm-{job}.out"
    assert Path(cedar.home, f"slurm-{job}.out").exists()
    assert not Path(cedar.home, f"rest-{job}.out").exists()


def test_metadata_needs_a_second_way_to_the_batch_system(cedar: Cedar) -> None:
    job = cedar.submit(bash("true"), REST)
    cedar.control.switch(firecrest_rest_mode="rest")
    assert cedar.http.get(f"{cedar.jobs(REST)}/{job}/metadata").status_code == 501
    assert cedar.http.get(f"{cedar.jobs()}/{job}/metadata").status_code == 200


def test_only_the_environment_that_was_sent(cedar: Cedar) -> None:
    script = bash("env", "echo [$HOME]", "echo A=$A B=$B")
    _, output = cedar.run(script, REST, env={"A": "1,2,3", "B": "x y"})
    assert output.endswith("[]\nA=1,2,3 B=x y\n")
    names = {line.partition("=")[0] for line in output.splitlines()}
    assert not names & {"PATH", "HOME", "USER", "LOGNAME", "F7T_version", "BASH_ENV", "SANDBOX_HOME", "SCRATCH"}
    assert {"SLURM_JOB_ID", "SLURM_CLUSTER_NAME"} <= names
    _, output = cedar.run(bash("env"), REST)
    assert "F7T_version=v2.0.0" in output


def test_srun_finds_nothing_without_a_path(cedar: Cedar) -> None:
    done, output = cedar.run(bash("srun sleep 0"), REST)
    assert (codes(done), "execve(): sleep: No such file or directory" in output) == (("FAILED", 2, None), True)
    assert [(task["name"], codes(task)) for task in done["tasks"]] == [
        ("batch", ("FAILED", 2, None)),
        ("sleep", ("FAILED", 2, None)),
    ]
    script = bash("srun sleep 0; python -c 'print(1)'; echo [$HOME]")
    done, output = cedar.run(script, REST, env={"PATH": "/usr/bin:/bin", "HOME": "/h"})
    assert (codes(done), output) == (("COMPLETED", 0, None), "1\n[/h]\n")


def test_a_login_shell_has_a_path_again(cedar: Cedar) -> None:
    done, output = cedar.run("#!/bin/bash -l\nsrun sleep 0\nmodule load x\npython -c 'print(1)'\necho [$HOME]\n", REST)
    assert (codes(done), output) == (("COMPLETED", 0, None), "module load x\n1\n[]\n")


@pytest.mark.parametrize(("script", "expected"), [("echo\n", 8), (bash("#SBATCH --bogus=1", "exit 3"), 3)])
def test_nobody_looks_into_the_script(cedar: Cedar, script: str, expected: Any) -> None:
    assert codes(cedar.over(cedar.submit(script, REST), REST)) == ("FAILED", expected, None)


@pytest.mark.parametrize(
    ("script", "fields", "number", "error"),
    [
        (bash("true"), {"partition": "nope"}, 2000, "Invalid partition name specified"),
        ("", {}, 2009, "Job script not specified"),
        (bash("true"), {"account": "x"}, 2045, "Invalid account or account/partition combination specified"),
    ],
)
def test_refusals(cedar: Cedar, script: str | None, fields: dict[str, Any], number: int, error: str) -> None:
    message = cedar.refused(script, REST, **fields)
    assert message.startswith(API_ERROR)
    (found,) = json.loads(message.removeprefix(API_ERROR))["errors"]
    assert (found["error_number"], found["error"]) == (number, error)


def test_a_script_at_the_site_is_still_sent_by_sbatch(cedar: Cedar) -> None:
    text = "Unexpected Slurm command response. exit_status:1 std_err:sbatch: error: Unable to open file /none.sh\n"
    assert cedar.refused(None, REST, scriptPath="/none.sh") == text


def test_cancel(cedar: Cedar) -> None:
    job = cedar.submit(bash("sleep 60"), REST)
    cedar.until(job, "RUNNING", REST)
    for _ in range(2):
        assert cedar.http.delete(f"{cedar.jobs(REST)}/{job}").status_code == 204
    found = cedar.get(job, REST)
    assert (codes(found), codes(found["tasks"][0])) == (("CANCELLED", 0, None), ("CANCELLED", None, 15))
    assert found["killRequestUser"] == cedar.login
    assert cedar.get(job)["status"]["state"] == "CANCELLED by 2001"
    assert cedar.http.delete(f"{cedar.jobs(REST)}/999999999").status_code == 204
    answer = cedar.http.get(f"{cedar.jobs(REST)}/999999999")
    assert (answer.status_code, answer.json()["message"]) == (404, "Job not found.")
    job = cedar.submit(bash("#SBATCH --hold"))
    cedar.http.delete(f"{cedar.jobs(REST)}/{job}")
    found = cedar.get(job, REST)
    assert (found["tasks"], found["time"]["start"], found["nodes"]) == ([], NEVER, "None assigned")


def test_a_signal_hides_the_exit_code(cedar: Cedar) -> None:
    done = cedar.over(cedar.submit(bash("kill -9 $$"), REST), REST)
    assert (codes(done), codes(done["tasks"][0])) == (("FAILED", None, 9), ("CANCELLED", None, 9))
    other = Path(cedar.home).with_name("sandbox-2-at-cedar")
    other.mkdir(exist_ok=True)
    done = cedar.over(cedar.submit(bash("true"), REST, workingDirectory=str(other)), REST)
    assert codes(done) == ("FAILED", None, 53)


def test_a_requeued_job_shows_its_first_attempt(cedar: Cedar) -> None:
    job = cedar.submit(bash("sleep 0.4"))
    cedar.until(job, "RUNNING")
    cedar.control.requeue_job(cedar.inside(job), 0.3)
    waiting = cedar.until(job, "PENDING")
    assert (waiting["status"]["stateReason"], waiting["tasks"]) == ("BeginTime", [])
    assert waiting["time"]["end"] == waiting["time"]["start"] + 3600
    assert cedar.until(job, "RUNNING")["status"]["stateReason"] == "BeginTime"
    done = cedar.over(job)
    assert (codes(done), done["status"]["stateReason"]) == (("COMPLETED", 0, 0), "BeginTime")
    first = cedar.get(job, REST)
    assert (codes(first), first["status"]["stateReason"]) == (("NODE_FAIL", 1, None), "None")
    assert codes(first["tasks"][0]) == ("CANCELLED", None, None)
    assert first["time"]["end"] <= done["time"]["start"]
    assert job in cedar.listed(REST)


def test_without_requeue(cedar: Cedar) -> None:
    job = cedar.submit(bash("#SBATCH --no-requeue", "sleep 60"))
    cedar.until(job, "RUNNING")
    cedar.control.requeue_job(cedar.inside(job))
    done = cedar.over(job)
    assert (codes(done), codes(done["tasks"][0])) == (("NODE_FAIL", 1, 0), ("CANCELLED", None, None))


def test_attach_does_nothing(cedar: Cedar) -> None:
    job = cedar.submit(bash("sleep 60"), REST)
    cedar.until(job, "RUNNING", REST)
    answer = cedar.http.put(f"{cedar.jobs(REST)}/{job}/attach", json={"command": f"touch {cedar.home}/never"})
    assert answer.status_code == 204
    time.sleep(0.1)
    assert not Path(cedar.home, "never").exists()
