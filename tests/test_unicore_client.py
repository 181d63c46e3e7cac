"""What the UNICORE client makes of servers that a sandbox is not: each test scripts one of its own."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from prefect_mantik import UnicoreCredentials, UnicoreSite
from prefect_mantik.errors import ConfigurationError, LoginRefused, NotFound, RequestFailed, ServiceUnavailable
from prefect_mantik.loop import acall
from prefect_mantik.runs import RunHandle, RunState
from prefect_mantik.sites.unicore.site import DirectUnicoreSite
from prefect_mantik.unicore import UnicoreClient, client as client_module
from tests.sandbox_jobs import unicore_site

SOMEBODY = {
    "client": {"role": {"selected": "user"}, "dn": "CN=ada", "xlogin": {"UID": "ada", "group": "hpc"}},
    "server": {"jobSubmission": {"enabled": True}},
}
NOBODY = {"client": {"role": {"selected": "anonymous"}, "dn": "CN=ANONYMOUS", "xlogin": {}}, "server": {}}


class Asked(NamedTuple):
    """One request."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


class Answer(NamedTuple):
    """One answer."""

    status: int = 200
    json: Any = None
    body: bytes = b""
    headers: dict[str, str] = {}  # noqa: RUF012  # never changed


class Server:
    """A server that answers what a test says, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.answers: dict[tuple[str, str], Callable[[Asked], Answer]] = {}
        self.who: Callable[[Asked], Answer] = lambda _: Answer(json=SOMEBODY)
        self.in_flight = self.most_in_flight = 0
        self.sessions = True
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/SITE/rest/core"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def on(self, method: str, path: str, answer: Answer | Callable[[Asked], Answer]) -> None:
        """Answer requests for a path; one that ends with `*` stands for all that begin so."""
        self.answers[method, path] = answer if callable(answer) else lambda _: answer

    def count(self, method: str, path: str) -> int:
        """How many requests were made."""
        return sum(asked.method == method and asked.path == path for asked in self.asked)

    def client(self, **login: Any) -> UnicoreClient:
        """The client of an account."""
        given = login or {"username": "ada", "password": "secret"}
        return unicore_site(self.url, "x", "x", login=UnicoreCredentials(**given)).client()

    def close(self) -> None:
        """Stop."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _answer(self, asked: Asked) -> Answer:
        if asked.path == "":
            found = self.who(asked)
            session = {"X-UNICORE-SecuritySession": f"session-{len(self.asked)}"} if self.sessions else {}
            return found._replace(headers={**session, **found.headers})
        for (method, path), answer in self.answers.items():
            if method == asked.method and (
                asked.path.startswith(path[:-1]) if path[-1:] == "*" else asked.path == path
            ):
                return answer(asked)
        return Answer(404)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                url = urlsplit(self.path)
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                asked = Asked(
                    self.command,
                    unquote(url.path).removeprefix("/SITE/rest/core"),
                    {name: values[0] for name, values in parse_qs(url.query).items()},
                    dict(self.headers),
                    body,
                )
                with server._lock:
                    server.asked.append(asked)
                    server.in_flight += 1
                    server.most_in_flight = max(server.in_flight, server.most_in_flight)
                answer = server._answer(asked)
                content = json.dumps(answer.json).encode() if answer.json is not None else answer.body
                with server._lock:
                    server.in_flight -= 1
                self.send_response(answer.status)
                for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_DELETE = handle_any

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def basic(asked: Asked) -> str:
    return base64.b64decode(asked.headers["Authorization"].removeprefix("Basic ")).decode()


# --- Logins ---------------------------------------------------------------------------------------------------------


async def test_a_password_that_is_not_ascii(server: Server) -> None:
    await acall(server.client(username="ёлка", password="пароль: 100 €").who)
    assert basic(server.asked[0]) == "ёлка:пароль: 100 €"


async def test_whom_the_server_does_not_know_is_refused_and_never_told_that_there_are_no_jobs(server: Server) -> None:
    """A garbage token is answered 200, as anonymous, whose list of jobs is empty."""
    server.who = lambda _: Answer(json=NOBODY)
    server.on("GET", "/jobs", Answer(json={"jobs": []}))
    client = server.client(token="garbage")
    for _ in range(3):
        with pytest.raises(LoginRefused, match="does not know this user, or has no account for it.*until they change"):
            await acall(client.jobs, "key")
    assert [asked.path for asked in server.asked] == [""]


