"""Calls side by side in daemon threads: an interrupted runner must not wait for trials to end."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

R = TypeVar("R")


def together(calls: Sequence[Callable[[], R]], at_once: int) -> list[R]:
    """Make all calls, some at the same time, and give what they return in their order. The first error is raised."""
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, R | None, BaseException | None]] = queue.SimpleQueue()
    for number in range(len(calls)):
        todo.put(number)

    def work() -> None:
        while True:
            try:
                number = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((number, calls[number](), None))
            except BaseException as error:  # noqa: BLE001  # it is raised where the calls were asked for
                done.put((number, None, error))

    for _ in range(min(at_once, len(calls))):
        threading.Thread(target=work, daemon=True).start()
    results: dict[int, R] = {}
    while len(results) < len(calls):
        number, result, error = done.get()
        if error is not None:
            raise error
        results[number] = result  # type: ignore[assignment]
    return [results[number] for number in range(len(calls))]
