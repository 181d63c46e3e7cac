"""What a FirecREST server's refusals mean: its own texts (version 2.5, with Slurm 24.11), row by row."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from prefect_mantik.firecrest import answers
from prefect_mantik.firecrest.answers import Meaning, meaning, said

JOBS, JOB, OPS = "/compute/daint/jobs", "/compute/daint/jobs/7", "/filesystem/daint/ops"
COMMAND = "Unexpected Slurm command response. exit_status:{} std_err:{}\n"
REMOTE = "Remote process failed with exit status:1 and error message:{}"
SLURM = "Error executing Slurm command."


def error(message: str, *causes: str) -> dict[str, Any]:
    """An error in FirecREST's own form."""
    return {"errorType": "error", "message": message, "causedBy": list(causes) or None, "data": None, "user": "ada"}


def sbatch(text: str, status: int = 1) -> dict[str, Any]:
    return error(COMMAND.format(status, f"sbatch: error: {text}"))


def scancel(text: str, status: int = 0) -> dict[str, Any]:
    return error(
        COMMAND.format(status, f"scancel: Terminating job 7\nscancel: error: Kill job error on job id 7: {text}")
    )


def slurm_api(description: str, number: int, text: str) -> dict[str, Any]:
    found = {"errors": [{"description": description, "error_number": number, "error": text}], "warnings": []}
    return error(f"Unexpected Slurm API response. status:500 message:{json.dumps(found, indent=2)}")


def remote(text: str) -> dict[str, Any]:
    return error(REMOTE.format(text))


REFUSED, NOT_THERE, NO_ACCESS = Meaning.REFUSED, Meaning.NOT_THERE, Meaning.NO_ACCESS
PASSES, UNCLEAR, UNREADABLE = Meaning.PASSES, Meaning.UNCLEAR, Meaning.UNREADABLE
PAGE = "<html><head><title>502 Bad Gateway</title></head></html>"
NO_KEY = "No SSH credentials found for user:ada"
SSHD = "Unable to open a new SSH channel."
LATE = "Command execution timeout limit exceeded."
UNHEALTHY = "The scheduler service for the requested system (daint) is unhealthy."
NO_DATABASE = COMMAND.format(
    1,
    "sacct: error: slurm_persist_conn_open_without_init: failed to open persistent connection to host:localhost:6819: "
    "Connection refused\nsacct: error: Sending PersistInit msg: Connection refused",
)

