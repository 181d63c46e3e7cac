import os
import time
from pathlib import Path

import pytest

from prefect_mantik.sandbox.watchdog import group_exists

from .box import log_of


def test_training(box):
    run_id = box.submit("main", mlflowParameters={"epochs": 3, "seed": 1}, name="digits")
    job = box.ended(run_id)
    assert (job["state"], job["exitCode"], job["word"]) == ("COMPLETED", 0, "SUCCESSFUL"), log_of(job)
    run = box.mlflow_run(job["mlflowRunId"])
    assert run["info"]["status"] == "FINISHED"
    assert run["info"]["run_name"].startswith("digits-")
    metrics = {metric["key"]: metric for metric in run["data"]["metrics"]}
    assert metrics.keys() == {"loss", "val_loss", "val_accuracy"}
    assert metrics["val_accuracy"]["value"] > 0.8
    assert metrics["loss"]["step"] == 2
    assert {"key": "seed", "value": "1"} in run["data"]["params"]
    listing = box.http.get(
        "/tracking/api/2.0/mlflow/artifacts/list", params={"run_id": job["mlflowRunId"], "path": "model"}
    ).json()
    assert "model/MLmodel" in [file["path"] for file in listing["files"]]
    assert "logged-models" not in str(box.control.requests())
    model = {"name": "digits", "source": f"{run['info']['artifact_uri']}/model", "run_id": job["mlflowRunId"]}
    registered = "/tracking/api/2.0/mlflow/registered-models/create"
    assert box.http.post(registered, json={"name": "digits"}).status_code == 200
    assert box.http.post("/tracking/api/2.0/mlflow/model-versions/create", json=model).status_code == 200


@pytest.mark.parametrize(("site", "word"), [("alder", "SUCCESSFUL"), ("cedar", "COMPLETED")])
def test_what_a_job_finds(box, site, word):
    config = box.config(
        site,
        Environment={
            "Modules": ["Stages/2024", "Python"],
            "Variables": {"MANTIK_RUN_KEY": "pm-1", "NUMBER": 3, "MLFLOW_TRACKING_PASSWORD": "x", "A": "two words"},
            "PreRunCommandOnComputeNode": ["echo first", "echo second"],
            "PostRunCommandOnComputeNode": ["srun -n 1 echo third", "python --version"],
        },
        Resources={"Queue": "devel", "Nodes": 1, "CPUsPerNode": 2, "Runtime": "5m"},
        Exclude=["train.py", "*.md"],
    )
    job = box.ended(box.submit(site=site, backendConfig=config, name="env"))
    log = log_of(job)
    assert (job["word"], job["runKey"], job["walltime"], job["queue"]) == (word, "pm-1", 300, "devel"), log
    lines = log.splitlines()
    output = lines[lines.index("module load Stages/2024 Python", 3) :]
    assert "the-users-own-secret" not in log
    found = dict(line.split("=", 1) for line in output if "=" in line)
    run = box.mlflow_run(job["mlflowRunId"])
    assert found["MANTIK_GIT_REF"] == "main"
    assert found["MANTIK_WORKING_DIRECTORY"] == job["directory"]
    assert found["MLFLOW_EXPERIMENT_ID"] == "1"
    assert found["MLFLOW_RUN_ID"] == job["mlflowRunId"]
    assert found["MLFLOW_RUN_NAME"] == run["info"]["run_name"]
    assert found["MLFLOW_TRACKING_URI"] == box.env["MLFLOW_TRACKING_URI"]
    assert found["MLFLOW_TRACKING_TOKEN"].count(".") == 2
    assert found["SRUN_CPUS_PER_TASK"] == "2"
    assert found["NUMBER"] == "3"
    # A Slurm script's exports have no quotes.
    assert found["A"] == ("two words" if site == "alder" else "two")
    assert "MLFLOW_TRACKING_PASSWORD" not in found
    assert "MANTIK_PASSWORD" not in found
    assert not [name for name in found if name.startswith("AWS_")]
    assert found["HOME"] != str(Path.home())
    assert found["OMP_NUM_THREADS"] == "1"
    order = [output.index(line) for line in ("module load Stages/2024 Python", "first", "second", "third")]
    assert order == sorted(order)
    assert "MLproject" in output
    assert "train.py" not in output
    directory = Path(job["directory"])
    script = next(directory.glob("UNICORE_Job_*" if site == "alder" else "script.batch"))
    assert script.stat().st_mode & 0o777 == 0o600


def test_trailing_newline_breaks_the_chain_as_on_the_platform(box):
    config = box.config(Environment={"PreRunCommandOnComputeNode": "echo a\n"})
    job = box.ended(box.submit(backendConfig=config))
    assert (job["state"], job["exitCode"]) == ("FAILED", 2) or "syntax error" in log_of(job)


def test_login_node_commands(box):
    config = box.config(
        Environment={
            "PreRunCommandOnLoginNode": "echo before > before.txt",
            "PostRunCommandOnLoginNode": ["ls > after.txt"],
        }
    )
    job = box.ended(box.submit(backendConfig=config))
    assert job["state"] == "COMPLETED"
    assert "before.txt" in (Path(job["directory"]) / "after.txt").read_text()
    config = box.config(Environment={"PreRunCommandOnLoginNode": "exit 4"})
    job = box.ended(box.submit(backendConfig=config))
    assert (job["state"], job["exitCode"], job["started"]) == ("FAILED", 4, None)


