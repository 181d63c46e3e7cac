import time
from pathlib import Path
from typing import Any

import pytest
from firecrest.FirecrestException import UnexpectedStatusException

from .rest import Cedar

SBATCH = "Unexpected Slurm command response. exit_status:1 std_err:sbatch: error: "
FAILED = "Batch job submission failed: "


def bash(*lines: str) -> str:
    return "\n".join(["#!/bin/bash", *lines, ""])


def codes(job: Any) -> tuple[Any, Any, Any]:
    status = job["status"]
    return status["state"], status["exitCode"], status["interruptSignal"]


def test_a_job_from_its_submission_to_its_end(cedar: Cedar) -> None:
    cedar.control.switch(queue_delay=0.4)
    script = bash("#SBATCH --job-name=okjob", "#SBATCH -o out-%x-%j.txt", "echo hello; srun sleep 0.3")
    job = cedar.firecrest.submit("cedar", cedar.home, script_str=script)["jobId"]
    waiting = cedar.firecrest.job_info("cedar", job)[0]
    assert waiting["status"] == {
        "state": "PENDING",
        "stateReason": "None",
        "exitCode": None,
        "interruptSignal": None,
    }
    assert waiting["time"] == {"elapsed": 0, "start": None, "end": None, "suspended": None, "limit": 3600}
    assert (waiting["tasks"], waiting["nodes"], waiting["allocationNodes"]) == ([], "", 1)
    running = cedar.until(job, "RUNNING")
    assert codes(running) == ("RUNNING", 0, 0)
    assert (running["time"]["end"], running["tasks"][0]["id"]) == (None, f"{job}.batch")
    done = cedar.over(job)
    assert codes(done) == ("COMPLETED", 0, 0)
    assert done["time"]["end"] >= done["time"]["start"] > 0
    assert [(task["id"], task["name"]) for task in done["tasks"]] == [(f"{job}.batch", "batch"), (f"{job}.0", "sleep")]
    assert (done["name"], done["user"], done["group"]) == ("okjob", cedar.login, cedar.login)
    assert (done["account"], done["cluster"], done["partition"]) == ("sandbox-budget", "cedar", "batch")
    assert (done["nodes"], done["workingDirectory"], done["killRequestUser"]) == ("cedar001", cedar.home, None)
    assert cedar.firecrest.job_metadata("cedar", job) == [
        {
            "jobId": job,
            "script": script,
            "standardInput": "/dev/null",
            "standardOutput": f"{cedar.home}/out-okjob-{job}.txt",
            "standardError": f"{cedar.home}/out-okjob-{job}.txt",
        }
    ]
    assert Path(cedar.home, f"out-okjob-{job}.txt").read_text() == "hello\n"


@pytest.mark.parametrize(
    ("command", "expected", "step"),
    [
        ("exit 3", ("FAILED", 3, 0), ("FAILED", 3, 0)),
        ("kill -9 $$", ("FAILED", 0, 9), ("CANCELLED", 0, 9)),
    ],
)
def test_jobs_that_fail(cedar: Cedar, command: str, expected: Any, step: Any) -> None:
    done = cedar.over(cedar.submit(bash(command)))
    assert (codes(done), codes(done["tasks"][0])) == (expected, step)


def test_a_job_over_its_time(cedar: Cedar) -> None:
    done = cedar.over(cedar.submit(bash("#SBATCH -t 0:01", "trap '' TERM; sleep 60 & wait; wait")))
    assert (codes(done), done["time"]["limit"]) == (("TIMEOUT", 0, 0), 1)
    assert codes(done["tasks"][0]) == ("FAILED", 9, 0)


def test_options_of_real_scripts(cedar: Cedar) -> None:
    options = ["-N 2", "-n 4 --ntasks-per-node=2", "-A users", "-p devel", "--mem 4G", "--gpus-per-node=1"]
    options += ["--qos=normal", "-C sandbox", "-J 'two words' # a comment", "-t 0-00:10:00", "-e %j.err"]
    job = cedar.submit(bash(*(f"#SBATCH {option}" for option in options), "echo out; echo err >&2", "#SBATCH -p nope"))
    done = cedar.over(job)
    assert (done["name"], done["partition"], done["account"]) == ("two words", "devel", "users")
    assert (done["time"]["limit"], done["allocationNodes"], done["nodes"]) == (600, 2, "cedar[001-002]")
    assert Path(cedar.home, f"{job}.err").read_text() == "err\n"
    assert Path(cedar.home, f"slurm-{job}.out").read_text() == "out\n"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("2:30", 150), ("1:00:00", 3600), ("1-0", 86400), ("0-1:30", 5400), ("0", 86400)],
)
def test_time_limits(cedar: Cedar, text: str, seconds: int) -> None:
    job = cedar.submit(bash(f"#SBATCH --hold --time={text}"))
    assert cedar.get(job)["time"]["limit"] == seconds


