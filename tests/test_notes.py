"""Whose a key is, and what is shown of a run."""

from __future__ import annotations

from uuid import uuid4

import pytest

from prefect_mantik.runs import CodeRepository, GitCode, RunHandle, RunSpec
from prefect_mantik.sites.notes import Step, SubmitNote, is_another_flow_runs, made_by_note, outline

ROOT, FIRST, SECOND, DEEPER = (Step(uuid4(), uuid4()) for _ in range(4))
ANEW = Step(ROOT.flow_run_id, uuid4())


@pytest.mark.parametrize(
    ("theirs", "ours", "foreign"),
    [
        pytest.param([ROOT], [ROOT], False, id="the same"),
        pytest.param([ROOT, FIRST], [ROOT, SECOND], True, id="siblings"),
        pytest.param([ROOT, FIRST], [ROOT], True, id="a child's, asked by the root"),
        pytest.param([ROOT], [ROOT, FIRST], True, id="the root's, asked by a child"),
        pytest.param([ROOT, FIRST], [ANEW, SECOND], False, id="the root began anew"),
        pytest.param([ROOT, FIRST, DEEPER], [ROOT, FIRST, SECOND], True, id="grandchildren"),
        pytest.param(
            [ROOT, FIRST, DEEPER], [ROOT, Step(FIRST.flow_run_id, uuid4()), SECOND], False, id="the child began anew"
        ),
        pytest.param([], [ROOT], False, id="nobody's"),
        pytest.param([ROOT], [], False, id="asked outside of flow runs"),
    ],
)
def test_a_key_is_anothers(theirs: list[Step], ours: list[Step], foreign: bool) -> None:
    assert is_another_flow_runs(SubmitNote(attempt=1, by=tuple(theirs)), ours) is foreign


def spec(**fields: object) -> RunSpec:
    given = {
        "project_id": uuid4(),
        "experiment_repository_id": uuid4(),
        "code": CodeRepository(repository_id=uuid4(), branch="main"),
        "backend_config": {},
    }
    return RunSpec.model_validate({**given, **fields})


def test_an_outline_holds_no_secret() -> None:
    code = GitCode(url="https://user:glpat-1234@git.example.org/a.git?private_token=5678", ref="main")
    text = outline(spec(code=code, parameters={"epochs": 3, "hf_token": "hf_90", "API_KEY": "12"}))
    assert text.startswith("main(epochs=3, hf_token=***, API_KEY=***) of url https://git.example.org/a.git, ref main")
    assert not any(secret in text for secret in ("glpat", "5678", "hf_90", "12,"))


def test_an_outline_is_short() -> None:
    assert len(outline(spec(parameters={f"parameter_{number}": "x" * 50 for number in range(100)}))) == 160


@pytest.mark.parametrize(
    ("note", "made"),
    [
        (SubmitNote(attempt=2, pending=True), True),
        (SubmitNote(attempt=2, pending=False, remote_id="4711"), True),
        (SubmitNote(attempt=2, pending=False, remote_id="4712"), False),
        (SubmitNote(attempt=2, pending=False), False),
        (SubmitNote(attempt=1, pending=False, remote_id="4711"), False),
        (None, False),
    ],
)
def test_who_made_a_job(note: SubmitNote | None, made: bool) -> None:
    """A refused attempt, an adopted job, an attempt of another flow run: none of them is ours to end."""
    handle = RunHandle(
        site="unicore-site/birch",
        site_name="birch",
        kind="unicore",
        remote_id="4711",
        site_key="pm",
        attempt=2,
        name="a",
    )
    assert made_by_note(note, handle) is made