@pytest.mark.parametrize(("site", "closes"), [("alder", False), ("cedar", True)])
def test_dead_jobs_in_mlflow(box, site, closes):
    box.control.switch(close_dead_runs=closes)
    runs = {name: box.submit(name, site=site) for name in ("fail", "die")}
    for name, code in (("fail", 3), ("die", 137)):
        job = box.ended(runs[name])
        assert (job["state"], job["exitCode"]) == ("FAILED", code), log_of(job)
        assert box.settled(job["mlflowRunId"], "FAILED" if closes else "RUNNING")


def test_quiet_and_talkative_jobs(box):
    quiet, talkative = box.submit("silent", site="birch"), box.submit("chatter", site="alder")
    job = box.ended(quiet)
    assert "metrics" not in box.mlflow_run(job["mlflowRunId"])["data"]
    assert box.settled(job["mlflowRunId"], "FINISHED")
    assert Path(box.ended(talkative)["directory"], "mantik.log").stat().st_size > 1_000_000


def test_walltime(box):
    config = box.config("cedar", Resources={"Queue": "batch", "Runtime": "1s"})
    begun = time.monotonic()
    job = box.ended(box.submit("sleep", site="cedar", backendConfig=config))
    assert (job["state"], job["word"]) == ("TIMEOUT", "TIMEOUT")
    assert 1 <= time.monotonic() - begun < 6
    assert box.settled(job["mlflowRunId"], "FAILED")


def test_jobs_wait_for_nodes(box):
    whole = box.config("birch", Resources={"Queue": "batch", "Nodes": 2})
    first = box.submit("sleep", site="birch", backendConfig=whole, mlflowParameters={"seconds": 60})
    running = box.running(first)
    second = box.submit("sleep", site="birch", backendConfig=whole, mlflowParameters={"seconds": 0})
    time.sleep(0.5)
    waiting = box.job(second)
    assert (running["word"], waiting["word"], waiting["pid"]) == ("RUNNING", "QUEUED", None)
    assert box.mlflow_run(waiting["mlflowRunId"])["info"]["status"] == "SCHEDULED"
    assert box.mlflow_run(running["mlflowRunId"])["info"]["status"] == "RUNNING"
    ended = box.control.end_job(running["id"], "NODE_FAIL")
    assert (ended["state"], ended["word"]) == ("NODE_FAIL", "FAILED")
    assert box.ended(second)["state"] == "COMPLETED"
    assert not group_exists(running["pid"])


def test_cancel_reaches_the_whole_process_group(box):
    box.control.switch(all_endpoints=True)
    config = box.config("cedar", Environment={"PreRunCommandOnComputeNode": ["sleep 61 &", "trap '' TERM"]})
    run_id = box.submit("sleep", site="cedar", backendConfig=config)
    job = box.running(run_id)
    time.sleep(0.3)
    assert box.http.put(f"{box.runs_path}/{run_id}/cancel").status_code == 204
    ended = box.job(run_id)
    assert (ended["state"], ended["word"]) == ("CANCELLED", f"CANCELLED by {os.getuid()}")
    assert box.settled(job["mlflowRunId"], "KILLED")
    assert box.http.get(f"{box.runs_path}/{run_id}/status").json() == "KILLED"
    assert not group_exists(job["pid"])
    assert box.http.put(f"{box.runs_path}/{run_id}/cancel").status_code == 204


def test_queued_job_can_be_cancelled(box):
    box.control.switch(queue_delay=60)
    job = box.job(box.submit("sleep"))
    assert box.control.end_job(job["id"])["state"] == "CANCELLED"
    assert box.settled(job["mlflowRunId"], "FAILED")  # UNICORE tells it so


def test_vanished_job(box):
    job = box.running(box.submit("sleep"))
    assert box.control.end_job(job["id"], "VANISHED")["live"] is False
    assert box.mlflow_run(job["mlflowRunId"])["info"]["status"] == "RUNNING"


def test_logs_while_running(box):
    box.control.switch(all_endpoints=True)
    run_id = box.submit("sleep")
    job = box.running(run_id)
    deadline = time.monotonic() + 5
    while "Submitted bash script" not in (log := box.http.get(f"{box.runs_path}/{run_id}/logs").json()):
        assert time.monotonic() < deadline, log
    assert box.http.get(f"{box.runs_path}/{run_id}").json()["status"] == "RUNNING"
    listed = box.http.get(box.runs_path).json()
    assert listed["runs"][0]["runId"] == run_id
    assert listed["totalRecords"] >= 1
    box.control.end_job(job["id"])


def test_run_name_switch(box):
    suffixed = [box.job(box.submit("sleep", name="named", mlflowParameters={"seconds": 0})) for _ in range(2)]
    names = [box.mlflow_run(job["mlflowRunId"])["info"]["run_name"] for job in suffixed]
    assert names == ["named-1", "named-2"]
    box.control.switch(run_name="unchanged")
    job = box.job(box.submit("sleep", name="named", mlflowParameters={"seconds": 0}))
    assert box.mlflow_run(job["mlflowRunId"])["info"]["run_name"] == "named"


def test_run_appears_switch(box):
    box.control.switch(run_appears="later", run_appears_after=1)
    run_id = box.submit("sleep", name="late-comer", mlflowParameters={"seconds": 0})
    assert box.mlflow_runs_named("late-comer") == []
    assert not [job for job in box.control.jobs() if job["platformRunId"] == run_id]
    time.sleep(1.5)
    assert len(box.mlflow_runs_named("late-comer")) == 1
    assert box.ended(run_id)["state"] == "COMPLETED"
