"""The one background event loop of a process, and one HTTP client per account on it.

Every client and every wait lives on this loop, a daemon thread, so that connections are shared by all flows, tasks
and threads of a process. `verb` blocks on it, `averb` awaits it. A waiter that is interrupted or cancelled detaches
from what it waited for; requests that others share go on.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import logging
import os
import re
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import httpx

P = ParamSpec("P")
T = TypeVar("T")

MAX_CALLS_IN_FLIGHT = 4
"""Per account: gateways ask for restraint, and FirecREST's limits are per user."""

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_caches: list[Callable[[], None]] = []


def background_loop() -> asyncio.AbstractEventLoop:
    """Return the process's event loop, started on first use and anew after a fork."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="prefect-mantik", daemon=True).start()
        return _loop


def per_process(function: Callable[P, T]) -> Callable[P, T]:
    """Keep what a function made for its arguments, for the life of this process: what lives on the loop dies with it.

    The arguments must be hashable. A forked child starts with nothing.
    """
    cached = functools.lru_cache(maxsize=None)(function)
    _caches.append(cached.cache_clear)
    return cast("Callable[P, T]", cached)


def _forget_after_fork() -> None:
    """A child of fork has the parent's objects but not its thread: start over."""
    global _lock, _loop
    _lock, _loop = threading.Lock(), None
    for clear in _caches:
        clear()


def _submit(
    function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
) -> concurrent.futures.Future[T]:
    """Start a coroutine on the loop with the caller's context variables, so that run loggers work there."""
    loop, context = background_loop(), contextvars.copy_context()
    future: concurrent.futures.Future[T] = concurrent.futures.Future()

    def start() -> None:
        task = context.run(loop.create_task, function(*args, **kwargs))
        future.add_done_callback(
            lambda done: loop.call_soon_threadsafe(task.cancel) if done.cancelled() and not task.done() else None
        )
        task.add_done_callback(functools.partial(_copy_outcome, future))

    loop.call_soon_threadsafe(start)
    return future


def _copy_outcome(future: concurrent.futures.Future[T], task: asyncio.Task[T]) -> None:
    if task.cancelled():
        future.cancel()
    if not future.set_running_or_notify_cancel():
        return
    error = task.exception()
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(task.result())


def call(function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a coroutine function on the background loop and block until it is done.

    An interruption of the caller (Ctrl-C, Prefect's cancel) cancels the coroutine and goes on up.
    """
    if _on_background_loop():
        raise RuntimeError(f"{function.__qualname__} would wait for itself: await its async twin here.")
    future = _submit(function, *args, **kwargs)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


async def acall(function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a coroutine function on the background loop and await it on the caller's."""
    if _on_background_loop():
        return await function(*args, **kwargs)
    return await asyncio.wrap_future(_submit(function, *args, **kwargs))


def _on_background_loop() -> bool:
    try:
        return asyncio.get_running_loop() is _loop
    except RuntimeError:
        return False


def start_apart(work: Coroutine[Any, Any, T], context: contextvars.Context | None = None) -> asyncio.Task[T]:
    """Start what outlives whoever starts it: without the Prefect client of a task run, which is closed with that.

    Args:
        work: What is to be done.
        context: In a copy of which context; by default of the caller's.
    """
    from prefect.context import AsyncClientContext

    context = context.copy() if context else contextvars.copy_context()
    context.run(AsyncClientContext.__var__.set, None)  # type: ignore[arg-type]
    return context.run(asyncio.ensure_future, work)


class SingleFlight:
    """One call in flight for all who ask at the same time. A cancelled asker detaches; the call goes on."""

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None

    async def run(self, start: Callable[[], Awaitable[T]]) -> T:
        """Join the call that is under way, or start one."""
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(_as_coroutine(start))
        result: T = await asyncio.shield(self._task)
        return result


async def _as_coroutine(start: Callable[[], Awaitable[T]]) -> T:
    return await start()


class Tls(NamedTuple):
    """How a server's certificate is verified.

    Attributes:
        ca: Certificates to trust, as PEM text or the path of a PEM file. Empty: those that Python trusts.
        verify: False accepts any certificate.
    """

    ca: str = ""
    verify: bool = True


VERIFIED = Tls()


@per_process
def tls_context(tls: Tls = VERIFIED) -> ssl.SSLContext:
    """The one TLS context of the process for a trust store: loading one takes 30 ms and a megabyte each time."""
    if not tls.verify:
        return httpx.create_ssl_context(verify=False)
    if not tls.ca:
        return httpx.create_ssl_context()
    is_text = "-----BEGIN" in tls.ca
    return ssl.create_default_context(cadata=tls.ca if is_text else None, cafile=None if is_text else tls.ca)


@per_process
def http_client(account: str, loopback: bool = False, tls: Tls = VERIFIED) -> httpx.AsyncClient:
    """The HTTP client of one account, to be used on the background loop only.

    It never follows redirects (a token would travel along), and httpx never reads netrc by itself.

    Args:
        account: User name and server, what tells accounts apart.
        loopback: Whether the server is on this machine: then no proxy stands between.
        tls: How its certificate is verified.
    """
    return httpx.AsyncClient(
        verify=tls_context(tls),
        trust_env=not loopback,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=MAX_CALLS_IN_FLIGHT),
        headers={"User-Agent": "prefect-mantik"},
    )


@contextlib.asynccontextmanager
async def calls_in_flight(account: str, *, repeatable: bool) -> AsyncIterator[None]:
    """Wait for one's turn: four calls of an account at a time, of which one is never a submit (those take minutes).

    Args:
        account: As for `http_client`.
        repeatable: False for submits.
    """
    async with contextlib.AsyncExitStack() as stack:
        if not repeatable:
            await stack.enter_async_context(_slots(account, MAX_CALLS_IN_FLIGHT - 1))
        await stack.enter_async_context(_slots(account, MAX_CALLS_IN_FLIGHT))
        yield


@per_process
def _slots(account: str, number: int) -> asyncio.Semaphore:
    return asyncio.Semaphore(number)


class _HideConnectionIds(logging.Filter):
    """httpx logs the URL of each request, and a Connection ID is a secret."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = re.sub(r"(/connections/)[^/\s\"]+", r"\1***", record.getMessage()), ()
        return True


logging.getLogger("httpx").addFilter(_HideConnectionIds())


class HideHeader(logging.Filter):
    """httpcore logs the headers of each answer, of which some are as good as a login.

    Args:
        header: Its name.
    """

    def __init__(self, header: str) -> None:
        super().__init__()
        self._header = header.lower()

    def filter(self, record: logging.LogRecord) -> bool:
        """Take the header's value out."""
        text = record.getMessage()
        if self._header in text.lower():
            record.msg, record.args = re.sub(rf"(?i)({self._header}', b')[^']+", r"\1***", text), ()
        return True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
