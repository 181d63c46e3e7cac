"""SIGKILL: at every gap of a submit, at polls, at the end, while gathering; and while an answer is late."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence

from tests.faults.bench import until
from tests.faults.kinds import SCALE
from tests.faults.orders import Strike
from tests.faults.plan import Planned, Recording, place_in_wait
from tests.faults.trial import LIMIT, Trial

LATE = 90.0 / SCALE
"""A job that surfaces 90 s late, scaled as its site's settle time is."""


def plans(recording: Recording, chance: random.Random) -> Sequence[Planned]:
    """All of them for one kind of site."""
    kind = recording.kind
    found = [
        Planned(kind, "SIGKILL", gap.step, killer(gap.strike)) for gap in recording.gaps if gap.strike.phase == "submit"
    ]
    first = [place for place in recording.at("wait") if place.nth == 1]
    found += [Planned(kind, "SIGKILL", "wait", lambda trial: _killed_in_wait(trial, recording)) for _ in range(2)]
    found += [Planned(kind, "SIGKILL", "wait", killer(chance.choice(first)))]
    found += [Planned(kind, "SIGKILL", "end", killer(place, is_open=True)) for place in recording.at("end")[:1]]
    found += [Planned(kind, "SIGKILL", "gather", killer(place, is_open=True)) for place in recording.at("gather")[:1]]
    found += [Planned(kind, "answer late, SIGKILL meanwhile", "accept", _killed_before_a_late_answer)]
    found += [Planned(kind, "accept surfaces 90 s late, SIGKILL", "accept", _killed_before_a_late_job)]
    return found


def killer(place: Strike, *, is_open: bool = False) -> Callable[[Trial], None]:
    """A trial in which the first try dies at a place, and the next brings the run home.

    Args:
        place: Where.
        is_open: Whether the training ends before: what comes after a wait is not reached else.
    """

    def run(trial: Trial) -> None:
        if is_open:
            trial.open_gate()
        _kill_at(trial, place)

    return run


def _killed_in_wait(trial: Trial, recording: Recording) -> None:
    _kill_at(trial, trial.random.choice(place_in_wait(trial, recording)))


def behind(place: Strike) -> Strike:
    """The same request, when its answer came."""
    return dataclasses.replace(place, after=True)


def _kill_at(trial: Trial, place: Strike) -> None:
    one = trial.start(strike=dataclasses.replace(place, action="kill"))
    if place.phase == "submit":
        # Some requests are made until something is so: what was asked twice when it was recorded may be asked once.
        until(lambda: one.ended or one.in_phase("wait"), "the strike, or the end of the submit", LIMIT)
        one.kill()
    one.until_ended()
    trial.expect(one.outcome() is None, f"the first try was to be killed at {place}, and came to {one.outcome()}")
    trial.expect_finished(trial.bring_home())


def _killed_before_a_late_answer(trial: Trial) -> None:
    trial.control.add_fault("delay_after", seconds=30, method="POST", route=trial.kind.jobs)
    one = trial.start()
    trial.one_job()
    one.kill()
    trial.control.clear_faults()
    trial.expect_finished(trial.bring_home())


def _killed_before_a_late_job(trial: Trial) -> None:
    trial.settle = trial.kind.scaled_settle
    trial.control.add_fault("late", status=None, seconds=LATE, method="POST", route=trial.kind.jobs)
    one = trial.start()
    until(lambda: all(rule["used"] for rule in trial.control.call("GET", "/faults")), "the POST is there")
    one.kill()
    trial.control.clear_faults()
    trial.expect_finished(trial.bring_home())
