import asyncio
import time
from typing import Any

import httpx
import pytest
from firecrest import ClientCredentialsAuth
from firecrest.FirecrestException import UnexpectedStatusException
from firecrest.v2 import AsyncFirecrest

from .rest import Cedar

PREFIX = "/firecrest/v2"
JOBS = f"{PREFIX}/compute/{{system}}/jobs"
JOB = f"{JOBS}/{{jobId}}"
SLEEP = "#!/bin/bash\nsleep 60\n"


def test_the_health_gate(cedar: Cedar) -> None:
    cedar.control.change_site("cedar", unhealthy=True)
    answer = cedar.http.get("/compute/cedar-rest/jobs")
    text = "The scheduler service for the requested system (cedar-rest) is unhealthy."
    assert (answer.status_code, answer.json()["message"]) == (503, text)
    assert cedar.post(SLEEP).status_code == 503
    answer = cedar.http.get("/filesystem/cedar/ops/ls", params={"path": cedar.home})
    text = "The ssh service for the requested system (cedar) is unhealthy."
    assert (answer.status_code, answer.json()["message"]) == (503, text)
    assert not cedar.firecrest.systems()[0]["servicesHealth"][0]["healthy"]
    assert len(cedar.firecrest.nodes("cedar")) == 2
    cedar.control.change_site("cedar", unhealthy=False)
    assert cedar.http.get("/compute/cedar/jobs").status_code == 200


def test_accounting_is_down(cedar: Cedar) -> None:
    job = cedar.submit(SLEEP)
    cedar.control.change_site("cedar", accounting_down=True)
    for path in (f"/compute/cedar/jobs/{job}", "/compute/cedar/jobs"):
        answer = cedar.http.get(path)
        assert (answer.status_code, answer.json()["message"]) == (500, "Error executing Slurm command.")
        assert answer.json()["causedBy"][0].endswith("sacct: error: Sending PersistInit msg: Connection refused\n")
    cedar.submit(SLEEP)


@pytest.mark.parametrize(
    ("status", "message"),
    [(500, "('Channel not open for sending',)"), (408, "Command execution timeout limit exceeded.")],
)
def test_a_submission_with_an_answer_that_says_nothing(cedar: Cedar, status: int, message: str) -> None:
    name = f"ghost-{status}"
    body = f'{{"errorType": "error", "message": "{message}", "causedBy": null, "data": null, "user": null}}'
    cedar.control.add_fault("status_after", route=JOBS, method="POST", status=status, body=body)
    answer = cedar.post(SLEEP, name=name)
    assert (answer.status_code, answer.json()["message"]) == (status, message)
    assert len(cedar.listed(name=name)) == 1


def test_a_command_that_takes_too_long(cedar: Cedar) -> None:
    cedar.control.switch(firecrest_command_time=0.3, firecrest_command_timeout=0.1)
    answer = cedar.http.get("/compute/cedar/jobs")
    assert (answer.status_code, answer.json()["causedBy"]) == (500, ["Command execution timeout limit exceeded."])
    answer = cedar.post(SLEEP, name="slow")
    assert (answer.status_code, answer.json()["message"]) == (408, "Command execution timeout limit exceeded.")
    cedar.control.switch(firecrest_command_time=0)
    assert len(cedar.listed(name="slow")) == 1


def test_accepted_but_the_answer_is_lost(cedar: Cedar) -> None:
    cedar.control.add_fault("drop_after", route=JOBS, method="POST")
    with pytest.raises(httpx.TransportError):
        cedar.post(SLEEP, name="lost")
    assert len(cedar.listed(name="lost")) == 1
    cedar.control.add_fault("drop_before", route=JOBS, method="POST")
    with pytest.raises(httpx.TransportError):
        cedar.post(SLEEP, name="never")
    assert cedar.listed(name="never") == []


def test_accepted_late(cedar: Cedar) -> None:
    cedar.control.add_fault("late", route=JOBS, method="POST", status=504, seconds=0.4)
    assert cedar.post(SLEEP, name="late").status_code == 504
    assert cedar.listed(name="late") == []
    time.sleep(0.6)
    assert len(cedar.listed(name="late")) == 1


def test_rules_by_system_account_and_job(cedar: Cedar) -> None:
    cedar.control.add_fault("status", route=f"{PREFIX}/compute/cedar-rest/jobs", status=502, times=None)
    cedar.control.add_fault("status", route=JOB, account="sandbox-2-at-*", status=500, times=None)
    answer = cedar.http.get("/compute/cedar-rest/jobs")
    assert (answer.status_code, answer.json()["errorType"], answer.json()["data"]) == (502, "error", None)
    assert cedar.http.get("/compute/cedar/jobs").status_code == 200
    job = cedar.submit(SLEEP)
    assert cedar.http.get(f"/compute/cedar/jobs/{job}").status_code == 200
    assert cedar.other().get(f"/compute/cedar/jobs/{job}").json()["message"] == "The sandbox was told to fail"


def test_a_rate_limit_of_a_gateway(cedar: Cedar) -> None:
    body = '{"message": "API rate limit exceeded"}'
    cedar.control.add_fault("status", route=JOBS, status=429, retry_after=0, body=body, times=2)
    cedar.control.reset_requests()
    cedar.firecrest.job_info("cedar")
    assert cedar.control.count(route=JOBS, account=cedar.login) == 3


