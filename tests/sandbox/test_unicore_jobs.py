import re
import time
from pathlib import Path

import pytest

from .rest import OCTETS, UPLOAD, Rest


def walk(rest, job):
    """All statuses a job shows, one after the other."""
    seen = []
    deadline = time.monotonic() + 20
    while not seen or seen[-1] not in ("SUCCESSFUL", "FAILED"):
        assert time.monotonic() < deadline, seen
        status = rest.get(job, fields="status")["status"]
        if status not in seen[-1:]:
            seen.append(status)
    return seen


def test_a_job_from_end_to_end(rest):
    answer = rest.post(
        Executable="cat run.sh single.txt; echo err >&2; sleep 0.3",
        Name="my job",
        Tags=["alpha", "beta"],
        Imports=[{"To": "run.sh", "Data": ["one", "two"]}, {"From": "inline://x", "To": "single.txt", "Data": "end"}],
        Resources={"Queue": "devel", "Nodes": "1", "Runtime": "5min"},
        Unknown="ignored",
    )
    assert (answer.status_code, answer.content) == (201, b"")
    job = answer.headers["Location"]
    assert job.startswith(f"{rest.url}/jobs/")
    statuses = ["READY", "STAGINGIN", "READY", "QUEUED", "RUNNING", "STAGINGOUT", "SUCCESSFUL"]
    assert walk(rest, job) == statuses
    done = rest.get(job)
    assert (done["name"], done["jobType"], done["queue"], done["statusMessage"]) == ("my job", "BATCH", "devel", "")
    assert (done["exitCode"], done["owner"], done["tags"]) == ("0", "CN=sandbox,O=Sandbox", ["alpha", "beta"])
    assert re.fullmatch(r"\d+", done["batchSystemID"])
    assert done["consumedTime"]["main"] == "0"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+0000", done["submissionTime"])
    assert re.fullmatch(r"\w{3} \w{3} \d\d \d\d:\d\d:\d\d UTC \d{4}: Created with type 'JSON'", done["log"][0])
    assert [line for line in done["log"] if "Requesting resources: [Queue=devel, Nodes=1, Runtime=300]" in line]
    assert [line for line in done["log"] if line.endswith("Exit code 0")]
    assert rest.text(job, "stdout") == "one\ntwo\nend"
    assert rest.text(job, "stderr") == "err\n"
    names = set(rest.get(rest.files(job))["content"])
    assert {"/run.sh", "/stdout", "/stderr", "/UNICORE_SCRIPT_EXIT_CODE", "/UNICORE_SCRIPT_PID"} < names
    assert {re.sub(r"\d+$", "N", name) for name in names} > {"/UNICORE_Job_N", "/bss_submit_N"}
    submitted = rest.get(f"{job}/submitted")
    assert [item["Data"] for item in submitted["Imports"]] == ["n/a", "n/a"]
    assert submitted["Executable"].startswith("cat run.sh")
    assert rest.get(f"{job}/details")["Partition"] == "devel"


def test_fields(rest):
    job = rest.submit()
    rest.over(job)
    assert rest.get(job, fields="status,statusMessage exitCode,nonsense") == {
        "status": "SUCCESSFUL",
        "statusMessage": "",
        "exitCode": "0",
    }
    assert rest.get(job).keys() - rest.get(job, fields="!log,!_links").keys() == {"log", "_links"}


def test_nothing_to_do(rest):
    done = rest.over(rest.post({}).headers["Location"])
    assert (done["status"], done["name"], done["queue"], done["jobType"]) == ("SUCCESSFUL", "N/A", "N/A", "n/a")
    assert "exitCode" not in done


def test_exit_codes(rest):
    failed = rest.run("bash -c 'echo out; exit 3'")
    assert (failed["status"], failed["exitCode"], failed["stdout"]) == ("FAILED", "3", "out\n")
    assert failed["statusMessage"].startswith("User application exited with non-zero exit code: <3>. More information")
    ignored = rest.run("(exit 3)", IgnoreNonZeroExitCode="true")
    assert (ignored["status"], ignored["exitCode"]) == ("SUCCESSFUL", "3")
    # The batch system's script ends before it can write the code down.
    lost = rest.run("exit 4")
    assert (lost["status"], "exitCode" in lost) == ("FAILED", False)
    assert lost["statusMessage"].startswith("Job did not complete normally on BSS")


