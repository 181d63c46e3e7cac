"""Scripted misbehaviour of the sandbox's APIs, and the count of the requests they got."""

from __future__ import annotations

import asyncio
import fnmatch
import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

Action = Literal["delay_before", "delay_after", "status", "drop_before", "drop_after", "status_after", "late"]
Drop = Callable[[Scope], None]

LOG_LENGTH = 20_000
"""Requests that are kept, one by one."""

_TOLD = "The sandbox was told to fail"
_UNICORE_EMPTY = {401, 403, 404, 432}


class Rule(BaseModel):
    """One way to misbehave.

    `delay_before` and `delay_after` wait before the work and between the work and its answer. `status` answers without
    doing the work, `status_after` with the work done. `drop_before` and `drop_after` cut the connection before and
    after the work. `late` answers with `status` (or cuts the connection, where that is null) and does the work
    `seconds` later.

    The route is a template such as `/{site}/rest/core/jobs/{jobId}`, the same with a site's own name
    (`/ALDER/rest/core/jobs/{jobId}`), a pattern for either (`/ALDER/*`), or one path.
    """

    model_config = ConfigDict(extra="forbid")

    action: Action
    route: str = "*"
    method: str = "*"
    account: str = "*"
    seconds: float = Field(1.0, ge=0)
    status: int | None = Field(None, ge=200, le=599)
    retry_after: str | int | None = None
    body: str | None = Field(None, description="null is a body of the kind that the route's server sends")
    content_type: str = "application/json"
    skip: int = Field(0, ge=0, description="let this many requests pass first")
    times: int | None = Field(1, ge=1, description="how often; null is for ever")
    used: int = 0


class Seen(NamedTuple):
    """One request: when it came, and which status answered it (0: no answer)."""

    at: float
    method: str
    path: str
    status: int


class Faults:
    """The rules in force, the counts and the log, shared by the middleware and the control API."""

    def __init__(self, rules: list[Rule]) -> None:
        self.rules = rules
        self.counts: Counter[tuple[str, str, str, int]] = Counter()
        self.log: deque[Seen] = deque(maxlen=LOG_LENGTH)

    def take(self, method: str, route: str, path: str, account: str) -> Rule | None:
        """Give the rule that applies to a request, and use it up by one."""
        for rule in self.rules:
            at_site = route.replace("{site}", path.split("/")[1])
            fits = (
                rule.method in ("*", method)
                and (rule.route in (route, path, at_site) or _matches(rule.route, route, at_site))
                and fnmatch.fnmatchcase(account, rule.account)
            )
            if not fits or rule.times == 0:
                continue
            if rule.skip > 0:
                rule.skip -= 1
                continue
            rule.used += 1
            if rule.times is not None:
                rule.times -= 1
            return rule
        return None


def _matches(pattern: str, *routes: str) -> bool:
    return any(fnmatch.fnmatchcase(route, pattern) for route in routes)


class FaultsMiddleware:
    """Counts every request and plays the rules."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        faults: Faults,
        route_of: Callable[[Scope], str],
        account_of: Callable[[Scope], str],
        drop: Drop,
    ) -> None:
        self._app = app
        self._faults = faults
        self._route_of = route_of
        self._account_of = account_of
        self._drop = drop
        self._late: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection of the server."""
        if scope["type"] != "http" or scope["path"].startswith("/_sandbox/"):
            await self._app(scope, receive, send)
            return
        route, account = self._route_of(scope), self._account_of(scope)
        status, came = 0, time.time()

        async def count(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        rule = self._faults.take(scope["method"], route, scope["path"], account)
        try:
            if rule is None:
                await self._app(scope, receive, count)
            else:
                logger.info("Fault %s on %s %s", rule.action, scope["method"], route)
                await self._play(rule, scope, receive, count)
        finally:
            account = scope.get("sandbox.account", account)
            self._faults.counts[scope["method"], route, account, status] += 1
            self._faults.log.append(Seen(came, scope["method"], scope["path"], status))

    async def _play(self, rule: Rule, scope: Scope, receive: Receive, send: Send) -> None:
        if rule.action == "delay_before":
            await asyncio.sleep(rule.seconds)
            await self._app(scope, receive, send)
        elif rule.action == "delay_after":
            messages = await self._work(scope, await _body(receive))
            await asyncio.sleep(rule.seconds)
            for message in messages:
                await send(message)
        elif rule.action == "status":
            await _body(receive)
            await _answer(rule, scope, send)
        elif rule.action == "status_after":
            await self._work(scope, await _body(receive))
            await _answer(rule, scope, send)
        elif rule.action == "drop_before":
            await self._cut(scope, receive)
        elif rule.action == "drop_after":
            await self._work(scope, await _body(receive))
            await self._cut(scope, receive)
        else:
            body = await _body(receive)
            # Not the request's own scope: the work must not depend on the connection any more.
            late = asyncio.create_task(self._work_late(dict(scope), body, rule.seconds))
            self._late.add(late)
            late.add_done_callback(self._late.discard)
            if rule.status is None:
                await self._cut(scope, receive)
            else:
                await _answer(rule, scope, send)

    async def _cut(self, scope: Scope, receive: Receive) -> None:
        self._drop(scope)
        # The server would answer 500 if we returned before it knows.
        while (await receive())["type"] != "http.disconnect":
            pass

    async def _work(self, scope: Scope, body: bytes) -> list[Message]:
        messages: list[Message] = []
        given = False

        async def receive() -> Message:
            nonlocal given
            if given:  # as if the connection stayed open and silent
                await asyncio.Event().wait()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            messages.append(message)

        await self._app(scope, receive, send)
        return messages

    async def _work_late(self, scope: Scope, body: bytes, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self._work(scope, body)


async def _body(receive: Receive) -> bytes:
    parts = []
    more = True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _default_body(scope: Scope, status: int) -> str:
    if scope["path"].startswith("/firecrest/v2/"):
        return f'{{"errorType":"error","message":"{_TOLD}","causedBy":null,"data":null,"user":null}}'
    if scope["path"].startswith("/firecrest-auth/"):
        return f'{{"error":"unknown_error","error_description":"{_TOLD}"}}'
    if "/rest/core" not in scope["path"]:
        return f'{{"detail": "{_TOLD}"}}'
    return "" if status in _UNICORE_EMPTY else f'{{"errorMessage": "{_TOLD}", "status": {status}}}'


async def _answer(rule: Rule, scope: Scope, send: Send) -> None:
    body = (_default_body(scope, rule.status or 503) if rule.body is None else rule.body).encode()
    headers = [(b"content-type", rule.content_type.encode()), (b"content-length", str(len(body)).encode())]
    if rule.retry_after is not None:
        headers.append((b"retry-after", str(rule.retry_after).encode()))
    await send({"type": "http.response.start", "status": rule.status or 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})