TABLE: list[tuple[str, str, int, Any, Meaning | None]] = [
    # Submit: what sbatch says is the user's to mend.
    ("POST", JOBS, 500, sbatch("This does not look like a batch script.  The first\nsbatch: error: line"), REFUSED),
    ("POST", JOBS, 500, sbatch("Batch script contains DOS line breaks (\\r\\n)"), REFUSED),
    ("POST", JOBS, 500, error(COMMAND.format(255, "sbatch: unrecognized option '--bogus=1'")), REFUSED),
    ("POST", JOBS, 500, sbatch("invalid partition specified: nope"), REFUSED),
    (
        "POST",
        JOBS,
        500,
        sbatch("Batch job submission failed: Invalid account or account/partition combination"),
        REFUSED,
    ),
    ("POST", JOBS, 500, sbatch("Batch job submission failed: Requested reservation is invalid"), REFUSED),
    ("POST", JOBS, 500, sbatch("Batch job submission failed: Requested node configuration is not available"), REFUSED),
    ("POST", JOBS, 500, sbatch("Unable to open file /users/ada/none.sh"), REFUSED),
    ("POST", JOBS, 500, sbatch("Batch job submission failed: Pathname of a file, directory too long"), REFUSED),
    ("POST", JOBS, 500, slurm_api("Batch job submission failed", 2000, "Invalid partition name specified"), REFUSED),
    ("POST", JOBS, 500, slurm_api("Batch job script empty or missing", 2009, "Job script not specified"), REFUSED),
    ("POST", "/compute/nosuch/jobs", 404, error("System not found"), REFUSED),
    # Submit: nobody knows.
    ("POST", JOBS, 408, error(LATE), UNCLEAR),
    ("POST", JOBS, 500, error("('Channel not open for sending',)"), UNCLEAR),
    ("POST", JOBS, 500, error(SLURM), UNCLEAR),
    ("POST", JOBS, 500, sbatch("Batch job submission failed: Socket timed out on send/recv operation"), UNCLEAR),
    ("POST", JOBS, 500, sbatch("Batch job submission failed: Resource temporarily unavailable"), REFUSED),
    ("POST", JOBS, 500, sbatch("Slurm temporarily unable to accept job, sleeping and retrying"), UNCLEAR),
    ("POST", JOBS, 500, sbatch("Batch job submission failed: Zero Bytes were transmitted or received"), UNCLEAR),
    # Submit: no job, and worth another try.
    ("POST", JOBS, 424, error(SSHD), PASSES),
    ("POST", JOBS, 503, error(UNHEALTHY), PASSES),
    ("POST", JOBS, 500, error("[Errno 111] Connection refused"), PASSES),
    ("POST", JOBS, 500, error("Error executing command.", SSHD), PASSES),
    (
        "POST",
        JOBS,
        500,
        sbatch("Batch job submission failed: Unable to contact slurm controller (connect failure)"),
        PASSES,
    ),
    ("POST", JOBS, 500, error(f"('{NO_KEY}',)"), NO_ACCESS),
    # Status.
    ("GET", JOB, 404, error("Job not found."), NOT_THERE),
    (
        "GET",
        "/compute/daint/jobs/abc",
        500,
        error(SLURM, COMMAND.format(1, "sacct: fatal: Bad job/step specified: abc")),
        NOT_THERE,
    ),
    ("GET", "/compute/nosuch/jobs", 404, error("System not found"), REFUSED),
    ("GET", JOB, 500, error(SLURM), UNREADABLE),
    ("GET", JOBS, 500, {"errorType": "error", "message": SLURM}, UNREADABLE),
    ("GET", JOB, 500, error(SLURM, LATE), PASSES),
    ("GET", JOB, 500, error(SLURM, NO_DATABASE), PASSES),
    ("GET", JOB, 500, error(SLURM, COMMAND.format(1, "slurm_load_jobs error: Socket timed out on send/recv")), PASSES),
    ("GET", JOB, 500, error(SLURM, SSHD), PASSES),
    ("GET", JOBS, 500, error(SLURM, NO_KEY), NO_ACCESS),
    ("GET", JOBS, 503, error(UNHEALTHY), PASSES),
    ("GET", JOB, 408, error(LATE), PASSES),
    ("GET", "/status/daint/nodes", 500, error("[Errno 111] Connection refused"), PASSES),
    ("GET", "/status/systems", 500, error("anything else"), PASSES),
    ("GET", f"{JOB}/metadata", 404, error("Job not found."), NOT_THERE),
    # Cancel.
    ("DELETE", JOB, 500, scancel("Job/step already completing or completed"), Meaning.ENDED),
    ("DELETE", JOB, 500, scancel("Invalid job id specified"), NOT_THERE),
    ("DELETE", JOB, 500, scancel("Access/permission denied", 210), REFUSED),
    ("DELETE", JOB, 500, scancel("Unable to contact slurm controller (connect failure)", 1), PASSES),
    ("DELETE", JOB, 424, error(SSHD), PASSES),
    # Files.
    ("GET", f"{OPS}/ls", 404, remote("ls: cannot access '/x': No such file or directory"), NOT_THERE),
    ("GET", f"{OPS}/stat", 404, remote("stat: cannot statx '/x': No such file or directory"), NOT_THERE),
    ("GET", f"{OPS}/view", 404, remote("dd: failed to open '/x': No such file or directory"), NOT_THERE),
    ("DELETE", f"{OPS}/rm", 404, remote("rm: cannot remove '/x': No such file or directory"), NOT_THERE),
    ("POST", f"{OPS}/upload", 404, remote("bash: line 1: /nodir/x: No such file or directory"), NOT_THERE),
    ("GET", "/filesystem/nosuch/ops/ls", 404, error("System not found"), REFUSED),
    ("GET", f"{OPS}/download", 500, remote("base64: read error: Is a directory"), REFUSED),
    ("POST", f"{OPS}/upload", 500, remote("bash: line 1: /x: Disk quota exceeded"), REFUSED),
    ("GET", f"{OPS}/ls", 500, error(f"('{NO_KEY}',)"), NO_ACCESS),
    ("GET", f"{OPS}/ls", 424, error(SSHD), PASSES),
    ("GET", f"{OPS}/ls", 503, error("The ssh service for the requested system (daint) is unhealthy."), PASSES),
    ("POST", f"{OPS}/upload", 408, error(LATE), PASSES),
    ("GET", f"{OPS}/ls", 500, error("[Errno 111] Connection refused"), PASSES),
    ("GET", f"{OPS}/ls", 500, error("('Channel not open for sending',)"), PASSES),
    # The status says it all: 400 and 413 are refused, 403 not allowed, 401 is a login.
    ("POST", f"{OPS}/mkdir", 400, remote("mkdir: cannot create directory '/x': File exists"), None),
    (
        "GET",
        f"{OPS}/ls",
        400,
        error("The provided path (/etc) does not match any of the defined filesystem paths"),
        None,
    ),
    ("GET", f"{OPS}/ls", 403, remote("ls: cannot open directory '/x': Permission denied"), None),
    ("POST", f"{OPS}/upload", 413, error("File to upload is too large."), None),
    ("POST", JOBS, 403, sbatch("Batch job submission failed: Job violates accounting/QOS policy"), None),
    ("GET", JOB, 501, error("Not implemented"), None),
    *(
        ("GET", JOBS, 401, error(text), None)
        for text in (
            "Not authenticated",
            "Access token is invalid.",
            "Access token expired",
            "Access token expires too soon (less than 30s remaining).",
            "Token's public key not found.",
        )
    ),
    # A gateway: its 404 says nothing of a job, and of the rest the status is all that is known.
    ("GET", JOB, 404, PAGE, Meaning.ELSEWHERE),
    ("GET", JOB, 404, {"detail": "Not Found"}, Meaning.ELSEWHERE),
    ("GET", JOB, 404, {"message": "no Route matched with those values"}, Meaning.ELSEWHERE),
    ("DELETE", JOB, 404, [], Meaning.ELSEWHERE),
    ("POST", JOBS, 502, PAGE, None),
    ("POST", JOBS, 503, PAGE, None),
    ("POST", JOBS, 504, "", None),
    ("GET", JOB, 503, PAGE, None),
    ("GET", JOB, 500, {"message": "boom"}, None),
    ("GET", JOB, 500, {"errorType": "other", "message": SLURM}, None),
    ("GET", JOB, 429, {"message": "API rate limit exceeded"}, None),
    # Submit: the connection ended, perhaps while sbatch ran.
    *(
        ("POST", JOBS, 424, error(text), UNCLEAR)
        for text in ("Unable to establish SSH connection.", "SSH connection Reset.", "SSH Protocol Error.")
    ),
    ("POST", JOBS, 424, error("SSH client pool capacity exceeded."), PASSES),
    *(
        ("POST", JOBS, 500, sbatch(f"Batch job submission failed: {text}"), UNCLEAR)
        for text in (
            "Unable to contact slurm controller (receive failure)",
            "Unable to contact slurm controller (shutdown failure)",
            "Message receive failure",
        )
    ),
    # What every operation shares.
    *(
        case
        for method, path in (("POST", JOBS), ("DELETE", JOB), ("GET", JOB), ("GET", f"{OPS}/ls"))
        for case in (
            (method, path, 503, error(UNHEALTHY), PASSES),
            (method, path, 500, error(SLURM, NO_KEY), NO_ACCESS),
            (method, path, 404, error("System not found"), REFUSED),
            (method, path, 404, error("There is no such thing."), NOT_THERE),
            *([] if method == "POST" else [(method, path, 424, error(SSHD), PASSES)]),
        )
    ),
]