async def test_a_session_that_ends_when_the_credential_has_become_garbage(server: Server, tmp_path: Path) -> None:
    known = {"session-1"}
    file = tmp_path / "token"
    file.write_text("good")

    def jobs(asked: Asked) -> Answer:
        return Answer(json={"jobs": []}) if asked.headers.get("X-UNICORE-SecuritySession") in known else Answer(432)

    server.who = lambda asked: Answer(json=SOMEBODY if asked.headers["Authorization"] == "Bearer good" else NOBODY)
    server.on("GET", "/jobs", jobs)
    server.on("POST", "/jobs", Answer(201, headers={"Location": f"{server.url}/jobs/7"}))
    client = server.client(token_file=str(file))
    assert await acall(client.jobs, "key") == []
    known.clear()
    file.write_text("garbage")
    for call in (lambda: acall(client.jobs, "key"), lambda: acall(client.submit, {})):
        with pytest.raises(LoginRefused, match="refused the login of 'the token in"):
            await call()
    assert server.count("POST", "/jobs") == 0 or known
    assert "Authorization" not in server.asked[1].headers


async def test_a_server_without_sessions_is_asked_who_we_are_before_each_call(server: Server) -> None:
    server.sessions = False
    server.on("GET", "/jobs", Answer(json={"jobs": []}))
    client = server.client(token="good")
    for _ in range(2):
        await acall(client.jobs)
    assert [asked.path for asked in server.asked] == ["", "/jobs"] * 2
    server.who = lambda _: Answer(json=NOBODY)
    with pytest.raises(LoginRefused):
        await acall(client.jobs)


async def test_what_is_no_unicore_says_where_the_rest_api_is(server: Server) -> None:
    server.who = lambda _: Answer(body=b"<html>hello</html>", headers={"Content-Type": "text/html"})
    with pytest.raises(ServiceUnavailable, match="does not answer as UNICORE does.*https://<gateway>/<SITE>/rest/core"):
        await acall(server.client().jobs)


async def test_many_calls_at_once_open_one_session(server: Server) -> None:
    server.on("GET", "/jobs", Answer(json={"jobs": []}))
    client = server.client()
    await asyncio.gather(*(acall(client.jobs) for _ in range(20)))
    assert server.count("GET", "") == 1
    assert not any("Authorization" in asked.headers for asked in server.asked if asked.path)


async def test_a_session_that_ended_is_opened_once_for_all_who_wait(server: Server) -> None:
    server.on("GET", "/jobs", lambda asked: Answer(json={"jobs": []}))
    client = server.client()
    await acall(client.jobs)

    def ended(asked: Asked) -> Answer:
        return Answer(432) if asked.headers["X-UNICORE-SecuritySession"] == "session-1" else Answer(json={"jobs": []})

    server.on("GET", "/jobs", ended)
    await asyncio.gather(*(acall(client.jobs) for _ in range(10)))
    assert server.count("GET", "") == 2


async def test_a_server_that_forgets_each_session_is_an_error_and_no_loop(server: Server) -> None:
    server.on("GET", "/jobs", Answer(432))
    with pytest.raises(ServiceUnavailable, match="knows none of the sessions that it opens"):
        await acall(server.client().jobs)
    assert server.count("GET", "/jobs") == 2


async def test_a_session_does_not_travel_to_a_host_that_a_reply_names(server: Server) -> None:
    """Behind a gateway or a tunnel a server may name itself by an address that we cannot reach."""
    server.on("GET", "/jobs", Answer(json={"jobs": ["https://elsewhere.example.org/rest/core/jobs/7"]}))
    server.on("POST", "/jobs", Answer(201, headers={"Location": "https://elsewhere.example.org/rest/core/jobs/8"}))
    server.on("GET", "/jobs/7", Answer(json={"status": "RUNNING"}))
    server.on("GET", "/jobs/8", Answer(302, headers={"Location": "https://elsewhere.example.org/jobs/8"}))
    client = server.client()
    assert await acall(client.jobs) == ["7"]
    assert (await acall(client.job, "7")).status == "RUNNING"
    assert await acall(client.submit, {}) == "8"
    with pytest.raises(ServiceUnavailable, match="sends us elsewhere"):
        await acall(client.job, "8")


async def test_accept_is_always_sent(server: Server) -> None:
    """Without it the server answers HTML."""
    server.on("GET", "/jobs", Answer(json={"jobs": []}))
    await acall(server.client().jobs)
    assert {asked.headers["Accept"] for asked in server.asked} == {"application/json"}


# --- Jobs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [Answer(json=[]), Answer(json={}), Answer(json={"jobs": None}), Answer(), Answer(body=b"<html></html>")],
    ids=["a list", "an object", "null", "nothing", "a page"],
)
async def test_an_answer_that_lists_nothing_is_never_no_jobs(server: Server, answer: Answer) -> None:
    server.on("GET", "/jobs", answer)
    with pytest.raises(ServiceUnavailable):
        await acall(server.client().jobs, "key")


