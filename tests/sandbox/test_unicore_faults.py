import time

import httpx
import pytest

from .rest import JOBS, UPLOAD

JOB, FILE = f"{JOBS}/{{jobId}}", "/{site}/rest/core/storages/{storageId}/files/{path}"


def test_maintenance(rest):
    rest.control.change_site("alder", maintenance=True, message="Closed until Monday.")
    submission = rest.get("")["server"]["jobSubmission"]
    assert submission == {"enabled": False, "message": "Closed until Monday."}
    answer = rest.post({})
    assert (answer.status_code, answer.json()) == (503, {"errorMessage": "Closed until Monday.", "status": 503})
    assert rest.get("/jobs") is not None
    rest.control.change_site("alder", maintenance=False)
    assert rest.post({}).status_code == 201


def test_errors_look_as_the_servers_own(rest):
    rest.control.add_fault("status", route=JOBS, status=500, method="GET")
    answer = rest.http.get("/jobs")
    assert answer.json() == {"errorMessage": "The sandbox was told to fail", "status": 500}
    rest.control.add_fault("status", route=JOBS, status=432)
    assert (rest.http.get("/jobs").status_code, rest.http.get("/jobs").status_code) == (432, 200)
    rest.control.add_fault("status", route=JOBS, status=404)
    assert rest.http.get("/jobs").content == b""


def test_faults_of_one_site_and_one_account(rest, box):
    rest.control.add_fault("status", route="/BIRCH/rest/core/jobs/{jobId}", status=500, times=None)
    rest.control.add_fault("status", route=JOBS, account="sandbox-2-at-*", status=500, times=None)
    assert rest.http.get(rest.submit()).status_code == 200
    birch = httpx.Client(base_url=box.env["MANTIK_SANDBOX_BIRCH_URL"], auth=rest.login, trust_env=False)
    assert birch.get("/jobs/x").status_code == 500
    rest.control.clear_faults()
    rest.control.add_fault("status", route="/BIRCH/*", status=502, times=None)
    assert (birch.get("/jobs").status_code, rest.http.get("/jobs").status_code) == (502, 200)


def test_counts(rest):
    rest.submit()
    rest.http.get("/jobs/")
    rest.client().get("/jobs")
    assert rest.control.count(route=JOBS, method="POST", account="sandbox-at-alder") == 1
    assert rest.control.count(route=JOBS, method="GET", account="sandbox-at-alder") == 1
    assert rest.control.count(route=JOBS, account="anonymous") == 1


def test_accepted_but_the_answer_is_lost(rest):
    rest.control.add_fault("drop_after", route=JOBS, method="POST")
    with pytest.raises(httpx.TransportError):
        rest.submit(Tags=["lost-1"])
    assert len(rest.get("/jobs", tags="lost-1")["jobs"]) == 1


def test_accepted_but_listed_late(rest):
    rest.control.switch(unicore_list_lag=1)
    job = rest.submit(Tags=["late-1"])
    assert rest.get("/jobs", tags="late-1")["jobs"] == []
    assert rest.http.get(job).status_code == 200
    time.sleep(1.1)
    assert rest.get("/jobs", tags="late-1")["jobs"] == [job]


def test_submitted_late(rest):
    rest.control.add_fault("late", route=JOBS, method="POST", seconds=0.5, status=504)
    assert rest.post(Executable="true", Tags=["later-1"]).status_code == 504
    assert rest.get("/jobs", tags="later-1")["jobs"] == []
    time.sleep(1)
    [job] = rest.get("/jobs", tags="later-1")["jobs"]
    assert rest.over(job)["status"] == "SUCCESSFUL"


def test_slow_status(rest):
    job = rest.submit()
    rest.control.add_fault("delay_before", route=JOB, seconds=0.5)
    begun = time.monotonic()
    rest.get(job)
    assert time.monotonic() - begun >= 0.5


def test_held(rest):
    job = rest.submit("for i in $(seq 100); do echo $i; sleep 0.05; done", Tags=["held"])
    rest.until(job, "RUNNING")
    job_id = job.rpartition("/")[2]
    rest.control.hold_job(job_id, reason="Held by the administrator")
    held = rest.get(job)
    assert held["status"] == "UNDEFINED"
    assert held["log"][-1].endswith("Held by the administrator")
    size = rest.get(f"{rest.files(job)}/stdout")["size"]
    time.sleep(0.3)
    assert rest.get(f"{rest.files(job)}/stdout")["size"] == size
    rest.control.release_job(job_id)
    assert rest.get(job)["status"] == "RUNNING"
    time.sleep(0.3)
    assert rest.get(f"{rest.files(job)}/stdout")["size"] > size
    rest.actions(job, "abort")
    assert rest.over(job)["statusMessage"] == "Job aborted."


