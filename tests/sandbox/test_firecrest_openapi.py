"""Every answer of the look-alike is one that the real server's OpenAPI document allows.

The document is no part of this repository. It is looked for in `shared/reference` beside the repository, or in the
directory that the variable FIRECREST_REFERENCE names.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from .test_firecrest_files import SITE, SYSTEM, Fire

DOCUMENT = "firecrest-v2-openapi.json"
REST = f"{SYSTEM}-rest"


def reference(name: str) -> Path:
    """Find a file or directory of the reference, or skip the test."""
    beside = Path(__file__).parents[2].parent / "shared" / "reference"
    path = Path(os.environ.get("FIRECREST_REFERENCE", beside)) / name
    if not path.exists():
        pytest.skip(f"{name} is not there: not in {path.parent}; FIRECREST_REFERENCE may name another directory")
    return path


class Checker:
    """Checks answers against the document, and remembers which operations answered how."""

    def __init__(self, document: dict[str, Any], prefix: str) -> None:
        self._components = document["components"]
        self._prefix = prefix
        self._operations = {
            (method.upper(), path): operation
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
        }
        self.seen: dict[tuple[str, str], set[int]] = {key: set() for key in self._operations}

    def check(self, response: httpx.Response) -> None:
        """Check an answer of the server; what is not the server's passes."""
        path = response.request.url.path
        if not path.startswith(self._prefix):
            return
        response.read()
        key = self._find(response.request.method, path.removeprefix(self._prefix))
        responses = self._operations[key]["responses"]
        status = response.status_code
        wanted = responses.get(str(status)) or responses.get(f"{status // 100}XX")
        assert wanted is not None, f"{key} does not answer {status}: {response.text}"
        self.seen[key].add(status)
        schema = wanted.get("content", {}).get("application/json", {}).get("schema")
        if not schema:
            assert schema == {} or response.content == b"", f"{key} {status} has a body: {response.text}"
            return
        jsonschema.Draft202012Validator({**schema, "components": self._components}).validate(response.json())

    def _find(self, method: str, path: str) -> tuple[str, str]:
        for key in self._operations:
            if key[0] == method and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", key[1]), path):
                return key
        raise AssertionError(f"The document has no operation {method} {path}")


@pytest.fixture(scope="module")
def checker(one_sandbox) -> Checker:
    document = json.loads(reference(DOCUMENT).read_text())
    return Checker(document, httpx.URL(one_sandbox.env["MANTIK_SANDBOX_CEDAR_URL"]).path)


@pytest.fixture
def fire(box, checker) -> Iterator[Fire]:
    box.control.switch(firecrest_command_timeout=0.2)
    fire = Fire(box)
    fire.http.event_hooks["response"].append(checker.check)
    yield fire
    fire.http.close()
    box.control.switch(firecrest_command_timeout=5, firecrest_command_time=0, firecrest_max_sessions=0)
    box.control.change_site(SITE, unhealthy=False, accounting_down=False, entitled=True)
    for job in box.control.jobs(live=True):
        box.control.end_job(job["id"], "VANISHED")


def submit(fire: Fire, script: str, system: str = SYSTEM, **fields: Any) -> str:
    job = {"workingDirectory": fire.home, "script": f"#!/bin/bash\n{script}\n", **fields}
    answer = fire.http.post(f"/compute/{system}/jobs", json={"job": job})
    assert answer.status_code == 201, answer.text
    return answer.json()["jobId"]


def over(fire: Fire, system: str, job: str) -> None:
    deadline = time.monotonic() + 20
    while any(
        found["status"]["state"] in ("PENDING", "RUNNING")
        for found in fire.http.get(f"/compute/{system}/jobs/{job}").json()["jobs"]
    ):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def good_file_requests(fire: Fire, work: str) -> None:
    fire.post("mkdir", sourcePath=work)
    path = fire.stored(work, "file", b"line\n")
    for operation in ("ls", "stat", "head", "tail", "view", "checksum", "file", "download"):
        assert fire.get(operation, path).status_code == 200
    fire.get("ls", fire.home, showHidden=True, recursive=True, numericUid=True, dereference=True)
    fire.post("symlink", sourcePath=path, linkPath=f"{work}/link")
    fire.get("ls", work)
    fire.put("chmod", sourcePath=path, mode="600")
    fire.put("chown", sourcePath=path, owner=fire.login)
    fire.post("compress", sourcePath=work, targetPath=f"{fire.scratch}/x.tar.gz")
    fire.post("extract", sourcePath=f"{fire.scratch}/x.tar.gz", targetPath=work)
    transfer, directives = f"/filesystem/{SYSTEM}/transfer", {"transferMethod": "s3", "fileSize": 10}
    for operation in ("cp", "mv", "compress", "extract"):
        fire.http.post(f"{transfer}/{operation}", json={"sourcePath": path, "targetPath": f"{work}/{operation}"})
    for operation in ("upload", "download"):
        fire.http.post(f"{transfer}/{operation}", json={"sourcePath": path, "transferDirectives": directives})
    fire.http.delete(f"{transfer}/rm", params={"path": path})
    fire.rm(work)


