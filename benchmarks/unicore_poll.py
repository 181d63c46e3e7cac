"""What it costs to ask how one UNICORE job is, ours beside pyunicore; and how few requests a site gets from us.

All in one run, over TLS with a verified certificate, on the real UNICORE server where it can run, else the sandbox.
It only reports: where a target is missed it says MISSED, and ends with 0.

    python benchmarks/unicore_poll.py [rounds]
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import os
import re
import ssl
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import certifi
import httpx
from pyunicore.client import Client, Job, Transport
from pyunicore.credentials import UsernamePassword

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.report import Row, report
from prefect_mantik.loop import Tls, call
from prefect_mantik.runs import RunHandle, RunState, RunStatus
from prefect_mantik.sandbox.process import start_sandbox
from prefect_mantik.sites.unicore.jobs import UnicoreJobs
from prefect_mantik.unicore import Password, UnicoreClient, unicore_client
from prefect_mantik.unicore.login import SESSION
from tests.contract.conftest import ALL, UnicoreRoad, real_unicore as real_road
from tests.sandbox_jobs import new_key
from tests.unicore.server import real_unicore

ROUNDS = 100
WARM_UP = 1000
FASTER_THAN_PYUNICORE = 5.0
REQUESTS_FOR_A_SUBMIT = 4
JOBS_AT_ONCE = 100
REQUESTS_IN_FLIGHT = 4

WAITING_JOB = {"Name": "benchmark", "haveClientStageIn": "true"}
"""Of a job that is never started: the cheapest answer for both clients, and the same each time."""

OURS = "ours"
PATH = "pyunicore, verify=<the server's certificate, a path>"
TRUE = "pyunicore, verify=True (certifi's authorities and the server's)"
CONTEXT = "pyunicore, verify=<a context made once>"
FLOOR = "no client at all: bare http.client on a kept-alive connection"


@dataclass
class Seen:
    """What a site got from us.

    Attributes:
        requests: Method and path of each request, in the order of sending.
        most: The highest number of them that had been sent and not yet answered in full.
    """

    requests: list[str] = field(default_factory=list)
    now: int = 0
    most: int = 0


@contextlib.contextmanager
def watched(url: str) -> Iterator[Seen]:
    """Count the requests to a site, in this process, around `httpx.AsyncClient.send`.

    That is after our own limit has let a request through, and until the whole answer is read.

    Args:
        url: The site's REST API.
    """
    seen, site, send = Seen(), urlsplit(url).netloc, httpx.AsyncClient.send

    async def counted(client: httpx.AsyncClient, request: httpx.Request, **options: Any) -> httpx.Response:
        if request.url.netloc.decode() != site:
            return await send(client, request, **options)
        seen.requests.append(f"{request.method} {request.url.path}")
        seen.now += 1
        seen.most = max(seen.most, seen.now)
        try:
            return await send(client, request, **options)
        finally:
            seen.now -= 1

    httpx.AsyncClient.send = counted  # type: ignore[method-assign, assignment]
    try:
        yield seen
    finally:
        httpx.AsyncClient.send = send  # type: ignore[method-assign]


@contextlib.contextmanager
def opened() -> Iterator[tuple[str, UnicoreRoad]]:
    """What the server is, and a road to it; runs track at a sandbox."""
    reason = real_unicore.missing()
    with contextlib.ExitStack() as stack:
        sandbox = stack.enter_context(start_sandbox(tls=True))
        if reason is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="unicore-poll-")))
            yield "real UNICORE/X", real_road(sandbox, stack.enter_context(real_unicore.start(directory)))
            return
        env = sandbox.env
        yield (
            f"the sandbox (no real server: {reason}), UNICORE",
            UnicoreRoad(
                sandbox,
                ALL,
                url=f"{env['MANTIK_SANDBOX_TLS_URL']}/ALDER/rest/core",
                username=env["MANTIK_UNICORE_USERNAME"],
                password=env["MANTIK_UNICORE_PASSWORD"],
                ca_file=env["MANTIK_SANDBOX_CA_FILE"],
            ),
        )


def client_of(road: UnicoreRoad) -> UnicoreClient:
    """Our client, the one that the road's site has too."""
    login = road.site().login
    assert login is not None
    credential = login.credential()  # type: ignore[union-attr]
    assert isinstance(credential, Password)
    return unicore_client(road.url, credential, (), False, Tls(road.ca_file))


