"""What the FirecREST client makes of servers that a sandbox is not: each test scripts one of its own."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest
import respx

from prefect_mantik import FirecrestCredentials
from prefect_mantik.errors import (
    ConfigurationError,
    LoginRefused,
    NotFound,
    NotSupported,
    RequestFailed,
    ServiceUnavailable,
)
from prefect_mantik.firecrest import FileEntry, FirecrestClient, Job, System, login
from prefect_mantik.firecrest.pyfirecrest_client import TIMEOUT
from prefect_mantik.firecrest.requests import Unreadable
from prefect_mantik.loop import MAX_CALLS_IN_FLIGHT, VERIFIED, acall, tls_context
from tests.scripted_firecrest import (
    API,
    JOB,
    JOBS,
    OPS,
    PAGE,
    SECRET,
    TOKEN,
    TOKEN_URL,
    Pauses,
    Reply,
    Site,
    a_job,
    a_system,
    assert_no_secret,
    broken,
    new_client,
    refusal,
    repeats_at_once,
    reply,
    scripted,
    told_by,
)


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    return repeats_at_once(monkeypatch)


@pytest.fixture
def site() -> Iterator[Site]:
    with scripted() as made:
        yield made


# --- Our pool -------------------------------------------------------------------------------------------------------

FIELDS = {"name": "pm-1", "env": {"PATH": "/bin"}}
ENTRY = {"name": "a", "type": "-", "size": "3", "permissions": "rw", "lastModified": "2026-01-01T00:00:00"}
USER = {"user": {"id": "1", "name": "ada"}, "groups": [], "accounts": [{"id": "1", "name": "s1"}]}

Operation = Callable[[FirecrestClient], Awaitable[Any]]
OPERATIONS: dict[str, tuple[Operation, str, str, int, Any, Any]] = {
    "about": (lambda c: c.about(), "GET", "/status/systems", 200, {"systems": [a_system()]}, System(name="daint")),
    "log_in": (lambda c: c.log_in(), "GET", "/status/systems", 200, {"systems": [a_system()]}, System(name="daint")),
    "partitions": (
        lambda c: c.partitions(),
        "GET",
        "/status/daint/partitions",
        200,
        {"partitions": [{"name": "normal"}, {"name": "debug"}]},
        ["normal", "debug"],
    ),
    "user": (lambda c: c.user(), "GET", "/status/daint/userinfo", 200, USER, ("ada", ["s1"])),
    "jobs": (lambda c: c.jobs(), "GET", JOBS, 200, {"jobs": [a_job()]}, [Job.model_validate(a_job())]),
    "job": (lambda c: c.job("7"), "GET", JOB, 200, {"jobs": [a_job()]}, Job.model_validate(a_job())),
    "submit": (lambda c: c.submit("x", "/w"), "POST", JOBS, 201, {"jobId": 7}, "7"),
    "submit with fields": (lambda c: c.submit("x", "/w", FIELDS), "POST", JOBS, 201, {"jobId": "7"}, "7"),
    "cancel": (lambda c: c.cancel("7"), "DELETE", JOB, 204, None, None),
    "output_path": (
        lambda c: c.output_path("7"),
        "GET",
        f"{JOB}/metadata",
        200,
        {"jobs": [{"jobId": "7", "standardOutput": "/w/mantik.log"}]},
        "/w/mantik.log",
    ),
    "list": (lambda c: c.list("/w"), "GET", f"{OPS}/ls", 200, {"output": [ENTRY]}, [FileEntry.model_validate(ENTRY)]),
    "stat": (lambda c: c.stat("/w"), "GET", f"{OPS}/stat", 200, {"output": {"size": 3}}, {"size": 3}),
    "mkdir": (lambda c: c.mkdir("/w"), "POST", f"{OPS}/mkdir", 201, {"output": {}}, None),
    "chmod": (lambda c: c.chmod("/w", "700"), "PUT", f"{OPS}/chmod", 200, {"output": {}}, None),
    "upload": (lambda c: c.upload("/w", "a", b"abc"), "POST", f"{OPS}/upload", 204, None, None),
    "download": (lambda c: c.download("/w/a"), "GET", f"{OPS}/download", 200, b"\x00\xff", b"\x00\xff"),
    "tail": (lambda c: c.tail("/w/a", 2), "GET", f"{OPS}/tail", 200, {"output": {"content": "abc"}}, "abc"),
    "view": (lambda c: c.view("/w/a", 2, 3), "GET", f"{OPS}/view", 200, {"output": "abc"}, "abc"),
    "checksum": (lambda c: c.checksum("/a"), "GET", f"{OPS}/checksum", 200, {"output": {"checksum": "f0"}}, "f0"),
    "remove": (lambda c: c.remove("/w/a"), "DELETE", f"{OPS}/rm", 204, None, None),
}
SUBMITS = ["submit", "submit with fields"]
OTHERS = [name for name in OPERATIONS if name not in SUBMITS]


def good(name: str) -> Reply:
    """What the server answers to an operation."""
    _, _, _, status, body, _ = OPERATIONS[name]
    if isinstance(body, bytes):
        return reply(status, content=body)
    return reply(status) if body is None else reply(status, json=body)


def serve(site: Site, name: str, *replies: Reply) -> respx.Route:
    """Answer an operation's requests."""
    _, method, path, *_ = OPERATIONS[name]
    return site.on(method, path, *replies or (good(name),))