def test_queued_for_ever(rest):
    rest.control.change_site("alder", queue_reason="Reason=AssocGrpJobsLimit")
    job = rest.submit()
    time.sleep(0.6)
    waiting = rest.get(job)
    assert waiting["status"] == "QUEUED"
    assert waiting["log"][-1].endswith("Reason=AssocGrpJobsLimit")
    rest.control.change_site("alder", queue_reason="")
    assert rest.over(job)["status"] == "SUCCESSFUL"


def test_one_job_queued_for_ever(rest):
    rest.control.switch(queue_delay=0.5)
    job = rest.submit()
    rest.control.hold_job(job.rpartition("/")[2], "QUEUED", "Reason=QOSMaxJobs")
    assert rest.over(rest.submit())["status"] == "SUCCESSFUL"
    assert rest.get(job)["status"] == "QUEUED"
    assert any(line.endswith("Reason=QOSMaxJobs") for line in rest.get(job)["log"])
    rest.control.release_job(job.rpartition("/")[2])
    assert rest.over(job)["status"] == "SUCCESSFUL"


def test_vanished(rest):
    job = rest.submit("sleep 60")
    rest.until(job, "RUNNING")
    rest.control.end_job(job.rpartition("/")[2], "VANISHED")
    assert (rest.http.get(job).status_code, rest.http.get(job).content) == (404, b"")
    assert job not in rest.get("/jobs")["jobs"]


@pytest.mark.parametrize("state", ["NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"])
def test_jobs_that_the_batch_system_ends(rest, state):
    job = rest.submit("sleep 60")
    rest.until(job, "RUNNING")
    rest.control.end_job(job.rpartition("/")[2], state)
    died = rest.over(job)
    assert (died["status"], "exitCode" in died) == ("FAILED", False)
    assert died["statusMessage"].startswith("Job did not complete normally on BSS")


def test_cancelled_in_the_batch_system(rest):
    job = rest.submit("sleep 60")
    rest.until(job, "RUNNING")
    rest.control.end_job(job.rpartition("/")[2], "CANCELLED")
    assert rest.over(job)["status"] == "FAILED"
    assert not [line for line in rest.get(job)["log"] if "'abort'" in line]


def test_quota(rest):
    waiting = rest.submit(haveClientStageIn="true")
    files = rest.ready(waiting)
    rest.control.change_site("alder", quota_full=True)
    answer = rest.http.put(f"{files}/x", content=b"x", headers=UPLOAD)
    assert (answer.status_code, answer.json()["status"]) == (500, 500)
    assert "Disk quota exceeded" in answer.json()["errorMessage"]
    assert "Disk quota exceeded" in rest.http.post(f"{files}/d", json={}).text
    rest.actions(waiting, "start")
    failed = rest.over(waiting)
    assert (failed["status"], "Disk quota exceeded" in failed["statusMessage"]) == ("FAILED", True)
    assert "Disk quota exceeded" in rest.over(rest.submit())["statusMessage"]
    assert rest.get(files.removesuffix("/files"))["freeSpace"] == 0


def test_session_expires_during_an_upload(rest):
    files = rest.ready(rest.submit(haveClientStageIn="true"))
    session = {"X-UNICORE-SecuritySession": rest.http.get("").headers["X-UNICORE-SecuritySession"]}
    rest.control.add_fault("status", route=FILE, method="PUT", status=432)
    answer = rest.http.put(f"{files}/x", content=b"x" * 100_000, headers=session | UPLOAD)
    assert (answer.status_code, answer.content) == (432, b"")
    assert rest.http.get(f"{files}/x").status_code == 404
    assert rest.http.put(f"{files}/x", content=b"x", headers=UPLOAD).status_code == 204


def test_what_the_control_api_tells(rest, box):
    sites = {site["name"]: site for site in box.control.call("GET", "/sites")}
    assert sites["alder"]["entitled"] is True
    with pytest.raises(httpx.HTTPStatusError):
        rest.control.unicore_token("nobody")