def requests_of_one_submit(road: UnicoreRoad) -> Seen:
    """Submit a run: find, POST, find, start; besides the login and the staging."""
    with watched(road.url) as seen:
        asyncio.run(road.submit(new_key("benchmark")))
    return seen


def asked_in_turn(road: UnicoreRoad, client: UnicoreClient, rounds: int) -> dict[str, list[float]]:
    """Seconds of each way to ask for the same job, all once a round; who is first changes with the round."""
    job = call(client.submit, WAITING_JOB)
    jobs, url = UnicoreJobs(client), f"{road.url}/jobs/{job}"

    def by_pyunicore(verify: Any) -> Callable[[], Any]:
        theirs = Job(Transport(UsernamePassword(road.username, road.password), verify=verify), url, cache_time=0)
        return lambda: theirs.properties

    ways: dict[str, Callable[[], Any]] = {
        OURS: lambda: call(jobs.status, job),
        PATH: by_pyunicore(road.ca_file),
        TRUE: by_pyunicore(True),
        CONTEXT: by_pyunicore(ssl.create_default_context(cafile=road.ca_file)),
        FLOOR: by_hand(road, urlsplit(url).path),
    }
    assert ways[OURS]().state is RunState.SCHEDULED
    assert {ways[way]()["status"] for way in ways if way != OURS} == {"READY"}
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(WARM_UP):  # a site's Java has run for weeks, this one for seconds
        ways[FLOOR]()
    for number in range(-10, rounds):  # the first ten are not counted
        names = list(ways)
        first = number % len(names)
        for name in names[first:] + names[:first]:
            began = time.perf_counter()
            ways[name]()
            if number >= 0:
                taken[name].append(time.perf_counter() - began)
    return taken


def by_hand(road: UnicoreRoad, path: str) -> Callable[[], Any]:
    """A question over a connection and in a session that stay open: what the server and the wire need at least."""
    site = urlsplit(road.url)
    context = ssl.create_default_context(cafile=road.ca_file)
    connection = http.client.HTTPSConnection(site.hostname or "", site.port, context=context)

    def asked(path: str, headers: dict[str, str]) -> tuple[http.client.HTTPResponse, Any]:
        connection.request("GET", path, headers={"Accept": "application/json", **headers})
        response = connection.getresponse()
        return response, json.loads(response.read())

    login = base64.b64encode(f"{road.username}:{road.password}".encode()).decode()
    session = asked(site.path, {"Authorization": f"Basic {login}"})[0].headers[SESSION]
    return lambda: asked(f"{path}?fields=status,statusMessage,exitCode", {SESSION: session})[1]


def asked_at_once(road: UnicoreRoad, client: UnicoreClient) -> list[tuple[Seen, float]]:
    """Poll many live jobs in one call, as a wait for them does, twice; what the site got, and the seconds.

    The jobs wait, and were not submitted by the site that polls them: the first poll also writes them fresh tokens.
    """

    async def submitted() -> list[str]:
        return await asyncio.gather(*(client.submit(WAITING_JOB) for _ in range(JOBS_AT_ONCE)))

    site = road.open()
    handles = [
        RunHandle(site=None, site_name=site.name, kind=site.kind, remote_id=job, site_key="pm-benchmark", name=job)
        for job in call(submitted)
    ]
    polls = []
    for _ in range(2):
        with watched(road.url) as seen:
            began = time.perf_counter()
            statuses: dict[RunHandle, RunStatus] = call(site.poll, handles)
            polls.append((seen, time.perf_counter() - began))
        assert {status.state for status in statuses.values()} == {RunState.SCHEDULED}, statuses
    assert len(polls[1][0].requests) == JOBS_AT_ONCE, Counter(polls[1][0].requests)
    return polls