async def done(client: FirecrestClient, name: str) -> Any:
    """Do an operation on the background loop."""
    operation = OPERATIONS[name][0]

    async def run() -> Any:
        return await operation(client)

    return await acall(run)


class NoSession:
    """pyfirecrest's own HTTP client, which must not be used: it knows no limits."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"pyfirecrest went its own way: {name}")


@pytest.mark.parametrize("name", OPERATIONS)
async def test_every_operation_goes_over_our_pool(site: Site, name: str) -> None:
    """Our four request methods are protected ones of pyfirecrest's: a version that calls others is told here."""
    route, client = serve(site, name), site.client()
    for requests in (client._soon, client._patient, client._late):
        requests._session = NoSession()  # type: ignore[assignment]
    assert await done(client, name) == OPERATIONS[name][-1]
    (call,) = route.calls
    assert call.request.headers["User-Agent"] == "prefect-mantik"
    assert call.request.headers["Authorization"] == f"Bearer {TOKEN}-1"


def test_every_operation_is_among_them() -> None:
    names = {name for name, value in vars(FirecrestClient).items() if inspect.iscoroutinefunction(value)}
    assert {name for name in names if name[0] != "_"} == {name.partition(" ")[0] for name in OPERATIONS}


QUERIES: dict[str, dict[str, str]] = {
    "jobs": {"allusers": "false", "time_window": "24h"},
    "job": {"allusers": "false"},
    "list": {
        "path": "/w",
        "showHidden": "true",
        "recursive": "false",
        "numericUid": "false",
        "dereference": "false",
    },
    "stat": {"path": "/w", "dereference": "true"},
    "upload": {"path": "/w"},
    "download": {"path": "/w/a"},
    "tail": {"path": "/w/a", "bytes": "3", "skipHeading": "true"},
    "view": {"path": "/w/a", "offset": "2", "size": "3"},
    "remove": {"path": "/w/a"},
    "cancel": {},
}


@pytest.mark.parametrize("name", QUERIES)
async def test_queries_are_those_of_the_api(site: Site, name: str) -> None:
    route = serve(site, name)
    await done(site.client(), name)
    assert dict(route.calls.last.request.url.params) == QUERIES[name]


async def test_jobs_are_asked_for_by_name_and_window(site: Site) -> None:
    route = serve(site, "jobs")
    await acall(site.client().jobs, "7d", name="pm-1")
    sent = dict(route.calls.last.request.url.params)
    assert sent == {"allusers": "false", "name": "pm-1", "time_window": "7d"}


