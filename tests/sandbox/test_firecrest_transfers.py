"""Files at the FirecREST site: the operations that the server hands to the batch system, and large files."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest

from .test_firecrest_files import SITE, SYSTEM, Fire, other, refused, work

__all__ = ["other", "work"]

OTHER = "sandbox-2-at-cedar"
TRANSFER = f"/filesystem/{SYSTEM}/transfer"
STAMP = r"\w{3} \w{3} +\d+ \d\d:\d\d:\d\d UTC \d{4}"
MEGABYTE = 1 << 20


@pytest.fixture
def fire(box):
    fire = Fire(box)
    yield fire
    fire.http.close()
    for job in box.control.jobs(live=True):
        box.control.end_job(job["id"], "VANISHED")


def ended(fire: Fire, job: dict[str, Any]) -> dict[str, Any]:
    """Wait for a transfer job and give its state."""
    deadline = time.monotonic() + 20
    while True:
        found = fire.http.get(f"/compute/{SYSTEM}/jobs/{job['jobId']}").json()["jobs"][0]
        if found["status"]["state"] not in ("PENDING", "RUNNING"):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def start(fire: Fire, operation: str, **fields: Any) -> dict[str, Any]:
    answer = fire.http.post(f"{TRANSFER}/{operation}", json=fields)
    assert answer.status_code == 201, answer.text
    return answer.json()


def logs(fire: Fire, job: dict[str, Any]) -> list[str]:
    """Give the lines of the job's log without the times."""
    return re.sub(f"(?m)^{STAMP} ", "", fire.output("view", job["logs"]["outputLog"])).splitlines()


def test_copy(fire, work):
    source = fire.stored(work, "file", b"content")
    job = start(fire, "cp", sourcePath=source, targetPath=f"{work}/copy", dereference=False)["transferJob"]
    assert job.keys() == {"jobId", "system", "workingDirectory", "logs"}
    assert (job["system"], job["workingDirectory"]) == (SYSTEM, fire.home)
    token = r"[0-9a-f-]{36}"
    assert re.fullmatch(rf"{fire.home}/\.f7t_file_handling_job_{token}\.log", job["logs"]["outputLog"])
    assert re.fullmatch(rf"{fire.home}/\.f7t_file_handling_job_error_{token}\.log", job["logs"]["errorLog"])
    found = ended(fire, job)
    assert (found["name"], found["status"]["state"], found["time"]["limit"]) == ("CopyFiles", "COMPLETED", 900)
    assert logs(fire, job) == [f"Copy Files Job (id:{job['jobId']})", "Files were successfully copied."]
    assert Path(work, "copy").read_bytes() == b"content"


async def test_blocking_calls(fire, work):
    await fire.client.mkdir(SYSTEM, f"{work}/d/e", create_parents=True)
    fire.stored(work, "d/e/file", b"content")
    await fire.client.cp(SYSTEM, f"{work}/d", f"{work}/copy")
    await fire.client.mv(SYSTEM, f"{work}/copy", f"{work}/moved")
    names = [file["name"] for file in await fire.client.list_files(SYSTEM, work, recursive=True)]
    assert names == ["d", "moved", "d/e", "d/e/file", "moved/e", "moved/e/file"]


def test_failure_is_in_the_log_alone(fire, work):
    job = start(fire, "cp", sourcePath=f"{work}/zzz", targetPath=f"{work}/copy")["transferJob"]
    status = ended(fire, job)["status"]
    assert (status["state"], status["exitCode"]) == ("COMPLETED", 0)
    assert logs(fire, job) == [f"Copy Files Job (id:{job['jobId']})"]
    assert "No such file or directory" in fire.output("view", job["logs"]["errorLog"])


def test_what_is_somebody_elses(fire, work, other):
    source = fire.stored(work, "file", b"content")
    for operation, fields in (
        ("cp", {"sourcePath": f"{other}/.bashrc", "targetPath": f"{work}/x"}),
        ("cp", {"sourcePath": source, "targetPath": f"{other}/x"}),
        ("mv", {"sourcePath": f"{other}/.bashrc", "targetPath": f"{work}/x"}),
    ):
        job = start(fire, operation, **fields)["transferJob"]
        ended(fire, job)
        assert "Permission denied" in fire.output("view", job["logs"]["errorLog"])
    assert not Path(work, "x").exists()
    assert Path(other, ".bashrc").exists()


def test_names_are_escaped_as_if_they_were_html(fire, work):
    source = fire.stored(work, "a&b", b"x")
    job = start(fire, "mv", sourcePath=source, targetPath=f"{work}/c")["transferJob"]
    ended(fire, job)
    assert "a&amp;b" in fire.output("view", job["logs"]["errorLog"])


def test_remove_and_archives(fire, work):
    assert fire.post("mkdir", sourcePath=f"{work}/in").status_code == 201
    fire.stored(work, "in/file", b"content")
    into = {"gzip": f"{work}/x.tar.gz", "none": f"{work}/y.tar"}
    jobs = [
        start(fire, "compress", source_path=f"{work}/in", target_path=target, compression=compression)["transferJob"]
        for compression, target in into.items()
    ]
    answer = fire.http.delete(f"{TRANSFER}/rm", params={"path": f"{work}/in"})
    assert answer.status_code == 200
    for job, name in zip([*jobs, answer.json()["transferJob"]], ("Compress", "Compress", "Delete"), strict=True):
        assert ended(fire, job)["name"] == f"{name}Files"
    assert fire.get("ls", f"{work}/in").status_code == 404
    job = start(fire, "extract", source_path=f"{work}/x.tar.gz", target_path=work)["transferJob"]
    assert ended(fire, job)["name"] == "ExtractFiles"
    assert logs(fire, job)[-1] == "Files were successfully extracted."
    assert Path(work, "in", "file").read_bytes() == b"content"