async def test_long_lists_are_read_page_by_page_without_the_servers_own_link(server: Server) -> None:
    """The link to the next page loses the tags."""
    urls = [f"{server.url}/jobs/{number}" for number in range(450)]

    def page(asked: Asked) -> Answer:
        assert asked.query["tags"] == "one,two"
        offset, num = int(asked.query["offset"]), int(asked.query["num"])
        wrong = {"next": {"href": f"{server.url}/wrong"}} if offset + num < len(urls) else {}
        return Answer(json={"jobs": urls[offset : offset + num], "_links": wrong})

    server.on("GET", "/jobs", page)
    assert await acall(server.client().jobs, "one", "two") == [str(number) for number in range(450)]
    assert server.count("GET", "/jobs") == 3


async def test_a_job_that_is_taken_without_a_location_leaves_it_open(server: Server) -> None:
    server.on("POST", "/jobs", Answer(201))
    with pytest.raises(ServiceUnavailable, match="did not say where it is") as caught:
        await acall(server.client().submit, {})
    assert caught.value.sent


async def test_a_session_that_ends_before_a_submit_gives_one_job(server: Server) -> None:
    answers = [Answer(432), Answer(201, headers={"Location": f"{server.url}/jobs/7"})]
    server.on("POST", "/jobs", lambda _: answers.pop(0))
    assert await acall(server.client().submit, {"Name": "x"}) == "7"
    assert [json.loads(asked.body) for asked in server.asked if asked.method == "POST"] == [{"Name": "x"}] * 2


def _open(server: Server) -> DirectUnicoreSite:
    site: UnicoreSite = unicore_site(server.url, "ada", "secret")
    return site.open()


def _handle(job: str) -> RunHandle:
    return RunHandle(site=None, site_name="x", kind="unicore", remote_id=job, site_key="pm-x", name="x")


async def test_a_hundred_jobs_are_polled_four_at_a_time_and_for_some_fields_only(server: Server) -> None:
    def job(_: Asked) -> Answer:
        time.sleep(0.005)
        return Answer(json={"status": "RUNNING"})

    server.on("GET", "/jobs/*", job)
    handles = [_handle(str(number)) for number in range(100)]
    statuses = await acall(_open(server).poll, handles)
    assert [statuses[handle].state for handle in handles] == [RunState.RUNNING] * 100
    polls = [asked for asked in server.asked if asked.path]
    assert len(polls) == 100
    assert server.most_in_flight <= 4
    for asked in polls:
        assert set(asked.query["fields"].split(",")) == {
            "status",
            "statusMessage",
            "exitCode",
            "submissionTime",
            "consumedTime",
        }


async def test_one_job_that_cannot_be_asked_leaves_the_others_alone(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "POLL_TIMEOUT", 0.3)
    server.on("GET", "/jobs/1", Answer(json={"status": "RUNNING"}))
    server.on("GET", "/jobs/2", Answer(json=["no", "object"]))
    server.on("GET", "/jobs/3", Answer(403))
    one, two, three = (_handle(job) for job in "123")
    statuses = await acall(_open(server).poll, [one, two, three])
    assert [statuses[handle].state for handle in (one, two, three)] == [
        RunState.RUNNING,
        RunState.UNKNOWN,
        RunState.UNKNOWN,
    ]
    assert "does not answer as UNICORE does" in statuses[two].site_word
    assert "does not allow this to 'ada'" in statuses[three].site_word


# --- Files ----------------------------------------------------------------------------------------------------------

FILES = "/storages/HOME/files"


def _file(server: Server, content: bytes, *, ranges: bool = True) -> None:
    def answer(asked: Asked) -> Answer:
        if asked.headers["Accept"] == "application/json":
            return Answer(json={"isDirectory": False, "size": len(content)})
        first, last = (int(part) for part in asked.headers["Range"].removeprefix("bytes=").split("-"))
        assert first < len(content), "a server hangs behind the end of a file"
        assert last < len(content)
        return Answer(206, body=content[first : last + 1]) if ranges else Answer(200, body=content)

    server.on("GET", f"{FILES}/a", answer)


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
async def test_a_server_may_ignore_a_range(server: Server, ranges: bool) -> None:
    _file(server, b"0123456789", ranges=ranges)
    store = _open(server).store()
    assert await acall(store.read, "/a", 2, 3) == b"234"
    assert await acall(store.read, "a") == b"0123456789"
    assert await acall(store.read, "/a", 8, 100) == b"89"


async def test_the_end_of_a_file_is_never_asked_for(server: Server) -> None:
    _file(server, b"0123456789")
    store = _open(server).store()
    for offset, length in ((10, None), (11, None), (3, 0)):
        assert await acall(store.read, "/a", offset, length) == b""
    assert not any("Range" in asked.headers for asked in server.asked)