BODIES: dict[str, Any] = {
    "submit": {"job": {"workingDirectory": "/w", "script": "x"}},
    "submit with fields": {"job": {**FIELDS, "workingDirectory": "/w", "script": "x"}},
    "mkdir": {"sourcePath": "/w", "parent": True},
    "chmod": {"path": "/w", "mode": "700"},
}


@pytest.mark.parametrize("name", BODIES)
async def test_bodies_are_exactly_these(site: Site, name: str) -> None:
    route = serve(site, name)
    await done(site.client(), name)
    assert json.loads(route.calls.last.request.content) == BODIES[name]


async def test_an_upload_is_one_part_of_a_form(site: Site) -> None:
    route = serve(site, "upload")
    await done(site.client(), "upload")
    sent = route.calls.last.request
    assert sent.headers["Content-Type"].startswith("multipart/form-data")
    assert b'name="file"; filename="a"' in sent.content
    assert sent.content.count(b"Content-Disposition") == 1


async def test_at_most_four_calls_are_in_flight(site: Site) -> None:
    now, most, gate = 0, 0, asyncio.Event()

    async def answer(_: httpx.Request) -> httpx.Response:
        nonlocal now, most
        now += 1
        most = max(now, most)
        if now == MAX_CALLS_IN_FLIGHT:
            gate.set()
        await gate.wait()
        for _step in range(20):
            await asyncio.sleep(0)
        now -= 1
        return httpx.Response(200, json={"jobs": [a_job()]})

    site.router.get(url__startswith=f"{API}{JOBS}").mock(side_effect=answer)
    client = site.client()
    await asyncio.gather(*(acall(call) for _ in range(10) for call in (client.jobs, lambda: client.job("7"))))
    assert most == MAX_CALLS_IN_FLIGHT == 4


# --- Repeats --------------------------------------------------------------------------------------------------------

SLOW_DOWN = reply(429, headers={"Retry-After": "7"}, json={"message": "API rate limit exceeded"})
GATE = refusal(503, "The scheduler service for the requested system (daint) is unhealthy.")
NO_CHANNEL = refusal(424, "Unable to open a new SSH channel.")
LATE = refusal(408, "Command execution timeout limit exceeded.")
NOT_DONE = {
    "429": SLOW_DOWN,
    "the health gate": GATE,
    "no channel": NO_CHANNEL,
    "the login node is down": refusal(500, "[Errno 111] Connection refused"),
    "no connection": broken(httpx.ConnectError),
    "no connection in time": broken(httpx.ConnectTimeout),
}
PERHAPS_DONE = {
    "500": refusal(500, "('Channel not open for sending',)"),
    "408": LATE,
    "502": reply(502, text=PAGE),
    "503 of a gateway": reply(503, text=PAGE),
    "504": reply(504),
    "a broken connection": broken(httpx.ReadError),
    "a garbled answer": broken(httpx.RemoteProtocolError),
    "no answer in time": broken(httpx.ReadTimeout),
}


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"RateLimit-Reset": "3"}, 3),
        ({"Retry-After": "5", "RateLimit-Reset": "90"}, 5),
        ({"Retry-After": "Thu, 01 Jan 2026 00:00:09 GMT", "Date": "Thu, 01 Jan 2026 00:00:00 GMT"}, 9),
    ],
)
@pytest.mark.parametrize("name", ["jobs", *SUBMITS])
async def test_who_asks_to_slow_down_is_obeyed(
    site: Site, pauses: Pauses, name: str, headers: dict[str, str], seconds: float
) -> None:
    route = serve(site, name, reply(429, headers=headers), good(name))
    assert await done(site.client(), name) == OPERATIONS[name][-1]
    (pause,) = pauses
    assert seconds <= pause <= seconds + 1
    assert route.call_count == 2


async def test_what_is_asked_again_anyway_has_less_patience(site: Site, pauses: Pauses) -> None:
    """A health gate may be closed for two minutes."""
    serve(site, "jobs", reply(429, headers={"Retry-After": "125"}), good("jobs"))
    client = site.client()
    assert await acall(client.jobs, patient=True) != []
    assert len(pauses) == 1
    serve(site, "jobs", reply(429, headers={"Retry-After": "125"}))
    with pytest.raises(ServiceUnavailable, match="asks to slow down"):
        await acall(client.jobs)
    assert len(pauses) == 1


