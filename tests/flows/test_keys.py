"""Whose a key is: one flow run's, its child flows', and for scope "origin" everybody's."""

from __future__ import annotations

import contextlib
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run as this_run
from prefect.states import Cancelled, Cancelling, State
from prefect.variables import Variable

from prefect_mantik import RunHandle, RunState, TrainingJob, TrainingRun, cancel_runs_of_flow, submit_run
from prefect_mantik.errors import KeyInUse, SubmitRefused
from prefect_mantik.ledger import ORIGIN_VARIABLE, FlowRunLedger, _origins, origin
from prefect_mantik.loop import background_loop, call
from prefect_mantik.sandbox.process import SandboxProcess
from tests.flows.test_verbs import _flow_run, sleeper


@flow
def child(job: TrainingJob, shared: bool = False) -> RunHandle:
    return submit_run(job, key="train", shared=shared)


def test_two_child_flows_have_no_key_in_common(sandbox: SandboxProcess) -> None:
    @flow
    def parent() -> tuple[RunHandle, RunHandle]:
        first = child(sleeper("birch"))
        with pytest.raises(
            KeyInUse, match=r"another flow run of the same tree .* for a run at birch\. Theirs: sleep\("
        ):
            child(sleeper("birch"))
        with pytest.raises(KeyInUse, match="run at birch, not at cedar"):
            child(sleeper("cedar"))
        with pytest.raises(KeyInUse, match="another flow run of the same tree"):
            submit_run(sleeper("birch"), key="train")
        return first, child(sleeper("birch"), shared=True)

    first, second = parent()
    assert first == second


def test_a_parent_that_begins_anew_finds_its_childrens_runs(sandbox: SandboxProcess) -> None:
    """Prefect makes a new child flow run then."""
    children: list[str] = []
    found: list[RunHandle] = []

    @flow
    def one() -> RunHandle:
        children.append(str(this_run.id))
        return submit_run(sleeper("birch"), key="train")

    @flow(retries=1)
    def parent() -> None:
        found.append(one())
        if len(found) == 1:
            raise RuntimeError("once more")

    parent()
    assert len(set(children)) == 2
    assert found[0] == found[1]


def test_who_made_a_run_cancels_it(sandbox: SandboxProcess) -> None:
    """A key that outlives flow runs: tonight's flow run takes yesterday's job over, and does not own it."""

    @flow
    def nightly() -> tuple[str, RunHandle]:
        return str(this_run.id), submit_run(sleeper("birch"), key="outlives", scope="origin")

    (yesterday, first), (tonight, second) = nightly(), nightly()
    assert first == second
    flow_run = call(_flow_run, UUID(tonight))
    cancel_runs_of_flow(flow=nightly, flow_run=flow_run, state=flow_run.state)
    assert not TrainingRun(first).status().state.is_end
    flow_run = call(_flow_run, UUID(yesterday))
    cancel_runs_of_flow(flow=nightly, flow_run=flow_run, state=flow_run.state)
    TrainingRun(first).wait_for_completion(timeout=30)
    assert TrainingRun(first).status().state is RunState.KILLED


def test_the_hook_of_a_child_flow_ends_what_the_child_submitted(sandbox: SandboxProcess) -> None:
    children: list[str] = []

    @flow
    def one(site: str) -> RunHandle:
        children.append(str(this_run.id))
        return submit_run(sleeper(site), key=f"at {site}")

    @flow
    def parent() -> list[RunHandle]:
        return [one("birch"), one("cedar")]

    handles = parent()
    flow_run = call(_flow_run, UUID(children[1]))
    cancel_runs_of_flow(flow=one, flow_run=flow_run, state=flow_run.state)
    TrainingRun(handles[1]).wait_for_completion(timeout=30)
    assert not TrainingRun(handles[0]).status().state.is_end


def test_a_deleted_origin_is_restored(sandbox: SandboxProcess, caplog: pytest.LogCaptureFixture) -> None:
    """Else running jobs would not be found under their keys, and submitted again."""

    @flow
    def nightly() -> RunHandle:
        return submit_run(sleeper("birch"), key="kept", scope="origin")

    first, before = nightly(), call(origin)
    Variable.unset(ORIGIN_VARIABLE)
    assert nightly() == first
    assert call(origin) == before
    assert f"The variable {ORIGIN_VARIABLE} was deleted. It is restored" in caplog.text


def test_a_flow_run_keeps_its_origin(sandbox: SandboxProcess) -> None:
    """Also when somebody gives the variable another value while it runs, and it is retried in another process."""
    before = call(origin)

    @flow
    def pipeline() -> tuple[RunHandle, RunHandle, str]:
        first = submit_run(sleeper("birch"), key="train")
        Variable.set(ORIGIN_VARIABLE, "abcdefgh23456723", overwrite=True)
        background_loop().call_soon_threadsafe(_origins().clear)
        return first, submit_run(sleeper("birch"), key="train"), str(this_run.id)

    try:
        first, second, root = pipeline()
    finally:
        Variable.set(ORIGIN_VARIABLE, before, overwrite=True)
    assert first == second
    assert [note.pending for note in call(FlowRunLedger(UUID(root)).notes).values()] == [False]


@pytest.mark.parametrize(
    "name", ["Ünïcode ✓ 訓練", "x" * 10_000, "100%_done*?[a-z]'; drop", "\u202e\U0001f600 \t\n|\\"]
)
@pytest.mark.parametrize("site", ["alder", "birch", "cedar"])
def test_any_text_names_a_run(sandbox: SandboxProcess, name: str, site: str) -> None:
    @flow
    def pipeline() -> list[RunHandle]:
        other = submit_run(sleeper(site), key=f"{name}.")
        return [other, *(submit_run(sleeper(site), key=name) for _ in range(2))]

    other, first, second = pipeline()
    assert first == second != other
    assert first.name == name


def test_a_child_flow_that_is_called_again_after_it_failed_goes_on(sandbox: SandboxProcess) -> None:
    """Prefect makes a new flow run for it, under the same run of the parent."""
    found: list[RunHandle] = []

    @flow
    def one() -> None:
        found.append(submit_run(sleeper("birch"), key="train"))
        if len(found) == 1:
            raise RuntimeError("after the submit")

    @flow
    def parent() -> None:
        for _ in range(2):
            one(return_state=True)

    parent()
    assert found[0] == found[1]


@pytest.mark.parametrize("state", [Cancelling(), Cancelled()])
def test_nothing_is_submitted_for_a_flow_run_that_was_cancelled(sandbox: SandboxProcess, state: State[None]) -> None:
    """In a thread that was still packing, say: the hook has gone by already."""
    caught: list[str] = []

    @flow
    def pipeline() -> None:
        call(_put, UUID(str(this_run.id)), state)
        try:
            submit_run(sleeper("birch"), key="too late")
        except SubmitRefused as error:
            caught.append(str(error))

    with contextlib.suppress(BaseException):
        pipeline()
    assert caught == ["Nothing was submitted for key 'too late': its flow run was cancelled."]
    assert sandbox.control.jobs(live=True) == []


async def _put(flow_run_id: UUID, state: State[None]) -> None:
    async with get_client() as client:
        await client.set_flow_run_state(flow_run_id, state, force=True)
