"""A planned trial, and what plans are made from."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.faults.kinds import Kind
from tests.faults.orders import Strike
from tests.faults.steps import Gap
from tests.faults.trial import Trial, Try


@dataclass(frozen=True)
class Planned:
    """One trial.

    Attributes:
        kind: Kind of site.
        fault: What goes wrong.
        step: When.
        run: Does it; complaints go into the trial.
        seed: Of all chances in it.
    """

    kind: Kind
    fault: str
    step: str
    run: Callable[[Trial], None]
    seed: int = 0

    @property
    def name(self) -> str:
        """For directories and messages."""
        words = f"{self.kind.slug}-{self.fault}-{self.step}".lower()
        return "".join(letter if letter.isalnum() else "-" for letter in words)


@dataclass(frozen=True)
class Recording:
    """The sequences of requests of undisturbed runs at one kind of site.

    Attributes:
        kind: Kind of site.
        gaps: Of a run.
        cancel: Of a cancel: the requests that change something.
    """

    kind: Kind
    gaps: Sequence[Gap]
    cancel: Sequence[Strike]

    def at(self, step: str) -> list[Strike]:
        """The places of a step."""
        return [gap.strike for gap in self.gaps if gap.step == step]

    def has(self, step: str) -> bool:
        """Whether the kind has such a step."""
        return bool(self.at(step))


Plans = Callable[[Recording, random.Random], Sequence[Planned]]
LeftOut = Mapping[tuple[str, str], str]


def paused_at(trial: Trial, places: Sequence[Strike], **fields: object) -> tuple[Try, Strike]:
    """Start a try and stop it at one of some places, by chance.

    In a wait it is asked again and again: there the second time will do.
    """
    place = dataclasses.replace(trial.random.choice(places), action="pause")
    one = trial.start(strike=place, **fields)
    one.until_struck()
    return one, place


def place_in_wait(trial: Trial, recording: Recording) -> list[Strike]:
    """A poll of a training that is under way: not the first, since that may come before the job runs."""
    polls = [place for place in recording.at("wait") if place.nth > 1]
    return [dataclasses.replace(place, nth=trial.random.choice((2, 3))) for place in polls]