@pytest.mark.parametrize("answer", NOT_DONE.values(), ids=NOT_DONE)
@pytest.mark.parametrize("name", SUBMITS)
async def test_a_submit_that_was_not_done_is_repeated(site: Site, name: str, answer: Reply) -> None:
    route = serve(site, name, answer, answer, good(name))
    assert await done(site.client(), name) == "7"
    assert route.call_count == 3
    route = serve(site, name, answer)
    with pytest.raises(ServiceUnavailable) as caught:
        await done(site.client(), name)
    assert not caught.value.sent


@pytest.mark.parametrize("answer", PERHAPS_DONE.values(), ids=PERHAPS_DONE)
@pytest.mark.parametrize("name", SUBMITS)
async def test_a_submit_that_may_have_been_done_is_left_open(site: Site, name: str, answer: Reply) -> None:
    route = serve(site, name, answer)
    with pytest.raises(ServiceUnavailable) as caught:
        await done(site.client(), name)
    assert caught.value.sent
    assert route.call_count == 1
    assert_no_secret(told_by(caught.value, with_locals=False))


@pytest.mark.parametrize("answer", [*NOT_DONE.values(), *PERHAPS_DONE.values()], ids=[*NOT_DONE, *PERHAPS_DONE])
@pytest.mark.parametrize("name", OTHERS)
async def test_all_else_is_repeated(site: Site, name: str, answer: Reply) -> None:
    route = serve(site, name, answer, answer, good(name))
    assert await done(site.client(), name) == OPERATIONS[name][-1]
    assert route.call_count == 3


# --- Refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUBMITS)
async def test_what_sbatch_refuses_comes_with_its_words(site: Site, name: str) -> None:
    words = "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified"
    route = serve(site, name, refusal(500, f"Unexpected Slurm command response. exit_status:1 std_err:{words}\n"))
    with pytest.raises(RequestFailed, match=f"says no .*{words}") as caught:
        await done(site.client(), name)
    assert type(caught.value) is RequestFailed
    assert route.call_count == 1


async def test_cancelling_what_has_ended_is_success(site: Site) -> None:
    said = (
        "Unexpected Slurm command response. exit_status:0 std_err:scancel: Terminating job 7\nscancel: error: Kill job "
    )
    serve(site, "cancel", refusal(500, f"{said}error on job id 7: Job/step already completing or completed\n"))
    await done(site.client(), "cancel")
    serve(site, "cancel", refusal(500, f"{said}error on job id 7: Invalid job id specified\n"))
    with pytest.raises(NotFound):
        await done(site.client(), "cancel")


async def test_a_404_of_a_gateway_is_never_a_missing_job(site: Site) -> None:
    serve(site, "job", reply(404, text=PAGE))
    with pytest.raises(ServiceUnavailable, match="is not where its URL says"):
        await done(site.client(), "job")
    serve(site, "job", refusal(404, "Job not found."))
    with pytest.raises(NotFound, match="Job not found"):
        await done(site.client(), "job")


async def test_a_list_that_the_server_cannot_read_is_an_error_of_its_own(site: Site) -> None:
    route = serve(site, "jobs", refusal(500, "Error executing Slurm command."))
    with pytest.raises(Unreadable):
        await done(site.client(), "jobs")
    assert route.call_count == 1


async def test_what_is_not_allowed_names_the_account(site: Site) -> None:
    serve(site, "list", refusal(403, "Remote process failed: ls: cannot open directory '/w': Permission denied"))
    with pytest.raises(RequestFailed, match=r"does not allow this to 'ada-\d+' .*Permission denied"):
        await done(site.client(), "list")


