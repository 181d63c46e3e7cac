"""What a suspended flow run keeps, and how a resumed one is given the same answers again."""

from __future__ import annotations

import random
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.states import AwaitingRetry, Failed, Pending, Running, Scheduled, State, Suspended

from prefect_mantik.errors import KeyInUse, MantikError
from prefect_mantik.kept import LABEL, Execution, Kept, Wait, _before, digest_of, kept_of
from prefect_mantik.runs import GitCode, RunHandle, RunKey, RunSpec

ROOT = UUID(int=7)
SITE: Any = SimpleNamespace(reference="unicore-site/birch")
SPEC = RunSpec(
    code=GitCode(url="https://git.test/code", ref="main"),
    project_id=ROOT,
    experiment_repository_id=ROOT,
    backend_config={},
)


def key_of(number: int) -> RunKey:
    return RunKey(name=f"train-{number}", origin="abcdefgh22334455", root_flow_run_id=ROOT)


def handle_of(number: int, attempt: int = 1) -> RunHandle:
    """The same in every call, and nothing in it that could be told from another's."""
    chance = random.Random(f"{number} {attempt}")
    remote, run = UUID(int=chance.getrandbits(128)), UUID(int=chance.getrandbits(128)).hex
    key = key_of(number)
    return RunHandle(
        site=SITE.reference,
        site_name="birch",
        kind="unicore",
        remote_id=str(remote),
        site_key=key.site_key,
        attempt=attempt,
        name=key.name,
        key=key,
        spec_digest=SPEC.digest[:16],
        account="mantik-credentials/hpc",
        mlflow_run_id=run,
        mlflow_experiment_id="17",
        submitted_at=datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=chance.random() * 1e6),
        links={
            "MLflow": f"https://tracking.example.org/#/experiments/17/runs/{run}",
            "job": f"https://birch.example.org:8080/BIRCH/rest/core/jobs/{remote}",
        },
    )


def resumed(execution: Execution) -> Execution:
    """What the next process knows, through the label's text."""
    execution.key = "mantik-a-1"
    text = execution.kept().written()
    kept = kept_of(FlowRun(id=execution.root, flow_id=uuid4(), labels={LABEL: text}))
    assert isinstance(kept, Kept)
    return Execution(
        execution.root,
        None,
        submits={key: [kept.handles[place] for place in places] for key, places in kept.submits.items()},
        waits=kept.waits,
    )


def test_the_nth_submit_of_a_key_is_given_the_nth_run() -> None:
    """Such as of a loop that submits again what failed."""
    first = Execution(ROOT, None)
    for attempt in (1, 2):
        assert first.given(key_of(0), SPEC, SITE, False) is None
        first.give(key_of(0), handle_of(0, attempt))
    first.open.append(Wait([handle_of(0, 2)], None))
    second = resumed(first)
    given = [second.given(key_of(0), SPEC, SITE, False) for _ in range(3)]
    assert given == [handle_of(0, 1), handle_of(0, 2), None]
    assert given[0] is not None
    assert given[0].links == handle_of(0).links
    assert second.given(key_of(1), SPEC, SITE, False) is None


def test_a_run_that_was_submitted_elsewhere_is_given_too() -> None:
    first = Execution(ROOT, None, open=[Wait([handle_of(3)], None)])
    assert resumed(first).given(key_of(3), SPEC, SITE, False) == handle_of(3)


def test_what_a_flow_run_was_before_it_began() -> None:
    def after(*states: State[Any]) -> State[Any] | None:
        began = datetime(2026, 1, 1, tzinfo=timezone.utc)
        timed = [
            state.model_copy(update={"timestamp": began + timedelta(seconds=place)})
            for place, state in enumerate(states)
        ]
        return _before(timed[::-1], timed[-1].id)

    suspended = Suspended(pause_key="mantik-a-1")
    resumed_by = after(Running(), suspended, Scheduled(name="Resuming"), Pending(), Running())
    assert resumed_by is not None
    assert resumed_by.state_details.pause_key == "mantik-a-1"
    retried = after(Running(), suspended, Scheduled(), Running(), Failed(), AwaitingRetry(), Pending(), Running())
    assert retried is not None
    assert retried.is_failed()
    assert after(Scheduled(), Pending(), Running()) is None


def test_another_description_or_another_site_is_not_given_it() -> None:
    first = Execution(ROOT, None)
    first.give(key_of(0), handle_of(0))
    other = SPEC.model_copy(update={"entry_point": "other"})
    with pytest.raises(KeyInUse, match="belongs to another run"):
        resumed(first).given(key_of(0), other, SITE, False)
    assert resumed(first).given(key_of(0), other, SITE, True) == handle_of(0)
    elsewhere: Any = SimpleNamespace(reference="unicore-site/elm")
    assert resumed(first).given(key_of(0), SPEC, elsewhere, False) is None


def test_a_timeout_begins_when_its_wait_is_reached_first() -> None:
    first = Execution(ROOT, None)
    handles = [handle_of(0), handle_of(1)]
    begun = first.begin_wait(handles, 60)
    assert begun is not None
    second = resumed(first)
    assert second.begin_wait(handles[::-1], 60) == begun
    again = second.begin_wait(handles, 60)  # another wait for the same runs, such as after a WaitTimeout
    assert again is not None
    assert again > begun
    assert second.begin_wait(handles[:1], None) is None


def test_waits_at_once_are_kept_together() -> None:
    soon = datetime(2026, 1, 1, tzinfo=timezone.utc)
    execution = Execution(ROOT, None)
    execution.open += [Wait([handle_of(0), handle_of(1)], None), Wait([handle_of(1), handle_of(2)], soon)]
    kept = execution.kept()
    assert kept.awaited == [handle_of(0), handle_of(1), handle_of(2)]
    assert kept.until == soon
    assert digest_of(kept.awaited) == digest_of(kept.awaited[::-1]) != digest_of(kept.awaited[:2])


def test_what_is_no_label_of_this_flow_run() -> None:
    text = Execution(ROOT, None).kept().written()
    assert kept_of(FlowRun(id=ROOT, flow_id=uuid4())) is None
    assert kept_of(FlowRun(id=uuid4(), flow_id=uuid4(), labels={LABEL: text})) is None
    for damaged in ("}{", text[:-10], "é"):
        with pytest.raises(MantikError, match="cannot be read"):
            kept_of(FlowRun(id=ROOT, flow_id=uuid4(), labels={LABEL: damaged}))