def bad_file_requests(fire: Fire, system: str, path: str) -> None:
    start = f"/filesystem/{system}"
    for operation in ("ls", "stat", "head", "tail", "view", "checksum", "download"):
        fire.http.get(f"{start}/ops/{operation}", params={"path": path})
    fire.http.get(f"{start}/ops/file", params={"path": "relative"})
    body = {"sourcePath": path, "targetPath": path, "mode": "600", "linkPath": f"{path}/x", "parent": False}
    for operation in ("mkdir", "symlink", "compress", "extract"):
        fire.http.post(f"{start}/ops/{operation}", json=body)
        fire.http.post(f"{start}/ops/{operation}", json={})
    for operation in ("chmod", "chown"):
        fire.http.put(f"{start}/ops/{operation}", json=body)
    fire.http.post(f"{start}/ops/upload", params={"path": path}, files={"file": ("x", b"x")})
    fire.http.delete(f"{start}/ops/rm", params={"path": path})
    for operation in ("cp", "mv", "compress", "extract", "upload", "download"):
        fire.http.post(f"{start}/transfer/{operation}", json={})
        fire.http.post(f"{start}/transfer/{operation}", json={**body, "sourcePath": "/etc"})
    fire.http.delete(f"{start}/transfer/rm")


def ask_for_jobs_and_status(fire: Fire, system: str, job: str) -> None:
    for what in ("nodes", "partitions", "reservations", "userinfo"):
        fire.http.get(f"/status/{system}/{what}")
    fire.http.get("/status/systems")
    fire.http.get("/status/liveness/")
    fire.http.get(f"/compute/{system}/jobs", params={"allusers": True})
    fire.http.get(f"/compute/{system}/jobs", params={"time_window": "2h"})
    fire.http.get(f"/compute/{system}/jobs/{job}")
    fire.http.get(f"/compute/{system}/jobs/{job}/metadata")
    fire.http.post(f"/compute/{system}/jobs", json={"job": {"workingDirectory": fire.home, "script": "no"}})
    fire.http.post(f"/compute/{system}/jobs", json={"job": {}})
    fire.http.put(f"/compute/{system}/jobs/{job}/attach", json={"command": "true"})
    fire.http.put(f"/compute/{system}/jobs/{job}/attach", json={})
    fire.http.delete(f"/compute/{system}/jobs/{job}")


@pytest.mark.parametrize("system", [SYSTEM, REST])
def test_jobs(fire, system):
    jobs = {
        "good": submit(fire, "srun sleep 0; exit 0", system),
        "bad": submit(fire, "exit 3", system),
        "killed": submit(fire, "kill -9 $$", system),
        "array": submit(fire, "#SBATCH --array=0-2%1\nsleep 0.1", system),
        "waiting": submit(fire, "#SBATCH --begin=now+1hour\ntrue", SYSTEM),
    }
    for job in jobs.values():
        ask_for_jobs_and_status(fire, SYSTEM, job)
        ask_for_jobs_and_status(fire, REST, job)
    for kind in ("good", "bad", "killed", "array"):
        over(fire, system, jobs[kind])
    running = submit(fire, "sleep 60", system)
    for _ in range(3):
        time.sleep(0.1)
        ask_for_jobs_and_status(fire, system, running)


def test_files(fire):
    good_file_requests(fire, f"{fire.home}/openapi")
    bad_file_requests(fire, SYSTEM, f"{fire.home}/zzz")
    bad_file_requests(fire, SYSTEM, "/etc")
    bad_file_requests(fire, "nosuch", fire.home)
    fire.upload(fire.home, "empty", b"")
    fire.upload(fire.home, "big", b"x" * 6_000_000)
    fire.get("download", fire.home)


def every_request(fire: Fire) -> None:
    for system in (SYSTEM, REST):
        ask_for_jobs_and_status(fire, system, "1")
        fire.http.get(f"/compute/{system}/jobs/abc")
        fire.http.get(f"/compute/{system}/jobs/5,6")
    bad_file_requests(fire, SYSTEM, fire.home)


def test_trouble(fire):
    for trouble in ({"unhealthy": True}, {"accounting_down": True}, {"entitled": False}):
        fire.control.change_site(SITE, **trouble)
        every_request(fire)
        fire.control.change_site(SITE, unhealthy=False, accounting_down=False, entitled=True)
    fire.control.switch(firecrest_command_time=0.06, firecrest_command_timeout=0.05)
    every_request(fire)


def test_refused_logins(fire):
    for header in ("Bearer zzz", "Basic zzz", "", f"Bearer {fire.control.firecrest_token(fire.login, 10)}"):
        fire.http.headers["Authorization"] = header
        assert fire.http.get("/status/systems").status_code == 401
        every_request(fire)


def test_nothing_is_left_out(fire, checker):
    job = submit(fire, "sleep 60")
    deadline = time.monotonic() + 20
    while fire.http.get(f"/compute/{SYSTEM}/jobs/{job}").json()["jobs"][0]["status"]["state"] != "RUNNING":
        assert time.monotonic() < deadline
    ask_for_jobs_and_status(fire, SYSTEM, job)
    good_file_requests(fire, f"{fire.home}/left")
    bad_file_requests(fire, SYSTEM, f"{fire.home}/zzz")
    fire.http.headers["Authorization"] = "Bearer zzz"
    every_request(fire)
    for key, statuses in checker.seen.items():
        assert any(status < 400 for status in statuses), f"{key} never went well: {statuses}"
        assert any(status >= 400 for status in statuses) or key[1] == "/status/liveness/", f"{key} never failed"