def test_fields_of_the_request_win_over_the_script(cedar: Cedar) -> None:
    script = bash("#SBATCH -J a -p nope -o a.txt", "echo here; cat")
    Path(cedar.home, "given").write_text("given\n")
    fields = {
        "name": "b",
        "partition": "devel",
        "account": "users",
        "standardOutput": "b.txt",
        "standardInput": "given",
    }
    done = cedar.over(cedar.submit(script, **fields))
    assert (done["name"], done["partition"], done["account"]) == ("b", "devel", "users")
    assert Path(cedar.home, "b.txt").read_text() == "here\ngiven\n"


def test_output_is_begun_anew_unless_it_is_to_be_added_to(cedar: Cedar) -> None:
    for mode, expected in (("truncate", "new\n"), ("append", "old\nnew\n")):
        output = Path(cedar.home, f"{mode}.txt")
        output.write_text("old\n")
        cedar.over(cedar.submit(bash(f"#SBATCH -o {output.name} --open-mode={mode}", "echo new")))
        assert output.read_text() == expected


def test_output_that_nobody_wants(cedar: Cedar) -> None:
    assert codes(cedar.over(cedar.submit(bash("#SBATCH -o /dev/null", "echo x")))) == ("COMPLETED", 0, 0)


def test_the_environment(cedar: Cedar) -> None:
    _, output = cedar.run(bash("env"))
    values = dict(line.split("=", 1) for line in output.splitlines() if "=" in line)
    assert (values["F7T_version"], values["USER"], values["HOME"]) == ("v2.0.0", cedar.login, cedar.home)
    assert values["SLURM_JOB_NAME"] == "sbatch"
    env = {"A": "1,2,3", "B": "x=y", "D": "line1\nline2", "E": 'it\'s "q" $HOME `id`'}
    _, output = cedar.run(bash('printf \'%s|\' "$A" "$B" "$D" "$E" "$F7T_version"'), env=env)
    assert output == '1|x=y|line1\nline2|it\'s "q" $HOME `id`||'


def test_other_interpreters_find_the_programs_of_the_site(cedar: Cedar) -> None:
    done, output = cedar.run("#!/usr/bin/env python\nimport os\nprint(os.environ['SLURM_JOB_ID'])\n")
    assert output == f"{done['jobId']}\n"
    assert cedar.run("#!/bin/bash -l\nmodule load x\n")[1] == "module load x\n"


@pytest.mark.parametrize("directory", ["not/yet/there", "{home}/nor/this"])
def test_a_working_directory_that_is_missing_is_made(cedar: Cedar, directory: str) -> None:
    done = cedar.over(cedar.submit(bash("pwd"), workingDirectory=directory.format(home=cedar.home)))
    assert codes(done) == ("COMPLETED", 0, 0)
    assert done["workingDirectory"].startswith(cedar.home)
    assert Path(done["workingDirectory"], f"slurm-{done['jobId']}.out").read_text() == f"{done['workingDirectory']}\n"


