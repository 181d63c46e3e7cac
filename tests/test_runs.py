"""Keys, handles, descriptions, results."""

from __future__ import annotations

import pickle
import re
import uuid
from datetime import datetime, timezone

import pytest

from prefect_mantik.errors import EnvironmentInvalid, KeyInvalid, RunsFailed, SubmitsFailed, WaitTimeout
from prefect_mantik.runs import (
    CodeRepository,
    Reason,
    RunHandle,
    RunKey,
    RunResult,
    RunSpec,
    RunState,
    RunStatus,
    check_key_name,
    site_key_prefix,
)
from prefect_mantik.sites.tracked import _RUN_NAME, run_name

ORIGIN = "abcdefgh23456777"
ROOT = uuid.UUID("12345678-1234-5678-1234-567812345678")

NAMES = ["train", "Train Ω 0", "a" * 10_000, "50%_of 'all' \"runs\"", "日本語", "\ud800", "x|y\nz", "  padded  "]


def spec(**fields: object) -> RunSpec:
    given: dict[str, object] = {
        "code": CodeRepository(repository_id=ROOT, branch="main"),
        "project_id": ROOT,
        "experiment_repository_id": ROOT,
        "backend_config": {"UnicoreApiUrl": "https://x/rest/core", "Resources": {"Queue": "batch"}},
    }
    return RunSpec.model_validate({**given, **fields})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("root", [ROOT, None])
def test_a_site_key_is_bounded_and_plain_whatever_the_name(name: str, root: uuid.UUID | None) -> None:
    key = RunKey(name=name, scope="flow" if root else "origin", origin=ORIGIN, root_flow_run_id=root)
    assert re.fullmatch(r"pm-[a-z2-7]{8}-[a-z2-7]{26}-[a-z2-7]{16}", key.site_key)
    assert len(key.site_key) == 55
    assert key.site_key.startswith(site_key_prefix(ORIGIN, root))
    assert re.fullmatch(r"[a-z0-9-]{1,40}", key.slug)
    match = _RUN_NAME.match(run_name(key, 12, spec()) + "-3")
    assert match is not None
    assert (match["site_key"], match["attempt"], match["spec_digest"]) == (key.site_key, "12", spec().digest[:8])


def test_site_keys_differ_by_name_tree_and_origin() -> None:
    keys = [
        RunKey(name=name, scope="flow" if root else "origin", origin=origin, root_flow_run_id=root)
        for name in NAMES
        for root in (ROOT, uuid.uuid4(), None)
        for origin in (ORIGIN, ORIGIN[::-1].replace("7", "b"))
    ]
    assert len({key.site_key for key in keys}) == len(keys)
    assert len({key.digest for key in keys}) == len(keys)


def test_the_site_key_is_for_ever() -> None:
    """Runs that live at sites are found by it: another form would lose them."""
    key = RunKey(name="train", origin=ORIGIN, root_flow_run_id=ROOT)
    assert key.site_key == "pm-abcdefgh-ci2fm6asgrlhqerukz4bencwpa-cfxvjra5aqc5xmio"


@pytest.mark.parametrize("name", ["", " ", "\n\t", None, 3])
def test_a_name_that_is_no_key(name: object) -> None:
    with pytest.raises(KeyInvalid, match="A key is a non-empty text"):
        check_key_name(name)  # type: ignore[arg-type]


def test_a_digest_changes_with_anything_in_a_description_and_nothing_else() -> None:
    assert spec(parameters={"a": 1, "b": 2}).digest == spec(parameters={"b": 2, "a": 1}).digest
    others = [
        spec(),
        spec(parameters={"a": 1}),
        spec(parameters={"a": "1"}),
        spec(parameters={"a": True}),
        spec(entry_point="other"),
        spec(budget_account="x"),
        spec(code=CodeRepository(repository_id=ROOT, branch="dev")),
        spec(backend_config={"UnicoreApiUrl": "https://y/rest/core", "Resources": {"Queue": "batch"}}),
    ]
    assert len({other.digest for other in others}) == len(others)


def test_digests_are_for_ever() -> None:
    """They are compared with those of live runs: fields that are added later must not change them."""
    key = RunKey(name="train", origin=ORIGIN, root_flow_run_id=ROOT)
    assert (spec(parameters={"a": 1}).digest[:8], key.digest[:8]) == ("dcd991d6", "b74b209c")


def handle(**fields: object) -> RunHandle:
    given: dict[str, object] = {
        "site": "mantik-site/alder",
        "site_name": "alder",
        "kind": "mantik",
        "remote_id": "1",
        "site_key": "pm",
        "name": "train",
        "key": RunKey(name="train", origin=ORIGIN, root_flow_run_id=ROOT),
        "links": {"MLflow": "https://x/#/1"},
    }
    return RunHandle.model_validate({**given, **fields})


def test_a_handle_travels_as_json_and_pickle() -> None:
    original = handle(platform_run_id=ROOT, submitted_at=datetime.now(timezone.utc))
    for copy in (RunHandle.model_validate_json(original.model_dump_json()), pickle.loads(pickle.dumps(original))):
        assert copy == original
        assert copy.model_dump() == original.model_dump()


def test_handles_are_equal_when_they_mean_the_same_job() -> None:
    assert handle() == handle(platform_run_id=ROOT, key=None, name="other")
    assert len({handle(), handle(attempt=2), handle(remote_id="2"), handle(site="mantik-site/birch")}) == 3


NOW = datetime.now(timezone.utc)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (RunStatus(state=RunState.RUNNING, observed_at=NOW), "RUNNING"),
        (
            RunStatus(state=RunState.FAILED, exit_code=3, reason=Reason.EXIT_CODE, observed_at=NOW),
            "FAILED (exit code 3)",
        ),
        (
            RunStatus(state=RunState.FAILED, exit_code=0, reason=Reason.TIME_LIMIT, observed_at=NOW),
            "FAILED (TIME_LIMIT)",
        ),
        (
            RunStatus(state=RunState.FAILED, reason=Reason.UNTOLD, observed_at=NOW),
            "FAILED (the site does not tell why)",
        ),
    ],
)
def test_a_status_in_words(status: RunStatus, text: str) -> None:
    assert status.describe() == text


def test_only_four_states_are_ends() -> None:
    assert {state for state in RunState if state.is_end} == {
        RunState.FINISHED,
        RunState.FAILED,
        RunState.KILLED,
        RunState.LOST,
    }


def test_errors_carry_what_is_live_and_survive_pickling() -> None:
    ended = RunResult(handle=handle(), status=RunStatus(state=RunState.FINISHED, observed_at=NOW))
    failed = RunResult(
        handle=handle(remote_id="2", name="other"),
        status=RunStatus(state=RunState.FAILED, reason=Reason.UNTOLD, observed_at=NOW),
        log_tail="line 1\nline 2",
    )
    for error, parts in [
        (
            RunsFailed([ended, failed]),
            ["1 of 2 training runs did not finish", "'other'", "    line 2", "https://x/#/1"],
        ),
        (SubmitsFailed({"a": handle()}, {"b": ValueError("no")}), ["1 of 2", "found: a", "b: no"]),
        (WaitTimeout("too long", [handle()]), ["too long"]),
        (EnvironmentInvalid(["X is missing", "Y is missing"]), ["- X is missing", "- Y is missing"]),
    ]:
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error)
        assert str(copy) == str(error)
        assert all(part in str(error) for part in parts)
        assert vars(copy).keys() == vars(error).keys()
