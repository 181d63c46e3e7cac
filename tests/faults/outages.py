"""A site that is down for hours or in maintenance, lists that are cut or broken, a wrong clock, a full disk."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import httpx

from tests.faults import books, orders
from tests.faults.bench import until
from tests.faults.kinds import FIRECREST, UNICORE
from tests.faults.plan import Planned, Recording, paused_at, place_in_wait
from tests.faults.trial import Trial

HOURS = 6.0
_HOUR = 3600.0
_LONG_AGO = 30 * 24 * _HOUR
_PAGE = 200
_NO_ROOM = 64


def plans(recording: Recording, chance: random.Random) -> Sequence[Planned]:
    """All of them for one kind of site."""
    kind = recording.kind
    found = [
        Planned(kind, "site down for 6 h (virtual)", "wait", lambda trial: _down(trial, recording)),
        Planned(kind, "maintenance", "POST", lambda trial: _maintenance(trial, recording)),
    ]
    found += [
        Planned(
            kind, f"worker's clock {words} by 1 h", "accept", lambda trial, by=by: _wrong_clock(trial, recording, by)
        )
        for words, by in (("ahead", _HOUR), ("behind", -_HOUR))
    ]
    if kind.direct:
        found.append(Planned(kind, "disk full at the worker", "prepare", _full_disk))
    if kind.name == UNICORE:
        found.append(Planned(kind, "list of jobs in pages", "accept", lambda trial: _many_jobs(trial, recording)))
    if kind.name == FIRECREST:
        found.append(Planned(kind, "list of jobs unreadable", "accept", lambda trial: _broken_list(trial, recording)))
    return found


def _down(trial: Trial, recording: Recording) -> None:
    """Every route of the road fails for six hours of the poller's clock."""
    one, _ = paused_at(trial, place_in_wait(trial, recording), hours=True, timeout=10 * HOURS * _HOUR)
    down: dict[str, Any] = trial.random.choice(
        ({"action": "status", "status": 503}, {"action": "drop_before"}, {"action": "status", "status": 502})
    )
    for route in ("/ALDER/*", "/BIRCH/*", "/firecrest*", "/tracking/*", "/mantik/*", "/projects/*", "/users/*"):
        trial.control.add_fault(**down, route=route, times=None)
    one.go_on()
    until(lambda: one.ended or _hours(one) >= HOURS, "six hours passed", 120)
    trial.expect(not one.ended, f"the wait was to go on, and came to {one.outcome()}")
    trial.control.clear_faults()
    trial.open_gate()
    trial.expect_finished(trial.result_of(one))


def _hours(one: Any) -> float:
    path = one.directory / orders.HOURS
    return float(path.read_text()) if path.exists() else 0.0


def _maintenance(trial: Trial, recording: Recording) -> None:
    one, _ = paused_at(trial, recording.at("POST"))
    trial.control.change_site(trial.kind.place, maintenance=True)
    trial.open_gate()
    one.go_on()
    if trial.kind.name.startswith(("FirecREST",)):  # Slurm takes jobs, and starts them later
        until(lambda: one.ended or one.in_phase("wait"), "the submit is over")
        trial.control.change_site(trial.kind.place, maintenance=False)
    first = trial.result_of(one)
    trial.control.change_site(trial.kind.place, maintenance=False)
    if first and first.error:
        trial.expect(first.ours, f"an error of ours expected, {first} came")
        first = trial.bring_home()
    trial.expect_finished(first)


def _wrong_clock(trial: Trial, recording: Recording, by: float) -> None:
    """The worker's clock is wrong in the try that is killed at the accept, and in the one that finds the job."""
    place = next(gap.strike for gap in recording.gaps if gap.step == "accept")
    one = trial.start(strike=place, clock=by)
    one.until_ended()
    trial.expect(one.outcome() is None, f"the first try was to be killed, and came to {one.outcome()}")
    trial.expect_finished(trial.bring_home(clock=by))


def _full_disk(trial: Trial) -> None:
    first = trial.result_of(trial.start(file_size=_NO_ROOM))
    trial.expect(bool(first and first.error and first.ours), f"an error of ours expected, {first} came")
    there = books.read(trial.bench, trial.key)
    trial.expect(not there.jobs, f"nothing was to be sent, and there is {there.describe()}")
    trial.expect_finished(trial.bring_home())


def _many_jobs(trial: Trial, recording: Recording) -> None:
    """More jobs of the flow run than a page of the site's list holds: ours is found, and none is left out."""
    env = trial.bench.env
    url, who = env["MANTIK_SANDBOX_BIRCH_URL"], (env["MANTIK_UNICORE_USERNAME"], env["MANTIK_UNICORE_PASSWORD"])
    with httpx.Client(auth=who, timeout=60, trust_env=False, headers={"Accept": "application/json"}) as site:
        description = {"Executable": "date", "haveClientStageIn": "true", "Tags": ["prefect-mantik", trial.key.prefix]}
        place = next(gap.strike for gap in recording.gaps if gap.step == "accept")
        one = trial.start(strike=place)
        one.until_ended()
        others = [site.post(f"{url}/jobs", json=description).raise_for_status() for _ in range(_PAGE + 5)]
        trial.expect_finished(trial.bring_home())
        for other in others:
            site.delete(f"{url}/jobs/{other.headers['Location'].rpartition('/')[2]}")


def _broken_list(trial: Trial, recording: Recording) -> None:
    """A job of the account with a | in its name makes the server's list unreadable."""
    env = trial.bench.env
    token = trial.control.firecrest_token(env["MANTIK_FIRECREST_CLIENT_ID"])
    job = {"name": "a|b", "workingDirectory": env["MANTIK_SANDBOX_CEDAR_ROOT"], "script": "#!/bin/bash\nsleep 1\n"}
    place = next(gap.strike for gap in recording.gaps if gap.step == "accept")
    one = trial.start(strike=place)
    one.until_ended()
    answer = httpx.post(
        f"{env['MANTIK_SANDBOX_CEDAR_URL']}/compute/cedar/jobs",
        json={"job": job},
        headers={"Authorization": f"Bearer {token}"},
        timeout=60,
        trust_env=False,
    )
    answer.raise_for_status()
    trial.expect_finished(trial.bring_home())
    for other in [other for other in trial.control.jobs() if other["jobName"] == job["name"]]:
        trial.control.age_job(other["id"], _LONG_AGO)  # else the lists of all trials after this one are broken, too