def test_a_working_directory_without_permission(cedar: Cedar) -> None:
    other = Path(cedar.home).with_name("sandbox-2-at-cedar")
    other.mkdir(exist_ok=True)
    around = {"workingDirectory": f"../{other.name}"}
    for fields in ({"workingDirectory": str(other)}, around, {"standardOutput": f"{other}/out"}):
        done = cedar.over(cedar.submit(bash("echo here"), **fields))
        assert (codes(done), codes(done["tasks"][0])) == (("FAILED", 0, 53), ("CANCELLED", 0, 53))
    assert list(other.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "fields", "text"),
    [
        (
            "echo hi\n",
            {},
            "This does not look like a batch script.  The first\n"
            "sbatch: error: line must start with #! followed by the path to an interpreter.\n"
            "sbatch: error: For instance: #!/bin/sh\n",
        ),
        (
            "#!/bin/bash\r\necho hi\r\n",
            {},
            "Batch script contains DOS line breaks (\\r\\n)\n"
            "sbatch: error: instead of expected UNIX line breaks (\\n).\n",
        ),
        (
            bash("true"),
            {"partition": "nope"},
            f"invalid partition specified: nope\nsbatch: error: {FAILED}Invalid partition name specified\n",
        ),
        (
            bash("true"),
            {"account": "nope"},
            f"{FAILED}Invalid account or account/partition combination specified\n",
        ),
        (bash("true"), {"reservation": "nope"}, f"{FAILED}Requested reservation is invalid\n"),
        (bash("#SBATCH -N 50"), {}, f"{FAILED}Requested node configuration is not available\n"),
        (bash("#SBATCH -d afterok:7"), {}, f"{FAILED}Job dependency problem\n"),
        (None, {"scriptPath": "/home/none.sh"}, "Unable to open file /home/none.sh\n"),
        (
            bash("#" * 5_000_000),
            {},
            f"{FAILED}Pathname of a file, directory or other parameter too long\n",
        ),
    ],
)
def test_what_sbatch_refuses(cedar: Cedar, script: str | None, fields: dict[str, Any], text: str) -> None:
    assert cedar.refused(script, **fields) == SBATCH + text


def test_an_unknown_option(cedar: Cedar) -> None:
    text = "Unexpected Slurm command response. exit_status:255 std_err:sbatch: "
    tail = '\nTry "sbatch --help" for more information\n'
    assert cedar.refused(bash("#SBATCH --bogus=1")) == f"{text}unrecognized option '--bogus=1'{tail}"
    assert cedar.refused(bash("#SBATCH -y")) == f"{text}invalid option -- 'y'{tail}"


def test_an_empty_script(cedar: Cedar) -> None:
    cedar.control.switch(firecrest_command_timeout=0.2)
    before = len(cedar.control.jobs())
    begun = time.monotonic()
    answer = cedar.post("")
    assert (answer.status_code, answer.json()["message"]) == (408, "Command execution timeout limit exceeded.")
    assert time.monotonic() - begun >= 0.2
    assert len(cedar.control.jobs()) == before


def test_a_script_at_the_site(cedar: Cedar) -> None:
    Path(cedar.home, "run.sh").write_text(bash("#SBATCH -p devel", "echo it ran"))
    job = cedar.firecrest.submit("cedar", cedar.home, script_remote_path=f"{cedar.home}/run.sh")["jobId"]
    assert (cedar.over(job)["name"], cedar.get(job)["partition"]) == ("run.sh", "devel")


def test_requests_that_are_not_well_formed(cedar: Cedar) -> None:
    answer = cedar.post(bash("true"), env={"A": 1})
    assert (answer.status_code, answer.json()["errorType"]) == (400, "validation")
    assert answer.json()["data"]["fields"] == [
        {"location": "body", "name": "job", "message": "Input should be a valid string"},
        {"location": "body", "name": "job", "message": "Input should be a valid list"},
    ]
    message = answer.json()["message"]
    assert message.startswith("2 validation errors:\n  {'type': 'string_type', 'loc': ('body', 'job', 'env', 'dict[str")
    assert message == message.lower()
    assert cedar.http.post(cedar.jobs(), json={"job": {"script": "x"}}).status_code == 400
    assert cedar.http.post(cedar.jobs(), content=b"no").status_code == 400
    answer = cedar.http.get(f"{cedar.jobs()}/7_1")
    text = "String should match pattern '^[a-zA-Z0-9]+$'"
    assert answer.json()["data"] == {"fields": [{"location": "path", "name": "job_id", "message": text}]}
    answer = cedar.http.get(cedar.jobs(), params={"time_window": "2h"})
    assert (answer.status_code, answer.json()["data"]["fields"][0]["message"]) == (
        400,
        "Input should be '1h', '8h', '24h', '3d' or '7d'",
    )
    assert cedar.http.get(cedar.jobs(), params={"name": "x" * 236}).status_code == 400
    assert cedar.http.get(cedar.jobs(), params={"allusers": "perhaps"}).status_code == 400


