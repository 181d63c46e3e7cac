"""The turn of a key's submitters, which Prefect may not give back, and a process that is stopped while it has it."""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Sequence
from typing import Any

from prefect_mantik import turns
from tests.faults.kinds import FIRECREST, PLATFORM, UNICORE
from tests.faults.plan import Planned, Recording, paused_at
from tests.faults.trial import Trial

Slot = dict[str, Any]

_KEYS = 200

BEYOND = 5.0
"""Seconds after the end of a lease."""


def plans(recording: Recording, chance: random.Random) -> Sequence[Planned]:
    """All of them for one kind of site."""
    kind = recording.kind
    found = []
    if kind.name in (PLATFORM, FIRECREST):
        found.append(Planned(kind, "slot never given back", "look", _held))
    steps = {PLATFORM: ("look", "accept"), UNICORE: ("POST", "accept")}.get(kind.name, ())
    for step in steps:
        fault = "SIGSTOP across the slot's lease"
        found.append(Planned(kind, fault, step, lambda trial, step=step: _stopped(trial, recording, step)))
    return found


def _held(trial: Trial) -> None:
    """Somebody holds the slot for ever: the submit goes on without."""
    slot = take_turn(trial)
    try:
        began = time.monotonic()
        trial.expect_finished(trial.bring_home(patience=None))
        took = time.monotonic() - began
        trial.expect(took > turns.PATIENCE, f"the slot was to be waited for, and it took {took:.1f} s in all")
    finally:
        give_back(trial, slot)


def take_turn(trial: Trial) -> Slot:
    """Take the turn of the trial's key, past the package; another key is taken where a dead process has its turn."""
    for _ in range(_KEYS):
        name = f"prefect-mantik-submit-{zlib.crc32(trial.key.site_key.encode()) % turns.LIMITS:02d}"
        trial.bench.prefect("/v2/concurrency_limits/", {"name": name, "limit": 1}, also=(409,))
        slot: Slot = {"names": [name], "slots": 1, "mode": "concurrency"}
        if trial.bench.prefect("/v2/concurrency_limits/increment", slot, also=(423,)) is not None:
            return slot
        trial.key = trial.bench.new_key(trial.key.name)
    raise TimeoutError("no turn is free")


def give_back(trial: Trial, slot: Slot) -> None:
    """Let others have the turn."""
    trial.bench.prefect("/v2/concurrency_limits/decrement", slot)


def _stopped(trial: Trial, recording: Recording, step: str) -> None:
    """A process stands still while it holds the slot; another brings the run home; then the first wakes up."""
    began = time.monotonic()
    one, _ = paused_at(trial, recording.at(step))
    one.stop()
    trial.expect_finished(trial.bring_home())
    time.sleep(max(0.0, began + turns.LEASE + BEYOND - time.monotonic()))  # the lease has no event to wait for
    one.go_on()
    one.resume()
    trial.expect_finished(trial.result_of(one))
