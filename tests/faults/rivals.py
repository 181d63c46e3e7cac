"""Two submitters of one key at the same instant, in two processes."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tests.faults.bench import until
from tests.faults.plan import Planned, Recording
from tests.faults.slots import give_back, take_turn
from tests.faults.trial import Trial

TOGETHER = 1.0
"""Seconds for which a forced trial keeps both POSTs on their way."""


def plans(recording: Recording, chance: random.Random) -> Sequence[Planned]:
    """All of them for one kind of site."""
    kind = recording.kind
    free = [Planned(kind, "two submitters", "look", lambda trial: both(trial, forced=False)) for _ in range(2)]
    forced = [Planned(kind, "two submitters, POSTs held", "POST", lambda trial: both(trial, forced=True))]
    return [*free, *forced]


def both(trial: Trial, *, forced: bool) -> None:
    """Two processes submit, and both wait for the one job."""
    give_back(trial, take_turn(trial))
    if forced:
        trial.control.add_fault("delay_before", seconds=TOGETHER, times=2, method="POST", route=trial.kind.jobs)
    both = [trial.start(barrier=True, patience=None), trial.start(barrier=True, patience=None)]
    for one in both:
        one.until_ready()
    for one in both:
        one.go_on()
    until(lambda: all(one.ended or one.in_phase("wait") for one in both), "both submits are over", 90)
    trial.open_gate()
    found = [trial.result_of(one) for one in both]
    for outcome in found:
        trial.expect(outcome is not None and (not outcome.error or outcome.ours), f"our error expected, {outcome} came")
        trial.expect(outcome is None or outcome.error != "DuplicateJobs", f"two jobs are live: {outcome}")
    homeless = [outcome for outcome in found if outcome is None or outcome.error]
    trial.expect(len(homeless) < len(found), f"nobody brought it home: {found}")
    trial.expect_finished(trial.bring_home() if homeless else found[0])
