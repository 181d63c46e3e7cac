"""Answers that are lost, late, refused for a while: the process lives, and has to make sense of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from tests.faults.kills import LATE
from tests.faults.orders import Strike
from tests.faults.plan import Planned, Recording, paused_at, place_in_wait
from tests.faults.steps import rule_route
from tests.faults.trial import Trial

_STEPS = ("prepare", "look", "POST", "upload", "start", "look again", "wait", "end", "gather")
_RETRY_AFTER = 2


def plans(recording: Recording, chance: random.Random) -> Sequence[Planned]:
    """All of them for one kind of site."""
    kind, steps = recording.kind, [step for step in _STEPS if recording.has(step)]

    def at(step: str, action: str, **rule: Any) -> Callable[[Trial], None]:
        return lambda trial: faulty(trial, recording, step, action, **rule)

    found = [Planned(kind, "dropped after accept", step, at(step, "drop_after")) for step in steps]
    found += [
        Planned(kind, "dropped before accept", step, at(step, "drop_before"))
        for step in steps
        if step in ("look", "POST", "upload", "wait")
    ]
    found += [
        Planned(kind, "5xx burst", step, at(step, "status", status=chance.choice((500, 502, 503, 504)), times=3))
        for step in steps
        if step not in ("prepare", "look again", "end")
    ]
    found += [
        Planned(kind, "5xx, and the work was done", step, at(step, "status_after", status=503))
        for step in steps
        if step in ("POST", "start")
    ]
    found += [
        Planned(kind, "429 with Retry-After", step, at(step, "status", status=429, retry_after=_RETRY_AFTER))
        for step in ("look", "POST", "wait")
    ]
    return [*found, Planned(kind, "accept surfaces 90 s late", "POST", lambda trial: _late(trial))]


def faulty(trial: Trial, recording: Recording, step: str, action: str, **rule: Any) -> None:
    """Stop a try at a step, let the sandbox misbehave there, and see the run come home."""
    places = place_in_wait(trial, recording) if step == "wait" else recording.at(step)
    if step in ("end", "gather"):
        trial.open_gate()
    one, place = paused_at(trial, places)
    trial.control.add_fault(action, method=place.method, route=rule_route(place.route), **rule)
    trial.open_gate()
    one.go_on()
    found = trial.result_of(one)
    used = [fault["used"] for fault in trial.control.call("GET", "/faults")]
    trial.expect(all(used), f"the fault was to meet {place}, and met nothing")
    trial.control.clear_faults()
    trial.outcome = found
    if found and found.error:
        trial.expect(found.ours, f"an error of ours expected, {found} came")
        trial.expect(step not in ("wait", "end"), f"a wait was not to end by an error, {found} came")
        found = trial.bring_home()
    trial.expect_finished(found)
    if rule.get("status") == 429:
        _expect_patience(trial, place)


def _expect_patience(trial: Trial, place: Strike) -> None:
    """No request of the account to that route came earlier than told."""
    asked = [request for one in trial.tries for request in one.requests() if request.route == place.route]
    for refused in [request for request in asked if request.status == 429]:
        wait = float(refused.retry_after or "nan")
        early = [request for request in asked if refused.answered < request.sent < refused.answered + wait - 0.05]
        trial.expect(wait == _RETRY_AFTER, f"Retry-After was {refused.retry_after!r}")
        trial.expect(not early, f"asked again {[request.sent - refused.answered for request in early]} s after a 429")
    trial.expect(any(request.status == 429 for request in asked), "nobody saw the 429")


def _late(trial: Trial) -> None:
    trial.settle = trial.kind.scaled_settle
    trial.control.add_fault("late", status=None, seconds=LATE, method="POST", route=trial.kind.jobs)
    trial.expect_finished(trial.bring_home())
