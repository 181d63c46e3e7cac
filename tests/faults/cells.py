"""The plan of all trials, and what is left out, with the reason."""

from __future__ import annotations

import dataclasses
import random
import textwrap
from collections.abc import Iterable

from tests.faults import answers, endings, kills, logins, outages, rivals, slots
from tests.faults.kinds import ASKED, FIRECREST, PLATFORM, REST, UNICORE
from tests.faults.plan import Planned, Plans, Recording
from tests.faults.report import WIDTH

_ALL: tuple[Plans, ...] = (
    kills.plans,
    answers.plans,
    rivals.plans,
    logins.plans,
    outages.plans,
    endings.plans,
    slots.plans,
)

_LONG = ("SIGSTOP across the slot's lease",)
"""These go first: at the end everybody would wait for them."""

LEFT_OUT: dict[tuple[str, str], str] = {
    (f"{PLATFORM}; {ASKED}", "upload, start"): "the platform sends the files and starts the job; we only POST",
    (f"{FIRECREST}; {REST}", "start"): "FirecREST starts a job when it takes it",
    (PLATFORM, "end"): "nothing is asked at the end: the platform closes the MLflow run",
    (PLATFORM, "job deleted at the site"): "only MLflow is asked, which nobody told: a warning is all there can be",
    (f"{PLATFORM}; {ASKED}", "disk full at the worker"): "nothing is written there: the platform fetches the code",
    (f"{PLATFORM}; {FIRECREST}; {REST}", "sessions forgotten"): "UNICORE alone has sessions",
    (
        f"{PLATFORM}; {ASKED}; {FIRECREST}; {REST}",
        "list of jobs in pages",
    ): "only UNICORE's lists come in pages of 200; MLflow's of 1000 would need as many runs, FirecREST's have none",
    (
        f"{PLATFORM}; {ASKED}; {UNICORE}; {REST}",
        "list of jobs unreadable",
    ): "only Slurm's lists break by a |",
    (f"{ASKED}; {FIRECREST}; {REST}", "SIGSTOP across the slot's lease"): "a minute each, and the same at every kind",
    (f"{ASKED}; {UNICORE}; {REST}", "slot never given back"): "the same at every kind",
    (PLATFORM, "account locked, wait"): "the site's login is the platform's affair once it took the job",
}
"""By kinds and fault (or step)."""


def all_trials(recordings: Iterable[Recording], seed: int) -> list[Planned]:
    """Every trial of the matrix, in the order in which they are done: by chance, so that slow ones mix with quick."""
    chance = random.Random(seed)
    planned = [trial for recording in recordings for plans in _ALL for trial in plans(recording, chance)]
    numbered = [dataclasses.replace(trial, seed=seed * 10_000 + number) for number, trial in enumerate(planned)]
    chance.shuffle(numbered)
    return sorted(numbered, key=lambda trial: trial.fault not in _LONG)


def left_out() -> str:
    """What is left out, for people."""
    lines = (f"left out: {kinds} / {fault}: {why}" for (kinds, fault), why in LEFT_OUT.items())
    return "\n".join(textwrap.fill(line, WIDTH, subsequent_indent="  ") for line in lines)