def test_pages_of_a_gateway(cedar: Cedar) -> None:
    page = "<html>503 Service Unavailable</html>"
    cedar.control.add_fault("status", route=JOBS, status=503, body=page, content_type="text/html")
    with pytest.raises(UnexpectedStatusException):
        cedar.firecrest.job_info("cedar")


def test_the_limit_of_ssh_channels(cedar: Cedar) -> None:
    cedar.control.switch(firecrest_max_sessions=3, firecrest_command_time=0.3)
    before = len(cedar.control.jobs())

    async def all_at_once() -> tuple[list[Any], list[Any], list[Any]]:
        auth = ClientCredentialsAuth(cedar.login, cedar.secret, cedar.token_url, min_token_validity=40)
        client = AsyncFirecrest(cedar.url, auth)
        submits = [client.submit("cedar", cedar.home, script_str=SLEEP) for _ in range(5)]
        submitted = await asyncio.gather(*submits, return_exceptions=True)
        asked = await asyncio.gather(*(client.job_info("cedar") for _ in range(5)), return_exceptions=True)
        over_rest = await asyncio.gather(*(client.job_info("cedar-rest") for _ in range(5)))
        await client.close_session()
        return submitted, asked, over_rest

    submitted, asked, over_rest = asyncio.run(all_at_once())
    refused = [error.responses[-1] for error in submitted if isinstance(error, UnexpectedStatusException)]
    assert [answer.status_code for answer in refused] == [424, 424]
    assert refused[0].json()["message"] == "Unable to open a new SSH channel."
    assert len(cedar.control.jobs()) == before + 3
    refused = [error.responses[-1] for error in asked if isinstance(error, UnexpectedStatusException)]
    assert [answer.json()["causedBy"] for answer in refused] == [["Unable to open a new SSH channel."]] * 2
    assert len(over_rest) == 5


def test_a_running_job_is_suspended(cedar: Cedar) -> None:
    job = cedar.submit(SLEEP)
    cedar.until(job, "RUNNING")
    cedar.control.hold_job(cedar.inside(job))
    found = cedar.get(job)
    assert (found["status"]["state"], found["tasks"][0]["status"]["state"]) == ("SUSPENDED", "SUSPENDED")
    cedar.control.release_job(cedar.inside(job))
    assert cedar.get(job)["status"]["state"] == "RUNNING"


def test_a_waiting_job_is_held_for_any_reason(cedar: Cedar) -> None:
    job = cedar.submit("#!/bin/bash\n#SBATCH --hold\ntrue\n")
    assert cedar.get(job)["status"]["stateReason"] == "JobHeldUser"
    cedar.control.hold_job(cedar.inside(job), "QUEUED", "AssocGrpCPUMinutesLimit")
    assert cedar.get(job)["status"]["stateReason"] == "AssocGrpCPUMinutesLimit"
    cedar.control.release_job(cedar.inside(job))
    assert cedar.over(job)["status"]["state"] == "COMPLETED"


def test_the_queue_stands_still(cedar: Cedar) -> None:
    cedar.control.change_site("cedar", queue_reason="PartitionDown")
    job = cedar.submit(SLEEP)
    assert cedar.when(job, lambda status: status["stateReason"] == "PartitionDown")["status"]["state"] == "PENDING"


def test_jobs_wait_for_nodes(cedar: Cedar) -> None:
    running = cedar.submit("#!/bin/bash\n#SBATCH -N 2\nsleep 60\n")
    cedar.until(running, "RUNNING")
    first, second = (cedar.submit(SLEEP) for _ in range(2))
    found = cedar.when(first, lambda status: status["stateReason"] == "Resources")
    assert cedar.when(second, lambda status: status["stateReason"] == "Priority")["time"]["start"] is None
    assert found["time"]["start"] == cedar.get(running)["time"]["start"] + 3600


@pytest.mark.parametrize(
    ("state", "word", "codes"),
    [
        ("PREEMPTED", "PREEMPTED", (0, 0)),
        ("OUT_OF_MEMORY", "OUT_OF_MEMORY", (0, 125)),
        ("NODE_FAIL", "NODE_FAIL", (1, 0)),
        ("CANCELLED", "CANCELLED by 0", (0, 0)),
    ],
)
def test_other_ends(cedar: Cedar, state: str, word: str, codes: Any) -> None:
    job = cedar.submit(SLEEP)
    cedar.until(job, "RUNNING")
    cedar.control.end_job(cedar.inside(job), state)
    status = cedar.get(job)["status"]
    assert (status["state"], (status["exitCode"], status["interruptSignal"])) == (word, codes)


def test_a_full_disk(cedar: Cedar) -> None:
    cedar.control.change_site("cedar", quota_full=True)
    status = cedar.over(cedar.submit(SLEEP))["status"]
    assert (status["state"], status["exitCode"], status["interruptSignal"]) == ("FAILED", 0, 53)


def test_a_job_that_slurm_has_forgotten(cedar: Cedar) -> None:
    job = cedar.submit(SLEEP)
    cedar.control.end_job(cedar.inside(job), "VANISHED")
    assert cedar.http.get(f"/compute/cedar/jobs/{job}").status_code == 404
    assert job not in cedar.listed()


def test_requests_are_counted_by_route(cedar: Cedar) -> None:
    cedar.control.reset_requests()
    cedar.http.get("/COMPUTE/Cedar/jobs/1")
    assert cedar.control.count(route=JOB, method="GET", account=cedar.login) == 1