def submit_row(seen: Seen) -> Row:
    """What one submit asked of the site."""
    kinds: dict[str, Counter[str]] = {"login": Counter(), "staging": Counter(), "others": Counter()}
    for request in seen.requests:
        login, staging = request.endswith(("/rest/core", "/token")), "/storages/" in request
        method, _, path = request.partition(" ")
        shown = f"{method} " + re.sub(r"^/jobs/[^/]+", "/jobs/{job}", path.partition("/rest/core")[2])
        kinds["login" if login else "staging" if staging else "others"][shown] += 1
    others = sum(kinds["others"].values())
    listed = ", ".join(f"{count} x {request}" for request, count in kinds["others"].items())
    note = (
        f"{listed}; besides {sum(kinds['login'].values())} of the login and {sum(kinds['staging'].values())} of the "
        "staging"
    )
    target = f"<= {REQUESTS_FOR_A_SUBMIT}"
    return Row("UNICORE, requests of one submit", others, None, None, target, others <= REQUESTS_FOR_A_SUBMIT, "", note)


def poll_rows(taken: dict[str, list[float]], how: str) -> list[Row]:
    """The medians, ours beside each of the others."""
    ours, floor = statistics.median(taken[OURS]), statistics.median(taken[FLOOR])
    rows = []
    for name in (PATH, TRUE, CONTEXT, FLOOR):
        peer = statistics.median(taken[name])
        aimed = name in (PATH, TRUE)
        impossible = floor * FASTER_THAN_PYUNICORE > peer and aimed
        rows.append(
            Row(
                f"UNICORE, one status: beside {name.partition(' (')[0].partition(':')[0]}",
                ours * 1000,
                peer * 1000,
                ours / peer,
                f"<= 1/{FASTER_THAN_PYUNICORE:.0f}" if aimed else "",
                peer / ours >= FASTER_THAN_PYUNICORE if aimed else None,
                "ms",
                f"{how}{'; no client can meet it here, the bare request is too long' if impossible else ''}",
            )
        )
    return rows


def main() -> int:
    """Measure and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    # Nobody stands between us and this machine, for pyunicore neither; and what it trusts by default is enough here.
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "localhost,127.0.0.1"
    with opened() as (server, road), tempfile.NamedTemporaryFile("w", suffix=".pem") as authorities:
        authorities.write(Path(certifi.where()).read_text() + Path(road.ca_file).read_text())
        authorities.flush()
        os.environ["SSL_CERT_FILE"] = authorities.name
        client = client_of(road)
        submit = requests_of_one_submit(road)
        taken = asked_in_turn(road, client, rounds)
        polls = asked_at_once(road, client)
        login = Transport(UsernamePassword(road.username, road.password), verify=road.ca_file)
        version = Client(login, road.url).properties["server"]["version"]
    how = f"{server} {version} over TLS, verified; median of {rounds}, in turn, after {WARM_UP} requests to warm it up"
    most = max(seen.most for seen, _ in polls)
    told = ", then ".join(f"{len(seen.requests)} in {seconds * 1000:.0f} ms" for seen, seconds in polls)
    name = f"UNICORE, requests in flight, {JOBS_AT_ONCE} waiting jobs polled at once"
    note = f"counted in this process until the whole answer is read; requests: {told}"
    target = f"<= {REQUESTS_IN_FLIGHT}"
    report(
        *poll_rows(taken, how),
        submit_row(submit),
        Row(name, most, None, None, target, most <= REQUESTS_IN_FLIGHT, "", note),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
