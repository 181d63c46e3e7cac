"""The requests of a run, and which step of it each belongs to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from tests.faults.orders import Phase, Request, Strike

_IDS = (
    (re.compile(r"pm-[a-z2-7]{8}-[a-z2-7]{26}-[a-z2-7]{16}(-\d+)?"), "{key}"),
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), "{id}"),
    (re.compile(r"[0-9a-f]{32}"), "{id}"),
    (re.compile(r"code\.tar\.gz\.[\d.]+|\.code\.[\d.]+"), "{part}"),
    (re.compile(r"/\d+(?=/|$)"), "/{n}"),
    (re.compile(r"\d{9,}(\.\d+)?"), "{time}"),
)
JOBS = re.compile(r"/projects/{id}/runs|.*/rest/core/jobs|/firecrest/v2/compute/[\w-]+/jobs")
_LOOKS = re.compile(r"/tracking/.*/runs/search|.*/rest/core/jobs|/firecrest/v2/compute/[\w-]+/jobs")
_UPLOADS = re.compile(r".*/storages/.*|.*/ops/.*")


def route_of(url: str) -> str:
    """A request's path without what differs from run to run."""
    path = unquote(urlsplit(url).path)
    for pattern, name in _IDS:
        path = pattern.sub(name, path)
    return path


def is_ledger(route: str) -> bool:
    """Whether a request is for the notes, or the turns, that are kept at the Prefect server."""
    return route.startswith(("/api/flow_runs/", "/api/v2/concurrency_limits"))


@dataclass(frozen=True)
class Gap:
    """A place in the sequence of requests at which a victim can be struck.

    Attributes:
        step: Of the run.
        strike: Where.
    """

    step: str
    strike: Strike


def gaps(requests: Iterable[Request]) -> Iterator[Gap]:
    """Every gap of an undisturbed run: before each request, and between the site's accept and what we make of it.

    The gap behind any other request is the one before the next. Reading one's own notes back changes nothing anywhere:
    the gap before it is the one behind it.
    """
    posted = False
    seen: set[tuple[str, str, str, int]] = set()
    for request in requests:
        place = (request.phase, request.method, request.route, request.nth)
        if place in seen:
            continue
        seen.add(place)
        if not _reads_notes_back(request):
            yield Gap(step_of(request, posted), _strike(request, after=False))
        is_post = is_submit(request)
        if is_post:
            yield Gap("accept", _strike(request, after=True))
        posted = posted or is_post


def _reads_notes_back(request: Request) -> bool:
    return request.method == "GET" and is_ledger(request.route) and request.nth > 1


def is_submit(request: Request) -> bool:
    """Whether a request is the one that makes the job."""
    return request.phase == "submit" and request.method == "POST" and bool(JOBS.fullmatch(request.route))


def step_of(request: Request, posted: bool) -> str:
    """The step of a run that a request belongs to.

    Args:
        request: The request.
        posted: Whether the job has been sent.
    """
    if request.phase == "gather":
        return "gather"
    if request.phase != "submit":
        closing = request.route.endswith(("runs/get", "runs/update", "runs/log-batch"))
        return "end" if request.phase == "wait" and closing else request.phase
    if is_submit(request):
        return "POST"
    if "/concurrency_limits" in request.route:
        return "turn"
    if is_ledger(request.route):
        return "note of accept" if posted else "announce"
    if request.route.endswith("/actions/start"):
        return "start"
    if _UPLOADS.fullmatch(request.route):
        return "upload"
    if _LOOKS.fullmatch(request.route) or posted:
        return "look again" if posted else "look"
    return "prepare"


def rule_route(route: str) -> str:
    """A route as the sandbox's fault rules take it: a pattern for its templates."""
    route = re.sub(r"/storages/.*/files/.*", "/storages/*/files/*", route)
    route = re.sub(r"/storages/.*/actions/.*", "/storages/*/actions/*", route)
    route = re.sub(r"/actions/\w+$", "/actions/*", route)
    route = re.sub(r"/cedar(-rest)?/", "/*/", route)
    return re.sub(r"{\w+}", "*", route)


def _strike(request: Request, *, after: bool) -> Strike:
    phase: Phase = request.phase  # type: ignore[assignment]
    return Strike(method=request.method, route=request.route, nth=request.nth, phase=phase, after=after)