def answered(status: int, body: Any) -> httpx.Response:
    content = {"text": body} if isinstance(body, str) else {"json": body}
    return httpx.Response(status, **content)


@pytest.mark.parametrize(("method", "path", "status", "body", "expected"), TABLE)
def test_what_an_answer_means(method: str, path: str, status: int, body: Any, expected: Meaning | None) -> None:
    assert meaning(method, path, said(answered(status, body))) is expected


ROWS = [
    pytest.param(name, row, id=f"{name}-{row[0]}-{row[1]}")
    for name in ("_SUBMIT", "_CANCEL", "_ASK", "_FILES")
    for row in getattr(answers, name)
]


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_each_row_has_a_test(monkeypatch: pytest.MonkeyPatch, name: str, row: tuple[int | None, str, Meaning]) -> None:
    """Without it something above would mean something else."""
    monkeypatch.setattr(answers, name, tuple(other for other in getattr(answers, name) if other is not row))
    assert any(meaning(case[0], case[1], said(answered(case[2], case[3]))) is not case[4] for case in TABLE)


# --- What is shown --------------------------------------------------------------------------------------------------


def test_message_and_causes_are_told() -> None:
    found = said(answered(500, error(SLURM, "one", "two")))
    assert (found.status, found.text, found.ours) == (500, f"{SLURM}\none\ntwo", True)


def test_a_validation_names_the_fields_and_not_the_servers_files() -> None:
    body = {
        "errorType": "validation",
        "message": '1 validation error:\n  file "/srv/firecrest/src/router.py", line 70',
        "causedBy": None,
        "data": {"fields": [{"location": "query", "name": "time_window", "message": "Input should be '1h'"}]},
        "user": "ada",
    }
    assert said(answered(400, body)).text == "time_window: Input should be '1h'"
    assert meaning("GET", JOBS, said(answered(400, body))) is None


@pytest.mark.parametrize("data", [None, [], {}, {"fields": None}, {"fields": ["text"]}])
def test_a_validation_without_fields_has_its_message(data: Any) -> None:
    body = {"errorType": "validation", "message": "wrong", "data": data}
    assert said(answered(400, body)).text == "wrong"


@pytest.mark.parametrize("body", [PAGE, "", {"detail": "Not Found"}, {"message": "boom"}, [], "null", "\ud7ff{"])
def test_what_is_not_firecrests_is_not_read(body: Any) -> None:
    found = said(answered(502, body))
    assert (found.ours, found.text) == (False, "")
