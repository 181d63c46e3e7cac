"""Tokens that end, passwords that change, accounts that are locked, sessions that are forgotten."""

from __future__ import annotations

import random
from collections.abc import Sequence

from prefect_mantik.errors import LoginRefused
from tests.faults.bench import until
from tests.faults.kinds import ASKED, PLATFORM, UNICORE
from tests.faults.plan import Planned, Recording, paused_at, place_in_wait
from tests.faults.trial import Trial, Try
from tests.sandbox_jobs import credentials

REFUSED = (401, 403)


def plans(recording: Recording, chance: random.Random) -> Sequence[Planned]:
    """All of them for one kind of site."""
    kind = recording.kind
    found = [
        Planned(kind, "tokens expire", step, lambda trial, step=step: _expire(trial, recording, step))
        for step in ("POST", "upload", "wait", "gather")
        if recording.has(step)
    ]
    found += [
        Planned(kind, "password changed", step, lambda trial, step=step: _password(trial, recording, step))
        for step in ("look", "POST", "wait")
    ]
    locked = [("refuse_logins", True, "POST"), ("entitled", False, "POST")]
    locked += [] if kind.name == PLATFORM else [("refuse_logins", True, "wait")]
    found += [
        Planned(kind, "account locked", step, lambda trial, how=(name, value, step): _locked(trial, recording, *how))
        for name, value, step in locked
    ]
    found += [Planned(kind, "SIGSTOP across a token's life", "wait", lambda trial: _stopped(trial, recording))]
    if kind.name in (UNICORE, ASKED):
        steps = ("POST", "look again", "start", "wait") if kind.name == UNICORE else ("wait",)
        found += [
            Planned(kind, "sessions forgotten", step, lambda trial, step=step: _forgotten(trial, recording, step))
            for step in steps
        ]
    return found


def _at(trial: Trial, recording: Recording, step: str) -> Try:
    if step == "gather":
        trial.open_gate()
    places = place_in_wait(trial, recording) if step == "wait" else recording.at(step)
    one = paused_at(trial, places)[0]
    if step in ("wait", "gather"):
        trial.until_logged()  # a token that ends within a training is not replaced
    return one


def _expire_logins(trial: Trial, step: str) -> None:
    """Every token and session of the road ends; but not the one that already lies with a job that has not begun."""
    if trial.kind.direct and step in ("POST", "upload"):
        trial.control.expire_unicore_sessions()
        trial.control.expire_firecrest_tokens()
    else:
        trial.kind.expire_logins(trial.control)


def _expire(trial: Trial, recording: Recording, step: str) -> None:
    one = _at(trial, recording, step)
    _expire_logins(trial, step)
    trial.open_gate()
    one.go_on()
    trial.expect_finished(trial.result_of(one))


def _forgotten(trial: Trial, recording: Recording, step: str) -> None:
    one = _at(trial, recording, step)
    trial.control.expire_unicore_sessions()
    trial.open_gate()
    one.go_on()
    trial.expect_finished(trial.result_of(one))


def _stopped(trial: Trial, recording: Recording) -> None:
    one = _at(trial, recording, "wait")
    one.stop()
    trial.kind.expire_logins(trial.control)
    trial.open_gate()
    one.go_on()
    one.resume()
    trial.expect_finished(trial.result_of(one))


def _password(trial: Trial, recording: Recording, step: str) -> None:
    """The platform's password changes; the block is saved anew; the run goes on with the same job."""
    who, before = trial.bench.env["MANTIK_USERNAME"], trial.bench.password()
    one = _at(trial, recording, step)
    try:
        after = trial.control.change_password(who)
        if not (trial.kind.direct and step == "POST"):
            trial.control.expire_tokens()
        trial.open_gate()
        one.go_on()
        until(lambda: one.ended or _refusals(one) > 0, "the login is refused, or not needed any more")
        _save(trial, after)
        first = trial.result_of(one)
        trial.expect(_refusals(one) <= 1, f"a refused login was tried {_refusals(one)} times")
        if first and first.error:
            trial.expect(first.ours, f"an error of ours expected, {first} came")
            trial.expect(step == "wait" or first.error != "KeyInUse", f"{first}")
            first = trial.bring_home(also=(LoginRefused.__name__,))
        trial.expect_finished(first)
    finally:
        trial.control.change_password(who, before)
        _save(trial, before)


def _save(trial: Trial, password: str) -> None:
    credentials(trial.bench.sandbox, password=password).save(trial.bench.name, overwrite=True)


def _refusals(one: Try) -> int:
    return sum(request.status in REFUSED for request in one.requests() if request.route.endswith("/tokens/create"))


def _locked(trial: Trial, recording: Recording, name: str, value: bool, step: str) -> None:
    """The site refuses the account; when it is let in again, the run goes on with the same job."""
    place = trial.kind.place
    one = _at(trial, recording, step)
    trial.control.change_site(place, **{name: value})
    _expire_logins(trial, step)
    if step != "wait":
        trial.open_gate()
    one.go_on()
    until(lambda: one.ended or _turned_away(one) or one.in_phase("gather"), "the login is refused")
    if step == "wait":
        polls = len(one.requests())
        until(lambda: one.ended or len(one.requests()) > polls or _turned_away(one), "it is asked again, or paused", 20)
        trial.open_gate()
        trial.expect(not one.ended or one.outcome() is not None, "the wait was to hold")
        trial.expect(_turned_away_logins(one) <= 2, f"a refused login was tried {_turned_away_logins(one)} times")
        if not one.ended:
            one.kill()
    first = trial.result_of(one)
    trial.control.change_site(place, **{name: not value})
    if first is None or first.error:
        trial.expect(first is None or first.ours, f"an error of ours expected, {first} came")
        first = trial.bring_home(also=(LoginRefused.__name__,))
    trial.expect_finished(first)


def _turned_away(one: Try) -> bool:
    return any(request.status in REFUSED for request in one.requests())


def _turned_away_logins(one: Try) -> int:
    logins = ("/rest/core", "/rest/core/token", "/firecrest-auth/token")
    return sum(request.status in REFUSED for request in one.requests() if request.route.endswith(logins))