def test_ids_that_are_none(cedar: Cedar) -> None:
    for tail in ("", "/metadata"):
        answer = cedar.http.get(f"{cedar.jobs()}/999999999{tail}")
        assert (answer.status_code, answer.json()["message"]) == (404, "Job not found.")
    answer = cedar.http.get(f"{cedar.jobs()}/abc")
    assert (answer.status_code, answer.json()["message"]) == (500, "Error executing Slurm command.")
    assert answer.json()["causedBy"][0].endswith("sacct: fatal: Bad job/step specified: abc\n")
    with pytest.raises(UnexpectedStatusException):
        cedar.firecrest.job_info("cedar", "5,6")


def test_jobs_over_the_limit_of_their_partition_wait_for_ever(cedar: Cedar) -> None:
    job = cedar.submit(bash("#SBATCH -p devel -t 2:00:00", "true"))
    time.sleep(0.3)
    found = cedar.get(job)
    assert (codes(found), found["status"]["stateReason"]) == (("PENDING", None, None), "PartitionTimeLimit")
    cedar.firecrest.cancel_job("cedar", job)
    assert job in cedar.listed()


def test_cancel(cedar: Cedar) -> None:
    job = cedar.submit(bash("sleep 60"))
    cedar.until(job, "RUNNING")
    assert cedar.firecrest.cancel_job("cedar", job) == {}
    found = cedar.get(job)
    assert (codes(found), codes(found["tasks"][0])) == (("CANCELLED by 2001", 0, 0), ("CANCELLED", 0, 15))
    answer = cedar.http.delete(f"{cedar.jobs()}/{job}")
    start = "Unexpected Slurm command response. exit_status:{} std_err:scancel: Terminating job {}\n"
    error = "scancel: error: Kill job error on job id {}: "
    why = "Job/step already completing or completed\n"
    assert (answer.status_code, answer.json()["message"]) == (500, start.format(0, job) + error.format(job) + why)
    answer = cedar.http.delete(f"{cedar.jobs()}/999999999")
    assert answer.json()["message"].endswith("999999999: Invalid job id specified\n")
    assert cedar.http.delete(f"{cedar.jobs()}/abc").json()["message"].endswith("scancel: error: Invalid job id abc\n")


def test_jobs_that_were_never_eligible_show_only_by_their_id(cedar: Cedar) -> None:
    begin = cedar.submit(bash("#SBATCH --begin=now+1hour"))
    held = cedar.submit(bash("#SBATCH -H"))
    after = cedar.submit(bash(f"#SBATCH --dependency=afterany:{held}"))
    reasons = [cedar.get(job)["status"]["stateReason"] for job in (begin, held, after)]
    assert reasons == ["BeginTime", "JobHeldUser", "Dependency"]
    assert cedar.get(held)["priority"] == 0
    times = cedar.get(begin)["time"]
    assert 3590 < times["start"] - time.time() < 3610
    assert times["end"] == times["start"] + 3600
    assert {begin, held, after} <= set(cedar.listed())
    for job in (after, begin, held):
        cedar.firecrest.cancel_job("cedar", job)
        found = cedar.get(job)
        assert codes(found) == ("CANCELLED by 2001", 0, 0)
        assert (found["tasks"], found["nodes"], found["allocationNodes"]) == ([], "None assigned", 0)
        assert (found["time"]["start"], found["time"]["elapsed"]) == (None, 0)
    assert not {begin, held, after} & set(cedar.listed())


def test_dependencies(cedar: Cedar) -> None:
    bad = cedar.submit(bash("exit 1"))
    never = cedar.submit(bash(f"#SBATCH --dependency=afterok:{bad}"))
    killed = cedar.submit(bash(f"#SBATCH -d afterok:{bad} --kill-on-invalid-dep=yes"))
    anyway = cedar.submit(bash(f"#SBATCH -d afterany:{bad}"))
    assert codes(cedar.over(killed)) == ("CANCELLED", 0, 0)
    assert codes(cedar.over(anyway)) == ("COMPLETED", 0, 0)
    status = cedar.get(never)["status"]
    assert (status["state"], status["stateReason"]) == ("PENDING", "DependencyNeverSatisfied")