def test_stage_in_by_the_client(rest):
    job = rest.submit("cat in.txt", haveClientStageIn="true")
    early = rest.http.put(f"{rest.files(job)}/in.txt", content=b"x", headers=UPLOAD)
    assert (early.status_code, "NullPointerException" in early.text) == (500, True)
    files = rest.ready(job)
    time.sleep(0.3)
    waiting = rest.get(job)
    assert (waiting["status"], waiting["queue"], waiting["batchSystemID"]) == ("READY", "N/A", "N/A")
    assert rest.text(job, "stdout") is None
    assert rest.http.put(f"{files}/in.txt", content=b"hello", headers=UPLOAD).status_code == 204
    started = rest.actions(job, "start")
    assert (started.status_code, started.content) == (204, b"")
    assert rest.over(job)["status"] == "SUCCESSFUL"
    assert rest.text(job, "stdout") == "hello"
    assert rest.actions(job, "start").status_code == 204, "no complaint when it is too late"
    boolean = rest.submit(haveClientStageIn=True)
    rest.ready(boolean)
    time.sleep(0.3)
    assert rest.get(boolean)["status"] == "READY"


@pytest.mark.parametrize("when", ["at once", "waiting for the client", "queued", "running"])
def test_abort(rest, when):
    if when == "queued":
        rest.control.switch(queue_delay=60)
    job = rest.submit("sleep 60", haveClientStageIn="true" if when == "waiting for the client" else "false")
    if when != "at once":
        rest.ready(job)
    if when in ("queued", "running"):
        rest.until(job, when.upper())
    assert rest.actions(job, "abort").status_code == 204
    aborted = rest.over(job)
    assert (aborted["status"], aborted["statusMessage"]) == ("FAILED", "Job aborted.")
    assert "exitCode" not in aborted
    assert aborted["log"][-1].endswith("Got 'abort' request.")
    assert rest.actions(job, "abort").status_code == 204
    assert rest.get(job)["status"] == "FAILED"


def test_no_such_action(rest):
    job = rest.submit()
    assert rest.actions(job, "nonsense").status_code == 404
    assert rest.actions(f"{rest.url}/jobs/nonsense", "abort").status_code == 404
    into = rest.http.post(job, json={})
    assert (into.status_code, "not an allocation" in into.text) == (500, True)


def test_delete(rest):
    job = rest.submit("sleep 60")
    running = rest.until(job, "RUNNING")
    directory = next(
        Path(found["directory"]) for found in rest.control.jobs() if str(found["number"]) == running["batchSystemID"]
    )
    assert directory.is_dir()
    answer = rest.http.delete(job)
    assert (answer.status_code, answer.content) == (204, b"")
    assert not directory.exists()
    for url in (job, rest.files(job), rest.files(job).removesuffix("/files")):
        gone = rest.http.get(url)
        assert (gone.status_code, gone.content) == (404, b"")
    assert rest.http.delete(job).status_code == 404
    assert job not in rest.get("/jobs")["jobs"]


def test_restart(rest):
    job = rest.submit("echo run >> runs")
    rest.over(job)
    assert rest.actions(job, "restart").status_code == 204
    time.sleep(0.1)
    rest.over(job)
    assert rest.text(job, "runs") == "run\nrun\n"


def test_properties_can_be_set(rest):
    job = rest.submit(Tags=["old"])
    answer = rest.http.put(job, json={"tags": ["new"], "terminationTime": "2099-01-01T00:00:00+0000"})
    assert answer.json() == {"tags": "OK", "terminationTime": "OK"}
    assert (rest.get(job)["tags"], rest.get(job)["terminationTime"]) == (["new"], "2099-01-01T00:00:00+0000")
    assert rest.http.put(job, json={"terminationTime": "soon"}).json()["terminationTime"].startswith("FAILED")
    assert rest.http.put(job, json={"terminationTime": "2020-01-01T00:00:00+0000"}).status_code == 200
    assert rest.http.get(job).status_code == 404


def test_lifetime(rest):
    rest.control.switch(unicore_job_lifetime=0.5)
    job = rest.submit()
    assert rest.http.get(job).status_code == 200
    time.sleep(0.6)
    assert rest.http.get(job).status_code == 404


def test_list(rest):
    jobs = [rest.submit(Tags=["list-1", f"n{number}"]) for number in range(5)][::-1]
    page = rest.get("/jobs", tags="list-1", num="2", offset="1")
    assert page["jobs"] == jobs[1:3]
    links = {name: link["href"].partition("?")[2] for name, link in page["_links"].items()}
    assert links == {"self": "offset=1&num=2", "next": "offset=3&num=2", "previous": "offset=0&num=2"}
    for query, found in {
        "list-1,n1": 1,
        "list-1 n1": 1,
        "list-1+n1": 1,
        "LIST-1": 0,
        "list": 0,
        "n0,n1": 0,
        "list_1": 5,
        "list%251": 5,
    }.items():
        assert len(rest.get("/jobs", tags=query)["jobs"]) == found, query
    assert rest.http.get("/jobs", params={"tags": "%"}).status_code == 500