async def test_an_empty_file_is_read_without_asking_for_content(server: Server) -> None:
    _file(server, b"")
    assert await acall(_open(server).store().read, "/a") == b""


@pytest.mark.parametrize(
    "answer",
    [
        Answer(500, json={"errorMessage": "the disk is gone", "status": 500}),
        Answer(302, body=b"moved", headers={"Location": "https://elsewhere.example.org"}),
        Answer(403),
        Answer(416, json={"errorMessage": "Range header cannot be parsed", "status": 416}),
    ],
    ids=["500", "302", "403", "416"],
)
async def test_an_error_is_never_taken_for_content(
    server: Server, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "TOTAL_TIMEOUT", 0.3)
    sized = Answer(json={"isDirectory": False, "size": 10})
    server.on("GET", f"{FILES}/a", lambda asked: sized if asked.headers["Accept"] == "application/json" else answer)
    with pytest.raises(RequestFailed):
        await acall(_open(server).store().read, "/a")


@pytest.mark.parametrize("name", ["/a%20b", "/100 %", "/a\\b"])
async def test_a_name_that_no_unicore_takes_is_refused_before_anything_is_sent(server: Server, name: str) -> None:
    _file(server, b"x")
    store = _open(server).store()
    calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        *((call, (name,)) for call in (store.read, store.stat, store.list, store.mkdir, store.remove)),
        (store.write, (name, b"x")),
        (store.rename, ("/a", name)),
        (store.rename, (name, "/a")),
    ]
    for call, arguments in calls:
        with pytest.raises(ConfigurationError, match=r"UNICORE takes no .*%.*rename"):
            await acall(call, *arguments)
    assert [asked for asked in server.asked if asked.path not in ("", f"{FILES}/a")] == []


@pytest.mark.parametrize("name", ["/../a", "..", "a/../../b", "/a/.."])
async def test_a_path_that_leads_out_of_the_storage_is_refused(server: Server, name: str) -> None:
    """UNICORE itself lets a rename lead out of the directory of a job."""
    _file(server, b"x")
    store = _open(server).store()
    with pytest.raises(ConfigurationError, match="leads out of the storage"):
        await acall(store.rename, "/a", name)
    with pytest.raises(ConfigurationError, match="leads out of the storage"):
        await acall(store.write, name, b"x")
    assert [asked for asked in server.asked if asked.method != "GET"] == []


async def test_an_upload_that_arrives_in_part_is_an_error(server: Server) -> None:
    server.on("PUT", f"{FILES}/a", Answer(204))
    server.on("GET", f"{FILES}/a", Answer(json={"isDirectory": False, "size": 3}))
    with pytest.raises(ServiceUnavailable, match="10 bytes were sent to .*, 3 are there. Is the disk quota full"):
        await acall(_open(server).store().write, "/a", b"0123456789")


async def test_a_file_operation_that_fails_in_the_sites_own_words_is_not_repeated_for_an_hour(server: Server) -> None:
    """UNICORE says 500 to nearly everything that does not work."""
    words = {"errorMessage": "Error uploading to '/a': Disk quota exceeded", "status": 500}
    for method in ("PUT", "POST", "DELETE"):
        server.on(method, f"{FILES}/a", Answer(500, json=words))
    server.on("GET", f"{FILES}/a", Answer(json={"isDirectory": False, "size": 3}))
    store = _open(server).store()
    for call, arguments in ((store.write, ("/a", b"x")), (store.mkdir, ("/a",)), (store.remove, ("/a",))):
        with pytest.raises(RequestFailed, match="Disk quota exceeded"):
            await asyncio.wait_for(acall(call, *arguments), 5)


async def test_a_job_without_a_directory_has_no_file_whatever_the_server_says(server: Server) -> None:
    """It says 500 for that, which else is worth another try."""
    words = "Error listing '/': java.lang.NullPointerException (no further message available)"
    server.on("GET", "/storages/7-uspace/files*", Answer(500, json={"errorMessage": words, "status": 500}))
    site = _open(server)
    with pytest.raises(NotFound):
        await acall(site.store(_handle("7")).list, "/")
    assert await acall(site.read_log, _handle("7"), 5) == (b"", 5)
    assert len([asked for asked in server.asked if asked.path]) == 2


async def test_permissions_that_were_not_set_are_an_error_though_the_server_answers_200(server: Server) -> None:
    server.on("PUT", f"{FILES}/a", Answer(json={"permissions": "FAILED: Illegal permissions string <600>"}))
    with pytest.raises(RequestFailed, match="did not set the permissions 600: FAILED: Illegal permissions"):
        await acall(server.client().set_permissions, "HOME", "/a", "600")