@pytest.mark.parametrize("name", OPERATIONS)
async def test_a_success_of_another_kind_is_no_answer(site: Site, name: str) -> None:
    """Such as a gateway's login page."""
    serve(site, name, reply(203, text=PAGE))
    if name == "upload":
        site.on("GET", f"{OPS}/stat", reply(json={"output": {"size": 3}}))
    with pytest.raises(ServiceUnavailable, match=f"{API} does not answer as FirecREST does") as caught:
        await done(site.client(), name)
    assert caught.value.sent
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    assert_no_secret(told_by(caught.value))


READ = [name for name, (_, _, _, _, body, _) in OPERATIONS.items() if isinstance(body, dict)]


@pytest.mark.parametrize("content", [PAGE, "", "[]", "5", "null", "{}", '"text"', '{"output": ', "\x00"])
@pytest.mark.parametrize("name", READ)
async def test_what_is_not_as_firecrests_answers_is_no_answer(site: Site, name: str, content: str) -> None:
    serve(site, name, reply(OPERATIONS[name][3], text=content))
    with pytest.raises(ServiceUnavailable) as caught:
        await done(site.client(), name)
    assert caught.value.sent
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    assert_no_secret(told_by(caught.value))


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("jobs", {"jobs": 5}),
        ("jobs", {"jobs": ["7"]}),
        ("jobs", {"jobs": [{"jobId": "7"}]}),
        ("job", {"jobs": [{"jobId": "7", "status": {}}]}),
        ("log_in", {"systems": None}),
        ("log_in", {"systems": [{}]}),
        ("partitions", {"partitions": None}),
        ("partitions", {"partitions": [{}]}),
        ("user", {"user": None}),
        ("user", {"user": {"name": "ada"}, "accounts": [1]}),
        ("output_path", {"jobs": []}),
        ("output_path", {"jobs": [{}]}),
        ("submit", {"jobId": None}),
        ("submit with fields", {"jobId": ""}),
        ("stat", {"output": None}),
        ("checksum", {"output": {}}),
        ("list", {"output": {"name": "a"}}),
    ],
)
async def test_parts_that_are_missing_are_no_answer(site: Site, name: str, body: Any) -> None:
    serve(site, name, reply(OPERATIONS[name][3], json=body))
    with pytest.raises(ServiceUnavailable) as caught:
        await done(site.client(), name)
    assert caught.value.sent
    assert caught.value.__context__ is None


@pytest.mark.parametrize("name", OPERATIONS)
async def test_no_error_holds_the_token(site: Site, name: str) -> None:
    """A server repeats it in a header of its refusals; this one in its words too."""

    def refuse(request: httpx.Request) -> httpx.Response:
        told = request.headers["Authorization"].removeprefix("Bearer ")
        body = {"errorType": "error", "message": f"Access token {told} is invalid."}
        return httpx.Response(401, json=body, headers={"auth-token": told})

    serve(site, name, refuse)
    with pytest.raises(LoginRefused, match=r"Access token \*\*\* is invalid") as caught:
        await done(site.client(), name)
    assert_no_secret(told_by(caught.value))


# --- Systems and jobs -----------------------------------------------------------------------------------------------


async def test_a_system_that_is_not_there_names_those_that_are(site: Site) -> None:
    site.on("GET", "/status/systems", reply(json={"systems": [a_system("eiger"), a_system("santis")]}))
    with pytest.raises(ConfigurationError, match="has no system daint, only: eiger, santis. Check the site's block"):
        await acall(site.client().about)
    site.on("GET", "/status/systems", reply(json={"systems": []}))
    with pytest.raises(ConfigurationError, match="has no system daint, only: none"):
        await acall(site.client().about)


async def test_a_system_is_asked_for_once_whatever_the_case_of_its_name(site: Site) -> None:
    route = site.on("GET", "/status/systems", reply(json={"systems": [a_system("eiger"), a_system("Daint")]}))
    client = site.client()

    async def many() -> list[System]:
        return await asyncio.gather(*(client.about() for _ in range(5)))

    found = [*await acall(many), await acall(client.about)]
    assert {system.name for system in found} == {"Daint"}
    assert route.call_count == 1


