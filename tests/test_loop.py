"""The background loop: shared, interruptible, made anew after a fork."""

from __future__ import annotations

import asyncio
import contextvars
import os
import subprocess
import sys
import threading
import time

import pytest

from prefect_mantik.loop import SingleFlight, acall, background_loop, call, http_client

word = contextvars.ContextVar("word", default="none")


async def _loop_and_word() -> tuple[asyncio.AbstractEventLoop, str]:
    return asyncio.get_running_loop(), word.get()


def test_everything_runs_on_one_loop_with_the_callers_context() -> None:
    word.set("mine")
    assert call(_loop_and_word) == (background_loop(), "mine")
    seen = []
    threads = [threading.Thread(target=lambda: seen.append(call(_loop_and_word)[0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [background_loop()] * 4


async def test_the_twin_awaits_the_same_loop() -> None:
    assert (await acall(_loop_and_word))[0] is background_loop()


def test_an_error_comes_as_it_is() -> None:
    async def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        call(fail)


def test_waiting_for_oneself_is_an_error_not_a_deadlock() -> None:
    async def inner() -> None: ...

    async def outer() -> None:
        call(inner)

    with pytest.raises(RuntimeError, match="await its async twin"):
        call(outer)


def test_an_interrupted_caller_cancels_what_it_waited_for() -> None:
    script = """
import asyncio, os, signal, threading
from prefect_mantik.loop import call
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would we
ended = threading.Event()
async def wait():
    try:
        await asyncio.sleep(60)
    finally:
        ended.set()
threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    call(wait)
except KeyboardInterrupt:
    assert ended.wait(5), "the coroutine went on"
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "interrupted\n", done.stderr


async def test_a_cancelled_asker_detaches_from_a_shared_call() -> None:
    flight, calls, gate = SingleFlight(), [], asyncio.Event()

    async def slow() -> str:
        calls.append(1)
        await gate.wait()
        return "token"

    first, second = (asyncio.ensure_future(flight.run(slow)) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    gate.set()
    assert await second == "token"
    assert calls == [1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_forked_child_starts_over() -> None:
    parent_loop, parent_client = background_loop(), http_client("someone@somewhere")
    pid = os.fork()
    if pid == 0:
        fine = call(_loop_and_word)[0] is not parent_loop and http_client("someone@somewhere") is not parent_client
        os._exit(0 if fine else 1)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.05)
    os.kill(pid, 9)
    pytest.fail("the child hangs")