def test_both_spellings_of_tags(rest):
    job = rest.submit(tags=["lower"], Tags=["upper"])
    assert rest.get(job)["tags"] == ["upper"]
    assert rest.get(rest.submit(tags=["lower"]))["tags"] == ["lower"]


def test_other_peoples_jobs(rest, box):
    job = rest.submit("echo secret")
    rest.over(job)
    access = rest.control.unicore_token("sandbox-2")
    with rest.client(headers={"Authorization": f"Bearer {access}"}) as other:
        assert other.get("").json()["client"]["xlogin"]["UID"] == "sandbox-2-at-alder"
        assert other.get("/jobs").json()["jobs"] == []
        for url in (job, f"{rest.files(job)}/stdout", rest.files(job).removesuffix("/files")):
            assert (other.get(url).status_code, other.get(url).content) == (403, b"")
        assert other.delete(job).status_code == 403
        assert other.post(f"{job}/actions/abort", json={}).status_code == 403


def test_jobs_of_the_platform(rest, box):
    run_id = box.submit("show", name="by-the-platform")
    job = box.ended(run_id)
    url = f"{rest.url}/jobs/{job['id']}"
    assert url in rest.get("/jobs")["jobs"]
    seen = rest.over(url)
    assert (seen["status"], seen["exitCode"], seen["queue"]) == ("SUCCESSFUL", "0", "batch")
    submitted = rest.get(f"{url}/submitted")
    assert submitted["Stdout"] == "mantik.log"
    assert submitted["Environment"]["MANTIK_WORKING_DIRECTORY"] == "$UC_WORKING_DIRECTORY"
    assert "Submitted bash script" in rest.text(url, "mantik.log")
    with Rest(box, "birch") as birch:
        assert birch.http.get(url.replace("ALDER", "BIRCH")).status_code == 404


def test_jobs_of_both_roads_share_the_nodes(rest, box):
    job = rest.submit("sleep 60", Resources={"Nodes": 2})
    rest.until(job, "RUNNING")
    run_id = box.submit("sleep", mlflowParameters={"seconds": 0})
    time.sleep(0.5)
    assert box.job(run_id)["word"] == "QUEUED"
    rest.actions(job, "abort")
    assert box.ended(run_id)["state"] == "COMPLETED"


def test_the_run_key_is_seen(rest):
    rest.over(rest.submit(Environment={"MANTIK_RUN_KEY": "by-rest"}))
    [job] = rest.control.jobs(run_key="by-rest")
    assert (job["site"], job["owner"], job["platformRunId"]) == ("alder", "sandbox-at-alder", None)


def test_status_comes_late(rest):
    rest.control.switch(unicore_status_lag=1.5)
    job = rest.submit("true")
    rest.control.call("GET", "/jobs")
    time.sleep(1)
    assert rest.control.jobs()[-1]["state"] == "COMPLETED"
    late = rest.get(job)
    assert (late["status"], "exitCode" in late) == ("READY", False)
    assert not [line for line in late["log"] if "Exit code" in line]
    assert rest.over(job)["exitCode"] == "0"


def test_abort_does_not_wait_for_the_processes(rest):
    job = rest.submit(
        "run.sh", Imports=[{"To": "run.sh", "Data": ["#!/bin/bash", "trap '' TERM", "echo on; sleep 60"]}]
    )
    rest.until(job, "RUNNING")
    while not rest.text(job, "stdout"):
        time.sleep(0.05)
    begun = time.monotonic()
    rest.actions(job, "abort")
    assert rest.get(job)["status"] == "FAILED"
    assert time.monotonic() - begun < 0.4
    assert rest.control.jobs()[-1]["live"] is True
    rest.actions(job, "abort")
    assert len([line for line in rest.get(job)["log"] if "'abort'" in line]) == 2


def test_action_needs_json(rest):
    job = rest.submit()
    assert rest.http.post(f"{job}/actions/abort").status_code == 415
    assert rest.http.post(f"{job}/actions/abort", headers={"Content-Type": "application/json"}).status_code == 204
    assert rest.http.get(f"{job}/").status_code == 200


def test_directory_of_a_job_that_was_refused(rest):
    job = rest.submit(Resources={"Runtime": "soon"})
    rest.over(job)
    assert rest.get(rest.files(job).removesuffix("/files"))["resourceStatus"] == "ERROR"
    file = rest.http.get(f"{rest.files(job)}/stdout", headers=OCTETS)
    assert (file.status_code, "Error downloading from '/stdout'" in file.text) == (500, True)
