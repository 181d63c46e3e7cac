"""Runs the trials: lanes side by side, then the cancels whose times are measured, then those that concern all."""

from __future__ import annotations

import fnmatch
import signal
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial

from tests.faults.deployed import cancel_times, cancels, kills, reaping, retries, servers
from tests.faults.deployed.stage import Played, Trial, play
from tests.faults.deployed.together import together
from tests.faults.deployed.world import World, made
from tests.faults.report import Cell, merged

TRIALS: Sequence[Trial] = [*kills.TRIALS, *retries.TRIALS, *servers.TRIALS, *reaping.TRIALS, *cancels.TRIALS]
SIDE_BY_SIDE = 5
"""Lanes at the same time: more would measure this machine."""


def run_trials(seed: int, only: str | None) -> list[Cell]:
    """See `tests.faults.deployed.run`."""
    patterns = only.split(",") if only else ["*"]
    chosen = [trial for trial in TRIALS if any(fnmatch.fnmatch(trial.name, pattern) for pattern in patterns)]
    if not chosen:
        raise ValueError(f"no trial is called {only}: there are {', '.join(trial.name for trial in TRIALS)}")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    began = time.monotonic()
    needs_two = any(trial.lane == "second" or trial.play is reaping.two_servers for trial in chosen)
    with made(("first", "second") if needs_two else ("first",)) as world:
        _say(f"{len(chosen)} trials; a sandbox, {len(world.offices)} Prefect servers and their workers are up", began)
        played = _in_lanes([trial for trial in chosen if trial.lane], world, seed, began)
        for group in cancel_times.GROUPS:
            # All of a group at once: several flow runs under one worker.
            timed = [trial for trial in chosen if trial.group == group]
            played += together([partial(_play, trial, world, seed, began) for trial in timed], len(timed))
        played += [_play(trial, world, seed, began) for trial in chosen if trial.is_last]
    cancel_times.report(played)
    _say("over", began)
    return merged(each.cell for each in played)


def _in_lanes(trials: Sequence[Trial], world: World, seed: int, began: float) -> list[Played]:
    lanes: dict[str, list[Trial]] = {}
    for trial in trials:
        lanes.setdefault(trial.lane, []).append(trial)
    # The longest first, for the shortest end.
    ordered = sorted(lanes.values(), key=len, reverse=True)

    def one_after_another(lane: Sequence[Trial]) -> list[Played]:
        return [_play(trial, world, seed, began) for trial in lane]

    done = together([partial(one_after_another, lane) for lane in ordered], SIDE_BY_SIDE)
    return [played for lane in done for played in lane]


def _play(trial: Trial, world: World, seed: int, began: float) -> Played:
    start = time.monotonic()
    played = play(trial, world, seed)
    word = "NOT AS PROMISED" if played.error else "as promised"
    _say(f"{trial.name}: {word}, {time.monotonic() - start:.0f} s", began)
    if played.error:
        print("    " + played.error.replace("\n", "\n    "), flush=True)
    return played


def _say(text: str, began: float) -> None:
    print(f"[{time.monotonic() - began:5.0f} s] {text}", flush=True)
