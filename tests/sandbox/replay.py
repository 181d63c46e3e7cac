"""Sends requests that were recorded at a real FirecREST server to the sandbox, and compares the answers."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from .test_firecrest_files import SITE, Fire

Key = tuple[str, int]
ME, OTHER = "sandbox-at-cedar", "sandbox-2-at-cedar"
SYSTEMS = {"rig-rest": "cedar-rest"} | dict.fromkeys(
    ("rig-stable", "rig-maxsess10", "rig-sick", "rig-streamer", "rig"), "cedar"
)
USERS = {"fireuser": ME, "otheruser": OTHER, "nokeyuser": ME, "firesrv": ME}
# What the recorded scripts ask for in words of their own site, and shorter sleeps.
SCRIPTS = {
    r"-p short -t 10:00": "-p devel -t 10:00:00",
    r"-p short": "-p devel",
    r"-n 4\b": "-N 2",
    r"sleep 8\b": "sleep 2",
    r"sleep [3-7]\b": "sleep 1",
}

# Reasons to wait that need a machine as busy as the recorded one.
ANY_REASON = ("Priority", "None")
VOLATILE = {"lastModified", "ino", "dev", "atime", "ctime", "mtime", "nlink", "checksum"}
_JOB_NUMBER = re.compile(
    r"(?<=job )\d+|(?<=job id )\d+|(?<=\(id:)\d+|(?<=slurm-)\d+|(?<=ok-)\d+|(?<=rest-)\d+|(?<='input': ')\d+(?=_)"
)
# Dates, checksums, names of directories and numbers of open files in texts.
_BY_CHANCE = re.compile(r"\w{3} \w{3} +\d+ \d\d:\d\d:\d\d UTC \d{4}|\b[0-9a-f]{32}\b|\b[0-9a-f-]{36}\b|\(fd:\d+\)")


def body_of(exchange: dict[str, Any]) -> Any:
    return exchange["response"].get("body")


def states(body: Any) -> set[tuple[str, str]]:
    """Give the states and reasons of the jobs in an answer."""
    jobs = (body.get("jobs") or []) if isinstance(body, dict) else []
    return {(job["status"]["state"], job["status"]["stateReason"]) for job in jobs if "status" in job}


@dataclass(frozen=True)
class Tables:
    """What of the recordings is not as plain as the rest; exchanges are named by their recording and their place in it.

    Attributes:
        left_out: Exchanges that are not sent again, and why.
        shape_only: Exchanges of which only the shape is compared, and why.
        of_other: Requests of the second user.
        scripts: The scripts of jobs whose submission was not recorded.
        made: What happened to jobs where it was not recorded.
        states: What has to be brought about before a request.
        tokens: Tokens other than the user's own good one.
    """

    left_out: Mapping[Key, str]
    shape_only: Mapping[Key, str]
    of_other: Container[Key]
    scripts: Mapping[str, str]
    made: Mapping[str, Callable[[Replay, str], None]]
    states: Mapping[Key, Callable[[Replay], AbstractContextManager[None]]]
    tokens: Mapping[Key, Callable[[Replay], str]]


class Replay:
    """Sends recorded requests again, and compares the answers."""

    def __init__(self, fire: Fire, directory: Path, names: Sequence[str], tables: Tables) -> None:
        self.fire = fire
        self.tables = tables
        self.control = fire.control
        self.recordings = {name: json.loads((directory / f"{name}.json").read_text()) for name in names}
        self.jobs: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        self._uploads: list[Callable[[], None]] = []
        self.counts = {"replayed": 0, "merged": 0, "left out": 0}
        root = str(Path(fire.home).parent)
        self.homes = {"/home/fireuser": fire.home, "/home/otheruser": f"{root}/{OTHER}", "/home": root}
        self.tokens = {ME: fire.token, OTHER: self.control.firecrest_token(OTHER, 3600)}
        self._submitted = {
            body_of(exchange)["jobId"]: (name[: name.index("-")], index, exchange)
            for name, exchanges in self.recordings.items()
            for index, exchange in enumerate(exchanges)
            if exchange["request"]["method"] == "POST"
            and exchange["request"]["path"].endswith("/jobs")
            and exchange["response"].get("status") == 201
        }

    def mapped(self, text: str) -> str:
        """Put the sandbox's names in place of the recorded ones."""
        for recorded, ours in self.texts.items():
            text = text.replace(recorded, ours)
        up = "/.." * self.fire.home.count("/")
        text = text.replace("/home/fireuser/../../etc", f"{self.fire.home}{up}/etc")
        text = re.sub(r"/home/(fireuser|otheruser)", lambda found: f"\0{found[1]}\0", text)
        text = re.sub(r"\b(fireuser|otheruser|nokeyuser)\b(?!\0)", lambda found: USERS[found[1]], text)
        text = re.sub(r"\0(\w+)\0", lambda found: self.homes[f"/home/{found[1]}"], text)
        text = re.sub(r"\(rig(-\w+)?\)", "(cedar)", text).replace('"cluster": "rig"', '"cluster": "cedar"')
        return re.sub(_JOB_NUMBER, lambda found: self.jobs.get(found[0], found[0]), text)

    def job(self, recorded: str) -> str:
        """Give our job for a recorded one; it is submitted if that was not in a recording played before."""
        if recorded not in self.jobs and (recorded in self._submitted or recorded in self.tables.made):
            if recorded in self._submitted:
                self._play(*self._submitted[recorded])
            else:
                self.jobs[recorded] = self.submit(self.tables.scripts.get(recorded, "sleep 60"))
            if recorded in self.tables.made:
                self.tables.made[recorded](self, recorded)
        return self.jobs.get(recorded, recorded)

    def submit(self, script: str) -> str:
        job = {"workingDirectory": self.fire.home, "script": f"#!/bin/bash\n{script}\n"}
        answer = self.fire.http.post(f"/compute/{SITE}/jobs", json={"job": job})
        assert answer.status_code == 201, answer.text
        return answer.json()["jobId"]

    def until(self, recorded: str, *wanted: str) -> str:
        """Wait until our job is in one of the states, and give the id that the control API knows it by."""
        deadline = time.monotonic() + 20
        while True:
            found = next(job for job in self.control.jobs() if str(job["number"]) == self.jobs[recorded])
            if found["state"] in wanted:
                return found["id"]
            assert time.monotonic() < deadline, found
            time.sleep(0.02)

    def play(self, name: str) -> None:
        """Send all requests of a recording."""
        number = name[: name.index("-")]
        last: Any = None
        for index, exchange in enumerate(self.recordings[name]):
            request, response = exchange["request"], exchange["response"]
            key = [request["method"], request["path"], request["query"], response.get("status")]
            key.append(sorted(states(body_of(exchange))) if "/jobs" in request["path"] else None)
            if number == "14":
                key[1] = re.sub(r"\d+$", "", key[1])
            if response.get("injected") or "status" not in response or (number, index) in self.tables.left_out:
                self.counts["left out"] += 1
            elif request["method"] in ("GET", "DELETE") and key == last and number != "20":
                self.counts["merged"] += 1
            else:
                self._play(number, index, exchange)
                self.counts["replayed"] += 1
            last = key

    def _play(self, number: str, index: int, exchange: dict[str, Any]) -> None:
        request = exchange["request"]
        call = self._request(number, index, request)
        while self._uploads and not any(state == "PENDING" for state, _ in states(body_of(exchange))):
            self._uploads.pop()()
        with contextlib.ExitStack() as stack:
            for state in self._states(number, index, exchange):
                stack.enter_context(state)
            answer = self._send(call, exchange)
        where = f"{number}/{index} {request['method']} {request['path']}"
        status = exchange["response"]["status"]
        assert answer.status_code == status, f"{where}: {answer.status_code}, not {status}: {answer.text[:1000]}"
        self._learn(exchange, answer)
        self._compare(where, (number, index), exchange, answer)

    def _states(self, number: str, index: int, exchange: dict[str, Any]) -> Iterator[AbstractContextManager[None]]:
        status = exchange["response"]["status"]
        if status == 408:
            yield self.switched(firecrest_command_timeout=0.2)
        if "rig-sick" in exchange["request"]["path"]:
            yield self.changed(unhealthy=True)
        if status == 424 or "Unable to open a new SSH channel." in json.dumps(body_of(exchange)):
            yield self.crowded()
        if (number, index) in self.tables.states:
            yield self.tables.states[number, index](self)

    def _request(self, number: str, index: int, request: dict[str, Any]) -> httpx.Request:
        system, job = None, None
        if found := re.fullmatch(r"(/\w+/)([\w-]+)(/.*)", request["path"]):
            system = next((ours for name, ours in SYSTEMS.items() if found[2].lower() == name), found[2])
            system = system.upper() if found[2].isupper() else system
        path = request["path"] if found is None or found[2] == "systems" else f"{found[1]}{system}{found[3]}"
        if job := re.search(r"/jobs/(\d+)(?=$|/|_)", path):
            path = path.replace(job[0], f"/jobs/{self.job(job[1])}")
        query = [(name, self.homes.get(value) or self.mapped(value)) for name, value in request["query"]]
        headers = {}
        if "authorization" in request["headers"]:
            token = self.tables.tokens.get((number, index), lambda replay: replay.tokens[ME])(self)
            if (number, index) in self.tables.of_other:
                token = self.tokens[OTHER]
            headers["Authorization"] = f"Bearer {token}"
        if "content-type" in request["headers"]:
            headers["Content-Type"] = request["headers"]["content-type"]
        return httpx.Request(
            request["method"], f"{self.fire.url}{path}", params=query, headers=headers, content=self._content(request)
        )

    def _content(self, request: dict[str, Any]) -> bytes | None:
        body = request.get("body")
        if body is None:
            return None
        if isinstance(body, str):
            return self.mapped(body).encode()
        if "base64_head" in body:
            return whole_form(body, request["headers"]["content-type"].partition("boundary=")[2])
        return json.dumps(self._fields(body)).encode()

    def _fields(self, value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {key: self._fields(each, key) for key, each in value.items()}
        if not isinstance(value, str):
            return value
        if name == "script":
            cut = re.search(r"\.\.\.\[(\d+) chars\]$", value)
            if cut:
                start = value[: cut.start()]
                return start + "x" * (int(cut[1]) - len(start))
            for recorded, ours in SCRIPTS.items():
                value = re.sub(recorded, ours, value)
            return re.sub(r"(afterok:)(\d+)", lambda found: found[1] + self.job(found[2]), value)
        return self.mapped(value)

    def _send(self, request: httpx.Request, exchange: dict[str, Any]) -> httpx.Response:
        recorded = exchange["request"]
        body = body_of(exchange)
        wanted = states(body)
        # Jobs move on by themselves: wait until ours is where the recorded one was.
        waits = re.search(r"/jobs/\d+$", recorded["path"]) and recorded["method"] == "GET" and wanted
        deadline = time.monotonic() + (15 if waits else 0)
        while True:
            with httpx.Client(timeout=30, trust_env=False) as plain:
                answer = plain.send(request)
            if time.monotonic() >= deadline or (answer.status_code == 200 and self._arrived(answer.json(), wanted)):
                return answer
            time.sleep(0.02)

    def _arrived(self, body: Any, wanted: set[tuple[str, str]]) -> bool:
        ours = states(body)
        if any(reason not in ANY_REASON for _, reason in wanted) and len(wanted) == 1:
            return ours == wanted
        return {state for state, _ in ours} == {state for state, _ in wanted}

    def _learn(self, exchange: dict[str, Any], answer: httpx.Response) -> None:
        recorded = body_of(exchange)
        if answer.status_code not in (200, 201) or not isinstance(recorded, dict):
            return
        if "jobId" in recorded:
            self.jobs[recorded["jobId"]] = answer.json()["jobId"]
        if "transferJob" in recorded:
            theirs, ours = recorded["transferJob"], answer.json()["transferJob"]
            self.jobs[theirs["jobId"]] = ours["jobId"]
            for kind in ("outputLog", "errorLog"):
                self.texts[theirs["logs"][kind]] = ours["logs"][kind]
            directives, fields = answer.json().get("transferDirectives") or {}, exchange["request"]["body"]
            if "partsUploadUrls" in directives and not fields["path"].endswith("/nb.bin"):
                size = fields["transfer_directives"]["file_size"]
                # The recorded client was done with it while its job still waited for its turn.
                self._uploads.append(lambda: self._bring_parts(directives, size))

    def _bring_parts(self, directives: dict[str, Any], left: int) -> None:
        tags = []
        with httpx.Client(timeout=30, trust_env=False) as plain:
            for url in directives["partsUploadUrls"]:
                size = min(left, directives["maxPartSize"])
                left -= size
                tags.append(plain.put(url, content=b"x" * size).headers["ETag"])
            parts = [f"<Part><PartNumber>{n}</PartNumber><ETag>{tag}</ETag></Part>" for n, tag in enumerate(tags, 1)]
            assert plain.post(directives["completeUploadUrl"], content="".join(parts)).status_code == 200

    @contextlib.contextmanager
    def switched(self, **positions: Any) -> Iterator[None]:
        before = self.control.call("GET", "/switches")
        self.control.switch(**positions)
        yield
        self.control.switch(**{name: before[name] for name in positions})

    @contextlib.contextmanager
    def changed(self, **changes: bool) -> Iterator[None]:
        self.control.change_site(SITE, **changes)
        yield
        self.control.change_site(SITE, **{name: not value for name, value in changes.items()})

    @contextlib.contextmanager
    def crowded(self) -> Iterator[None]:
        """Have all of the user's channels in use."""
        with self.switched(firecrest_max_sessions=1, firecrest_command_time=0.5):
            busy = threading.Thread(target=self.fire.get, args=("ls", self.fire.home))
            busy.start()
            time.sleep(0.2)
            yield
            busy.join()

    def _compare(self, where: str, key: tuple[str, int], exchange: dict[str, Any], answer: httpx.Response) -> None:
        recorded = body_of(exchange)
        if recorded is None or (isinstance(recorded, dict) and "base64_head" in recorded):
            assert recorded is not None or not answer.content, f"{where} has a body: {answer.text}"
            return
        if not isinstance(recorded, dict):
            assert answer.text == recorded, where
            return
        ours = answer.json()
        if answer.status_code >= 400:
            self._compare_refusals(where, recorded, ours)
            return
        same_shape(where, recorded, ours)
        if "/ops/" in exchange["request"]["path"] and key not in self.tables.shape_only:
            home = exchange["request"]["query"][:1] == [["path", "/home/fireuser"]]
            if not home:
                assert self._plain(ours) == self._plain(recorded, map_it=True), where
        if re.search(r"/jobs/\d+$", exchange["request"]["path"]):
            self._compare_states(where, recorded["jobs"], ours["jobs"])

    def _compare_refusals(self, where: str, recorded: Any, ours: Any) -> None:
        expected = {**recorded, "message": self.mapped(recorded["message"])}
        if recorded["user"] is not None:
            expected["user"] = self.mapped(recorded["user"])
        if recorded["causedBy"]:
            expected["causedBy"] = [self.mapped(text) for text in recorded["causedBy"]]
        assert _without_chance(ours) == _without_chance(expected), where

    def _compare_states(self, where: str, recorded: list[Any], ours: list[Any]) -> None:
        if len(recorded) != 1:
            return
        theirs, mine = dict(recorded[0]["status"]), dict(ours[0]["status"])
        theirs["state"] = re.sub(r"by 2003", "by 2002", theirs["state"])
        if theirs["stateReason"] in ANY_REASON:
            theirs["stateReason"] = mine["stateReason"] = ""
        assert mine == theirs, where

    def _plain(self, value: Any, *, map_it: bool = False) -> Any:
        """Take out of an answer about files what differs from day to day and from machine to machine."""
        if isinstance(value, dict):
            sized = value.get("type", "-") == "-" and value.get("mode", 0o100000) & 0o170000 == 0o100000
            names = value.keys() - VOLATILE - (set() if sized else {"size"})
            return {name: self._plain(value[name], map_it=map_it) for name in sorted(names)}
        if isinstance(value, list):
            return [self._plain(each, map_it=map_it) for each in value]
        if not isinstance(value, str):
            return value
        # Contents that the recording cut off, or that are not those of the sandbox's files, are random bytes.
        if value.endswith(" chars]") or "�" in value:
            return "random"
        return _BY_CHANCE.sub("?", self.mapped(value) if map_it else value)


def _without_chance(body: Any) -> Any:
    return {**body, "message": _BY_CHANCE.sub("?", body["message"])}


def whole_form(body: dict[str, Any], boundary: str) -> bytes:
    """Make a form out of its recorded beginning, of the recorded length."""
    head, mark, _ = base64.b64decode(body["base64_head"]).partition(b"\r\n\r\n")
    tail = f"\r\n--{boundary}--\r\n".encode()
    size = body["bytes"] - len(head) - len(mark) - len(tail)
    return head + mark + (b"\xe6\x01" * size)[:size] + tail


def same_shape(where: str, recorded: Any, ours: Any, *, loose: bool = False) -> None:
    """Check that two values have the same keys and types; loosely, null may stand for a value, or a value for null."""
    if loose and (recorded is None or ours is None):
        return
    if isinstance(recorded, dict):
        assert isinstance(ours, dict), f"{where}: {ours} is not like {recorded}"
        assert ours.keys() == recorded.keys(), f"{where}: keys {sorted(ours)}, not {sorted(recorded)}"
        for key, value in recorded.items():
            same_shape(f"{where}.{key}", value, ours[key], loose=loose)
    elif isinstance(recorded, list):
        assert isinstance(ours, list), f"{where}: {ours} is not like {recorded}"
        if not loose and not where.endswith((".tasks", ".output")):
            assert bool(ours) is bool(recorded), f"{where}: {ours} is not like {recorded}"
        for each in ours if recorded else ():
            one_of_these(where, recorded, each, loose=loose or len(recorded) > 1)
    else:
        kinds = [float if type(each) is int else type(each) for each in (recorded, ours)]
        assert kinds[0] is kinds[1], f"{where}: {ours!r} is not like {recorded!r}"


def one_of_these(where: str, recorded: list[Any], ours: Any, *, loose: bool) -> None:
    """Check that a value has the shape of one of several."""
    problem = None
    for each in recorded:
        try:
            same_shape(f"{where}[]", each, ours, loose=loose)
        except AssertionError as error:
            problem = problem or error
        else:
            return
    assert problem is not None
    raise problem