@pytest.mark.parametrize(("mode", "reads"), [("ssh", True), (None, True), ("rest", False), ("hybrid", False)])
def test_only_over_ssh_the_directives_of_a_script_count(mode: str | None, reads: bool) -> None:
    assert System.model_validate(a_system(connectionMode=mode)).reads_directives is reads


def test_limits_and_places_of_a_system() -> None:
    found = System.model_validate(
        {
            **a_system(),
            "fileSystems": [{"path": "/scratch/", "dataType": "scratch"}, {"path": "/users", "defaultWorkDir": True}],
            "dataOperation": {"max_ops_file_size": 1024},
        }
    )
    assert found.largest_upload == 1024
    assert [found.holds(path) for path in ("/scratch", "/scratch/ada", "/scratchy", "/etc")] == [
        True,
        True,
        False,
        False,
    ]
    silent = System.model_validate({"name": "daint", "fileSystems": None, "dataOperation": None})
    assert (silent.largest_upload, silent.holds("/etc")) == (5 * 2**20, True)


@pytest.mark.parametrize("jobs", [["7_1", "7_2"], ["7", "8"], ["7_[1-4%1]", "7"]])
async def test_an_array_is_refused(site: Site, jobs: list[str]) -> None:
    site.on("GET", JOB, reply(json={"jobs": [a_job(job) for job in jobs]}))
    with pytest.raises(NotSupported, match="Job 7 is an array .*a training run is one job"):
        await acall(site.client().job, "7")


@pytest.mark.parametrize("jobs", [[], None])
async def test_an_answer_without_the_job_is_not_found(site: Site, jobs: Any) -> None:
    site.on("GET", JOB, reply(json={"jobs": jobs}))
    with pytest.raises(NotFound, match="daint answered without a job 7"):
        await acall(site.client().job, "7")


async def test_of_the_starts_of_a_job_the_last_one_counts(site: Site) -> None:
    again = a_job(status={"state": "COMPLETED"})
    site.on("GET", JOB, reply(json={"jobs": [a_job(status={"state": "NODE_FAIL"}), again]}))
    assert (await acall(site.client().job, "7")).status.state == "COMPLETED"


# --- Files ----------------------------------------------------------------------------------------------------------

WITH_A_PATH: dict[str, Callable[[FirecrestClient, str], Coroutine[Any, Any, Any]]] = {
    "list": lambda c, path: c.list(path),
    "stat": lambda c, path: c.stat(path),
    "mkdir": lambda c, path: c.mkdir(path),
    "chmod": lambda c, path: c.chmod(path, "600"),
    "upload": lambda c, path: c.upload(path, "a", b"x"),
    "upload of nothing": lambda c, path: c.upload(path, "a", b""),
    "download": lambda c, path: c.download(path),
    "tail": lambda c, path: c.tail(path, 0),
    "view": lambda c, path: c.view(path, 0, 1),
    "checksum": lambda c, path: c.checksum(path),
    "remove": lambda c, path: c.remove(path),
}


@pytest.mark.parametrize("path", ["/it's", "/a\nb", "/a/../b", "/..", "scratch/a", "", "~/a", "$HOME/a", "/a\0"])
@pytest.mark.parametrize("name", WITH_A_PATH)
async def test_a_path_that_would_do_something_else_is_refused_before_anything_is_sent(
    site: Site, name: str, path: str
) -> None:
    """Servers put paths between single quotes for a shell, without escaping."""
    client = site.client()
    with pytest.raises(ConfigurationError, match="no absolute path|takes no name with a single quote or a line break"):
        await acall(WITH_A_PATH[name], client, path)
    assert len(site.router.calls) == 0


@pytest.mark.parametrize("name", ["it's", "a\nb", "../a"])
@pytest.mark.parametrize("content", [b"x", b""])
async def test_so_is_the_name_of_an_upload(site: Site, name: str, content: bytes) -> None:
    with pytest.raises(ConfigurationError):
        await acall(site.client().upload, "/w", name, content)
    assert len(site.router.calls) == 0


