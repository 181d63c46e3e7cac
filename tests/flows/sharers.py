"""A flow that waits for one run, in a process of its own that shares polls, with all pauses shortened."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from prefect import flow

from prefect_mantik import RunHandle, TrainingJob, submit_run, wait_for_run
from prefect_mantik.waiting import sharing
from prefect_mantik.waiting.poller import Poller, Seat


@flow
def waits(name: str) -> None:
    job = TrainingJob.load(name)
    assert isinstance(job, TrainingJob)
    job = job.model_copy(update={"entry_point": "sleep", "parameters": {"seconds": 600}})
    handle: RunHandle = submit_run(job, key=name)
    print("JOB", handle.remote_id, flush=True)
    print("RESULT", wait_for_run(handle, on_failure="return").status.state, flush=True)


def say_each_poll() -> None:
    """Tell who was asked for, and whether somebody else asks for us."""
    asked = Poller._asked

    async def and_say(self: Poller, seats: Sequence[Seat]) -> Any:
        follows = self._sharing is not None and self._sharing.follows
        print("ASKED", *[seat.handle.remote_id for seat in seats], "following" if follows else "", flush=True)
        return await asked(self, seats)

    Poller._asked = and_say  # type: ignore[method-assign]


if __name__ == "__main__":
    sharing.HEARTBEAT, sharing.PATIENCE, sharing.REPLY, sharing.SOON, sharing.GATHER = 2.0, 5.0, 2.0, 2.0, 0.2
    sharing.SPARE = 1000.0
    say_each_poll()
    waits(sys.argv[1])