async def test_removal_as_a_job_after_the_command_took_too_long(fire, work):
    fire.stored(work, "file", b"x")
    fire.control.switch(firecrest_command_timeout=0.2, firecrest_command_time=0.4)
    answer = fire.rm(f"{work}/file")
    fire.control.switch(firecrest_command_timeout=5, firecrest_command_time=0)
    assert answer.status_code == 408
    assert fire.get("stat", f"{work}/file").status_code == 404


async def test_large_files_there_and_back(fire, work, tmp_path):
    content = bytes(range(256)) * 4096 * 18
    source, target = tmp_path / "big.bin", tmp_path / "back.bin"
    source.write_bytes(content)
    upload = await fire.client.upload(SYSTEM, source, work, "big.bin")
    job = upload.transfer_data["transferJob"]
    assert logs(fire, job) == [
        f"Ingress File Transfer Job (id:{job['jobId']})",
        "Waiting till file to tranfer is available...",
        "File to transfer found in S3 bucket",
        f"Downloading file to: {work}/big.bin ...",
        f"Received {len(content)} bytes",
        "File was successfully downloaded (size: 18.000MB)",
    ]
    assert fire.output("stat", f"{work}/big.bin")["mode"] == 0o100644
    download = await fire.client.download(SYSTEM, f"{work}/big.bin", target)
    assert target.read_bytes() == content
    job = download.transfer_data["transferJob"]
    lines = logs(fire, job)
    assert lines[0] == f"Upload File Job (id:{job['jobId']})"
    assert lines[1] == f"Uploading file:{work}/big.bin into 2 chunks"
    assert lines[-1] == "[INFO] Multipart file upload successfully completed"


@pytest.mark.parametrize("where", ["missing", "forbidden"])
async def test_upload_to_nowhere_is_said_to_have_succeeded(fire, work, other, tmp_path, where):
    source = tmp_path / "big.bin"
    source.write_bytes(b"x" * 2 * MEGABYTE)
    directory = f"{work}/nodir" if where == "missing" else other
    upload = await fire.client.upload(SYSTEM, source, directory, "w.bin")
    assert logs(fire, upload.transfer_data["transferJob"])[-1].startswith("File was successfully downloaded")
    assert (fire if where == "missing" else Fire(fire.box, OTHER)).get("stat", f"{directory}/w.bin").status_code == 404


def test_the_store(fire, work):
    found = start(fire, "upload", path=f"{work}/x", transfer_directives={"file_size": 9, "transfer_method": "s3"})
    directives = found["transferDirectives"]
    assert directives.keys() == {"transferMethod", "partsUploadUrls", "completeUploadUrl", "maxPartSize"}
    (url,) = directives["partsUploadUrls"]
    plain = httpx.Client(trust_env=False)
    forged = plain.put(url.replace("partNumber=1", "partNumber=2"), content=b"x")
    assert (forged.status_code, ElementTree.fromstring(forged.text)[0].text) == (403, "AccessDenied")
    assert plain.get(url).status_code == 403
    tag = plain.put(url, content=b"123456789").headers["ETag"]
    complete = directives["completeUploadUrl"]
    wrong = plain.post(complete, content="<Part><PartNumber>1</PartNumber><ETag>zzz</ETag></Part>")
    assert (wrong.status_code, ElementTree.fromstring(wrong.text)[0].text) == (400, "InvalidPart")
    assert plain.post(complete, content=b"").status_code == 400
    assert ended_not(fire, found["transferJob"])
    good = plain.post(complete, content=f"<Part><PartNumber>1</PartNumber><ETag>{tag}</ETag></Part>")
    assert good.status_code == 200
    assert plain.post(complete, content=b"").status_code == 404
    assert ended(fire, found["transferJob"])["status"]["state"] == "COMPLETED"
    assert Path(work, "x").read_bytes() == b"123456789"


def ended_not(fire: Fire, job: dict[str, Any]) -> bool:
    """Whether the job still waits for its file."""
    time.sleep(0.5)
    found = fire.http.get(f"/compute/{SYSTEM}/jobs/{job['jobId']}").json()["jobs"][0]
    return found["status"]["state"] == "RUNNING"


def test_refused_transfers(fire, work):
    for method, status in (("streamer", 400), ("wormhole", 400), ("pigeon", 400)):
        for operation, field in (("upload", "path"), ("download", "source_path")):
            directives = {"file_size": 1, "transfer_method": method}
            body = {field: f"{work}/x", "transfer_directives": directives}
            answer = fire.http.post(f"{TRANSFER}/{operation}", json=body)
            assert answer.status_code == status
            if method != "pigeon":
                refused(answer, 400, "Requested transfer method is not available.")
    missing = fire.http.post(
        f"{TRANSFER}/download", json={"source_path": f"{work}/zzz", "transfer_directives": {"transferMethod": "s3"}}
    )
    end = f"stat: cannot statx '{work}/zzz': No such file or directory"
    refused(missing, 404, f"Remote process failed with exit status:1 and error message:{end}")
    assert fire.http.post(f"{TRANSFER}/cp", json={"sourcePath": "/etc", "targetPath": "/x"}).status_code == 400


def test_full_disk(fire, work):
    source = fire.stored(work, "file", b"x")
    fire.control.change_site(SITE, quota_full=True)
    job = start(fire, "cp", sourcePath=source, targetPath=f"{work}/copy")["transferJob"]
    state = ended(fire, job)["status"]["state"]
    fire.control.change_site(SITE, quota_full=False)
    assert state == "FAILED"
    assert fire.get("view", job["logs"]["outputLog"]).status_code == 404
