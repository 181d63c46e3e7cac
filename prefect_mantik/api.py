"""Calls to a JSON API as somebody: deadlines, repeats, and errors that a person can use."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path, PurePosixPath
from time import monotonic
from typing import Any, ParamSpec, Protocol, TypeVar
from urllib.parse import quote, urlsplit

import anyio
import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_before_delay, wait_random_exponential

from prefect_mantik.environment import is_loopback
from prefect_mantik.errors import ConfigurationError, LoginRefused, NotFound, RequestFailed, ServiceUnavailable
from prefect_mantik.log import run_logger
from prefect_mantik.loop import VERIFIED, Tls, calls_in_flight, http_client, per_process
from prefect_mantik.responses import cause, explanation, hidden, retry_after, server_time, shortened

P = ParamSpec("P")
R = TypeVar("R")

TOTAL_TIMEOUT = 120.0
"""Seconds that one call may take, with all its repeats."""

CONNECT_TIMEOUT = 10.0

_BACKOFF = wait_random_exponential(multiplier=0.5, max=20)
_SECONDS_WORTH_A_LINE = 5.0
_CHUNK = 1 << 18


_patience: ContextVar[float] = ContextVar("patience", default=math.inf)
_urgent: ContextVar[bool] = ContextVar("urgent", default=False)


@contextlib.contextmanager
def impatient(seconds: float) -> Iterator[None]:
    """Let no call in this context take longer, with its repeats: for somebody who waits in front of a terminal."""
    token = _patience.set(seconds)
    try:
        yield
    finally:
        _patience.reset(token)


def urgent(work: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Let calls of a coroutine function be tried even where a server asked to slow down: a cancel saves core-hours."""

    @functools.wraps(work)
    async def at_once(*args: P.args, **more: P.kwargs) -> R:
        token = _urgent.set(True)
        try:
            return await work(*args, **more)
        finally:
            _urgent.reset(token)

    return at_once


class Login(Protocol):
    """Says who calls."""

    async def headers(self) -> Mapping[str, str]:
        """The headers that make a request ours, valid now."""
        ...

    def outdated(self, response: httpx.Response) -> bool:
        """Whether a refusal may be due to headers that ended early: then fresh ones get one chance."""
        ...


class TokenSource(Protocol):
    """Gives a valid bearer token, and is told when a server refused one."""

    async def token(self) -> str:
        """Return a token that is valid now."""
        ...

    def invalidate(self, token: str) -> None:
        """Never return this token again."""
        ...