@pytest.mark.parametrize("path", ["/a b/ü", "/a..b", "/a$b", '/a"b', "/a;b", "/a%20b"])
async def test_other_names_travel_as_they_are(site: Site, path: str) -> None:
    route = serve(site, "download")
    await acall(site.client().download, path)
    assert route.calls.last.request.url.params["path"] == path


async def test_an_empty_file_is_there_though_the_server_gave_up(site: Site) -> None:
    """It waits for content for 5 s, and has made the file."""
    serve(site, "upload", LATE)
    stat = site.on("GET", f"{OPS}/stat", reply(json={"output": {"size": 0}}))
    await acall(site.client().upload, "/w", "a", b"")
    assert stat.calls.last.request.url.params["path"] == "/w/a"


@pytest.mark.parametrize("output", [{"size": 5}, {}])
async def test_what_is_there_instead_of_an_empty_file_is_no_success(site: Site, output: dict[str, int]) -> None:
    serve(site, "upload", LATE)
    site.on("GET", f"{OPS}/stat", reply(json={"output": output}))
    with pytest.raises(ServiceUnavailable, match="HTTP 408"):
        await acall(site.client().upload, "/w", "a", b"")


async def test_a_server_that_takes_an_empty_file_is_not_asked_again(site: Site) -> None:
    route = serve(site, "upload")
    await acall(site.client().upload, "/w", "a", b"")
    assert route.call_count == 1
    assert len(site.router.calls) == 2  # the other one is for the token


# --- Over the wire --------------------------------------------------------------------------------------------------


class Server:
    """A server on this machine: a token endpoint, and an API that answers one thing."""

    def __init__(self, status: int, body: Any, **headers: str) -> None:
        self.asked: list[tuple[str, str, bytes]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                server.asked.append((self.command, self.path, content))
                told = {"access_token": TOKEN, "expires_in": 300} if self.path == "/token" else body
                self.send_response(200 if self.path == "/token" else status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(json.dumps(told).encode())

            do_GET = do_POST = handle_any

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


async def test_no_log_line_holds_the_token_that_a_refusal_repeats(caplog: pytest.LogCaptureFixture) -> None:
    """httpcore logs the headers of each answer."""
    with Server(401, {"message": "no"}, auth_token=TOKEN) as server, caplog.at_level(logging.DEBUG):
        client = FirecrestClient(f"{server.url}/v2", f"{server.url}/token", "daint", new_client())
        with pytest.raises(LoginRefused):
            await acall(client.jobs)
    assert {"httpx", "httpcore.http11"} <= {record.name for record in caplog.records}
    assert "auth-token', b'***'" in caplog.text
    assert_no_secret(caplog.text)


def test_pyfirecrests_own_client_has_time_limits_and_tokens_that_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    credentials = FirecrestCredentials(client_id="ada", client_secret=SECRET)
    with Server(200, {"systems": [a_system()]}) as server:
        client = credentials.get_client(f"{server.url}/v2/", f"{server.url}/token")
        assert client.systems() == [a_system()]
    (_, token_path, form), (_, path, _) = server.asked
    assert (token_path, path) == ("/token", "/v2/status/systems")
    assert parse_qs(form.decode())["client_secret"] == [SECRET]
    login_of = client._authorization
    assert (client.timeout, login_of.timeout, login_of._min_token_validity) == (TIMEOUT, TIMEOUT, login.MARGIN)
    assert client._session._transport._pool._ssl_context is tls_context(VERIFIED)


@pytest.mark.parametrize(
    ("api_url", "token_url", "named"),
    [
        ("", TOKEN_URL, "FirecREST's API.*<platform>/firecrest/v2"),
        ("http://api.example.org/v2", TOKEN_URL, "FirecREST's API.*plain http"),
        (API, "", "the token endpoint.*openid-connect/token"),
        (API, f"https://ada:{SECRET}@auth.example.org/token", "the token endpoint.*user name or password"),
    ],
)
def test_pyfirecrests_own_client_needs_two_urls(api_url: str, token_url: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named) as caught:
        FirecrestCredentials(client_id="ada", client_secret=SECRET).get_client(api_url, token_url)
    assert SECRET not in str(caught.value)