def test_lists(cedar: Cedar) -> None:
    name = f"listed-{time.time()}"
    done = cedar.submit(bash("true"), name=name, account="users")
    cedar.over(done)
    waits = cedar.submit(bash("#SBATCH --hold"), name=name)
    assert cedar.listed(name=name) == [done, waits]
    assert cedar.listed(name=name[:-1]) == []
    assert cedar.listed(name=name, account="users") == [done]
    cedar.control.age_job(cedar.inside(done), 2 * 3600)
    cedar.control.age_job(cedar.inside(waits), 30 * 86400)
    assert cedar.listed(name=name, time_window="1h") == [waits]
    assert cedar.listed(name=name, time_window="8h") == [done, waits]
    cedar.control.age_job(cedar.inside(done), 24 * 3600)
    assert cedar.listed(name=name) == [waits]
    assert cedar.listed(name=name, time_window="3d") == [done, waits]
    assert cedar.get(done)["time"]["end"] < time.time() - 90000


def test_a_pipe_in_a_jobs_name_breaks_the_lists(cedar: Cedar) -> None:
    job = cedar.submit(bash("#SBATCH -J 'a|b'"))
    fine = cedar.submit(bash("true"), name="fine")
    other = cedar.other()
    for client, query in ((cedar.http, {}), (other, {"allusers": "true"})):
        answer = client.get(cedar.jobs(), params=query)
        assert (answer.status_code, answer.json()["message"]) == (500, "Error executing Slurm command.")
        assert answer.json()["causedBy"] is None
    assert cedar.http.get(f"{cedar.jobs()}/{job}").status_code == 500
    assert fine in cedar.listed(name="fine")
    assert other.get(cedar.jobs()).status_code == 200
    assert job in cedar.listed("cedar-rest")
    assert cedar.get(job, "cedar-rest")["name"] == "a|b"
    assert cedar.http.get(f"{cedar.jobs()}/{job}/metadata").status_code == 200
    cedar.control.end_job(cedar.inside(job), "VANISHED")
    cedar.over(fine)
    cedar.control.age_job(cedar.inside(job), 8 * 86400)


def test_arrays(cedar: Cedar) -> None:
    job = cedar.submit(bash("#SBATCH --array=0-2%1", "sleep 0.3; echo $SLURM_ARRAY_TASK_ID; exit $SLURM_ARRAY_TASK_ID"))
    assert [entry["jobId"] for entry in cedar.entries(job)] == [f"{job}_[0-2%1]", job]
    cedar.until(job, "RUNNING")
    first, rest, same = cedar.entries(job)
    assert [each["jobId"] for each in (first, rest, same)] == [f"{job}_0", f"{job}_[1-2%1]", job]
    assert first["tasks"][0]["id"] == f"{job}_0.batch"
    assert (rest["status"]["stateReason"], same["status"]["stateReason"]) == ("None", "JobArrayTaskLimit")
    assert (codes(rest), codes(same)) == (("PENDING", 0, 0), ("PENDING", None, None))
    assert [(entry["jobId"], *codes(entry)) for entry in cedar.all_over(job)] == [
        (f"{job}_0", "COMPLETED", 0, 0),
        (f"{job}_1", "FAILED", 1, 0),
        (f"{job}_2", "FAILED", 2, 0),
    ]
    assert Path(cedar.home, f"slurm-{job}_1.out").read_text() == "1\n"
    metadata = cedar.firecrest.job_metadata("cedar", job)[0]
    assert (metadata["jobId"], metadata["standardOutput"]) == (job, f"{cedar.home}/slurm-{job}_2.out")
    raw = cedar.entries(job, "cedar-rest")
    assert [(each["jobId"], each["status"]["exitCode"]) for each in raw] == [
        (job, 2),
        (str(int(job) + 1), 0),
        (str(int(job) + 2), 1),
    ]


def test_an_array_is_cancelled_as_a_whole(cedar: Cedar) -> None:
    job = cedar.submit(bash("#SBATCH -a 1,3", "sleep 60"))
    cedar.firecrest.cancel_job("cedar", job)
    assert [codes(entry)[0] for entry in cedar.entries(job)] == ["CANCELLED by 2001"] * 2


def test_attach(cedar: Cedar) -> None:
    job = cedar.submit(bash("sleep 60"))
    answer = cedar.http.put(f"{cedar.jobs()}/{job}/attach", json={"command": "hostname"})
    assert (answer.status_code, "Job is pending execution" in answer.json()["message"]) == (500, True)
    cedar.until(job, "RUNNING")
    cedar.firecrest.attach_to_job("cedar", job, "echo $SLURM_JOB_ID > attached")
    assert Path(cedar.home, "attached").read_text() == f"{job}\n"