class BearerLogin:
    """Says who calls by a bearer token.

    Args:
        tokens: Where the tokens come from.
    """

    def __init__(self, tokens: TokenSource) -> None:
        self._tokens = tokens

    async def headers(self) -> dict[str, str]:
        """See `Login`."""
        return {"Authorization": f"Bearer {await self._tokens.token()}"}

    def outdated(self, response: httpx.Response) -> bool:
        """On a 401 the token ended early, by the server's clock. See `Login`."""
        if response.status_code != 401:
            return False
        self._tokens.invalidate(response.request.headers["Authorization"].removeprefix("Bearer "))
        return True


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        method: HTTP method.
        path: Path with placeholders in braces, as errors show it.
        values: What the placeholders stand for. The slashes of a `PurePosixPath` stay.
        params: Query parameters.
        json: Body, or
        content: body as bytes, or
        upload: a file that is the body, or
        files: parts of a multipart form, as httpx takes them.
        headers: More headers, such as `Accept`.
        repeatable: Whether the call may be made again after an answer that leaves open whether it was served. Where
            False, it is made again only after a 429 or when no connection came about.
        timeout: Seconds for the call with all its repeats; one try of a repeatable call takes half of it at most.
        try_timeout: Seconds that one try may take at most.
        hide: Secrets that the request holds: a server may repeat them, an error must not.
    """

    method: str
    path: str
    values: Mapping[str, object] = field(default_factory=dict, repr=False)
    params: Mapping[str, str] | None = field(default=None, repr=False)
    json: Any = field(default=None, repr=False)
    content: bytes | None = field(default=None, repr=False)
    upload: Path | None = field(default=None, repr=False)
    files: Mapping[str, Any] | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    repeatable: bool = True
    timeout: float = TOTAL_TIMEOUT
    try_timeout: float = math.inf
    hide: Sequence[str] = field(default=(), repr=False)

    def __str__(self) -> str:
        return f"{self.method} {self.path or '/'}"


class JsonApi:
    """One JSON API, called as one account.

    Args:
        name: What to call the server in messages, such as "the Mantik platform".
        base_url: Scheme, host, port and path prefix.
        username: The account, for the connection pool and for messages.
        login: Says who calls; None for calls that everybody may make.
        tls: How the server's certificate is verified.
    """

    def __init__(
        self, name: str, base_url: str, username: str, login: Login | None = None, tls: Tls = VERIFIED
    ) -> None:
        self.name = name
        self.base_url = base_url.rstrip("/")
        self.username = username
        self._login, self._tls = login, tls
        url = urlsplit(self.base_url)
        self._account = f"{username}@{url.scheme}://{url.netloc}"
        self._loopback = is_loopback(url.hostname or "")
        self._ahead = timedelta(0)
        self._quiet_until = 0.0

    def now(self) -> datetime:
        """The server's clock, as far as its answers tell: ours may be wrong by hours."""
        return datetime.now(timezone.utc) + self._ahead

    @property
    def quiet(self) -> float:
        """Seconds for which the server still asks not to be asked again."""
        return max(0.0, self._quiet_until - monotonic())

    async def call(self, call: Call) -> Any:
        """Make a call and return the JSON that the server answers (None for an empty body).

        Raises:
            LoginRefused: 401, also with a fresh token.
            NotFound: 404.
            RequestFailed: The server refused the request.
            ServiceUnavailable: No usable answer.
        """
        response = await self.fetch(call)
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError:
            raise self._error(ServiceUnavailable, call, response, "answered something that is not JSON") from None

    async def fetch(self, call: Call) -> httpx.Response:
        """As `call`, but return the whole response."""
        repeats = AsyncRetrying(
            retry=retry_if_exception_type(Repeat),
            wait=_pause,
            stop=stop_before_delay(min(call.timeout, _patience.get())),
            before_sleep=_say_pause,
            reraise=True,
        )
        try:
            async for attempt in repeats:
                with attempt:
                    return await self._once(call)
        except Repeat as last:
            failure = last.error
        raise failure

    async def _once(self, call: Call) -> httpx.Response:
        response = await self._send(call)
        if self._login is not None and self._login.outdated(response):
            response = await self._send(call)
        if response.is_success:
            return response
        raise self._judged(response, call)

    def _leave_alone(self, call: Call) -> None:
        """Send nothing before the moment that a 429 named, whichever call of the account it answered."""
        seconds = _refusing_until().get(self._account, 0.0) - monotonic()
        if seconds > 0 and not _urgent.get():
            # Without the seconds: what is said once is known by its words.
            what = f"{self.name} asked to slow down, and is not asked before the time that it named. Nothing was sent."
            error = ServiceUnavailable(
                f"{call}: {what}", method=call.method, path=call.path, sent=False, retry_after=seconds
            )
            raise Repeat(error, seconds)

    async def _send(self, call: Call) -> httpx.Response:
        who = await self._login.headers() if self._login else {}
        try:
            request = self._request(call, who)
            # Uploads take long, as submits do: one slot is left for what is asked meanwhile.
            async with calls_in_flight(self._account, repeatable=call.repeatable and not (call.upload or call.files)):
                self._leave_alone(call)
                with anyio.fail_after(self._seconds_for_one_try(call)):
                    response = await self._client().send(request)
        except (httpx.LocalProtocolError, UnicodeEncodeError):
            failure: Exception = ConfigurationError(  # its own words would repeat the header
                f"{call}: what stands for {self.username!r} at {self.base_url} (a token, a password, a preference) "
                "holds a character that no HTTP header can hold, such as a line break: save it again."
            )
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            failure = self._not_connected(call, error)
        except (httpx.RequestError, TimeoutError) as error:
            what = f"no usable answer from {self.base_url} ({cause(error)})."
            failure = ServiceUnavailable(f"{call}: {what}", method=call.method, path=call.path)
        else:
            self._ahead = server_time(response) - datetime.now(timezone.utc)
            return response
        # Outside of `except`: httpx's errors hold the request with its secrets, and would be kept as a context.
        may_repeat = isinstance(failure, ServiceUnavailable) and (call.repeatable or not failure.sent)
        raise Repeat(failure) if isinstance(failure, ServiceUnavailable) and may_repeat else failure

    def _seconds_for_one_try(self, call: Call) -> float:
        share = call.timeout / 2 if call.repeatable else call.timeout
        return min(share, call.try_timeout, _patience.get())

    def _not_connected(self, call: Call, error: httpx.TransportError) -> RequestFailed:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return RequestFailed(
                f"{call}: the certificate of {self.base_url} is not trusted ({cause(error)}). Nothing was sent. If "
                "the site has a certificate authority of its own, give its certificates: `ca_certificates` of a "
                "UNICORE site's block, or a file named by SSL_CERT_FILE where the flow runs.",
                method=call.method,
                path=call.path,
            )
        return ServiceUnavailable(
            f"{call}: no connection to {self.base_url} ({cause(error)}). Nothing was sent. Check the URL and the "
            "network.",
            method=call.method,
            path=call.path,
            sent=False,
        )

    def _client(self) -> httpx.AsyncClient:
        return http_client(self._account, self._loopback, self._tls)

    def _request(self, call: Call, who: Mapping[str, str]) -> httpx.Request:
        """A new one for each try: the body of an upload can be read once only."""
        filled = call.path.format(**{name: _quoted(value) for name, value in call.values.items()})
        size = {"Content-Length": str(call.upload.stat().st_size)} if call.upload else {}
        return self._client().build_request(
            call.method,
            f"{self.base_url}{filled}",
            params=call.params,
            json=call.json,
            content=_chunks(call.upload) if call.upload else call.content,
            files=call.files,
            headers={"Accept": "application/json", **call.headers, **size, **who},
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT),
        )

    def _judged(self, response: httpx.Response, call: Call) -> Exception:
        status = response.status_code
        if status == 429:
            again = self._heeded(response)
            until = _refusing_until()
            until[self._account] = max(until.get(self._account, 0.0), monotonic() + (again or 0.0))
            error = self._error(ServiceUnavailable, call, response, "asks to slow down", sent=False, retry_after=again)
            return Repeat(error, again)
        if response.is_redirect:
            return self._error(ServiceUnavailable, call, response, "sends us elsewhere, which we do not follow")
        if status >= 500 or status in (408, 425):
            again = self._heeded(response)
            error = self._error(ServiceUnavailable, call, response, "could not answer", retry_after=again)
            return Repeat(error, again) if call.repeatable else error
        if status == 401:
            return self._error(LoginRefused, call, response, f"refused the login of {self.username!r}")
        if status == 404:
            return self._error(NotFound, call, response, "knows no such thing")
        return self._error(RequestFailed, call, response, "refused the request")

    def _heeded(self, response: httpx.Response) -> float | None:
        again = retry_after(response)
        self._quiet_until = max(self._quiet_until, monotonic() + (again or 0.0))
        return again

    def _error(
        self, kind: type[RequestFailed], call: Call, response: httpx.Response, what: str, **more: Any
    ) -> RequestFailed:
        told = response.request.headers.get("Authorization", "").partition(" ")[2]
        detail = shortened(hidden(self._explained(response), [told, *call.hide]))
        message = f"{call}: {self.name} {what} (HTTP {response.status_code}: {detail.rstrip('.')})."
        return kind(message, method=call.method, path=call.path, status=response.status_code, detail=detail, **more)

    def _explained(self, response: httpx.Response) -> str:
        """What the server said of an error."""
        return explanation(response)


@per_process
def _refusing_until() -> dict[str, float]:
    """Until when an account's server, which answered 429, is not to be asked: by our monotonic clock."""
    return {}


def _quoted(value: object) -> str:
    return quote(str(value), safe="/" if isinstance(value, PurePosixPath) else "")


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    async with await anyio.open_file(path, "rb") as file:
        while chunk := await file.read(_CHUNK):
            yield chunk


class Repeat(Exception):
    """An answer after which the same call may be made again."""

    def __init__(self, error: RequestFailed, retry_after: float | None = None) -> None:
        super().__init__(str(error))
        self.error, self.retry_after = error, retry_after


def _pause(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    told = error.retry_after if isinstance(error, Repeat) else None
    jittered = _BACKOFF(state)
    return jittered if told is None else told + min(jittered, 1.0)


def _say_pause(state: RetryCallState) -> None:
    seconds = state.upcoming_sleep
    error = state.outcome.exception() if state.outcome else None
    if seconds >= _SECONDS_WORTH_A_LINE and isinstance(error, Repeat):
        run_logger().warning("%s Asking again in %.0f s.", error.error, seconds)
