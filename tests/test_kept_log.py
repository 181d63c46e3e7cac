"""Logs as files: nothing twice, nothing missing, nobody else's business."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from prefect_mantik.runs import RunHandle
from prefect_mantik.waiting.kept_log import KeptLog, open_kept_log


def handle(name: str = "train-0", remote_id: str = "7", attempt: int = 1) -> RunHandle:
    return RunHandle(
        site="unicore-site/birch",
        site_name="birch",
        kind="unicore",
        remote_id=remote_id,
        site_key="pm-x",
        name=name,
        attempt=attempt,
    )


def opened(directory: Path, **which: str | int) -> KeptLog:
    return open_kept_log(directory, "flow-1", handle(**which))  # type: ignore[arg-type]


def test_a_log_has_the_name_of_its_run_and_is_its_owners_alone(tmp_path: Path) -> None:
    kept = opened(tmp_path / "logs")
    kept.append(["épôque", "two"], 0, 12)
    assert kept.path == tmp_path / "logs" / "flow-1" / "train-0-birch-1.log"
    assert kept.path.read_text() == "épôque\ntwo\n"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [kept.path.parent, *kept.path.parent.iterdir()]}
    assert modes == {"flow-1": 0o700, "train-0-birch-1.log": 0o600, "train-0-birch-1.log.offset": 0o600}


def test_outside_of_a_flow_run(tmp_path: Path) -> None:
    assert open_kept_log(tmp_path, None, handle()).path == tmp_path / "no-flow-run" / "train-0-birch-1.log"


def test_a_second_wait_goes_on_where_the_first_one_left_off(tmp_path: Path) -> None:
    opened(tmp_path).append(["***"], 0, 100)  # a token was longer than what stands for it
    again = opened(tmp_path)
    assert again.offset == 100
    again.append(["two"], 100, 104)
    assert again.path.read_text() == "***\ntwo\n"
    assert opened(tmp_path).offset == 104


def test_text_of_which_no_offset_was_noted_is_cut_off(tmp_path: Path) -> None:
    """Killed between the two."""
    first = opened(tmp_path)
    first.append(["one"], 0, 4)
    with first.path.open("a") as file:
        file.write("two\nthr")
    again = opened(tmp_path)
    again.append(["two"], again.offset, 8)
    assert again.path.read_text() == "one\ntwo\n"


def test_two_waits_at_once_write_it_once(tmp_path: Path) -> None:
    first, second = opened(tmp_path), opened(tmp_path)
    first.append(["one"], 0, 4)
    with pytest.raises(OSError, match="another wait keeps this log"):
        second.append(["one"], 0, 4)
    first.append(["two"], 4, 8)
    assert first.path.read_text() == "one\ntwo\n"


def test_lines_are_not_left_out_unnoticed(tmp_path: Path) -> None:
    kept = opened(tmp_path)
    with pytest.raises(OSError, match="lines before were not written"):
        kept.append(["two"], 4, 8)


@pytest.mark.parametrize("name", ["a b", "../../etc/passwd", "..", "", "a/b", "x" * 300, "-rf"])
def test_no_name_leads_out_of_the_directory(tmp_path: Path, name: str) -> None:
    kept = opened(tmp_path, name=name)
    assert kept.path.parent == tmp_path / "flow-1"
    assert kept.path.is_file()


def test_runs_whose_names_differ_by_signs_that_no_file_has_keep_logs_of_their_own(tmp_path: Path) -> None:
    first, second = opened(tmp_path, name="a b", remote_id="1"), opened(tmp_path, name="a_b/ ".replace("_", " "))
    first.append(["one"], 0, 4)
    second.append(["two"], 0, 4)
    assert first.path != second.path
    assert (first.path.read_text(), second.path.read_text()) == ("one\n", "two\n")
    assert opened(tmp_path, name="a b", remote_id="1").offset == 4


def test_a_file_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "flow-1").mkdir()
    theirs = tmp_path / "flow-1" / "train-0-birch-1.log"
    theirs.write_text("mine")
    opened(tmp_path).append(["one"], 0, 4)
    assert theirs.read_text() == "mine"


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    kept, elsewhere = opened(tmp_path), tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    kept.path.unlink()
    kept.path.symlink_to(elsewhere)
    with pytest.raises(OSError, match=r"symbolic link|another wait"):
        kept.append(["one"], 0, 4)
    assert elsewhere.read_text() == "mine"


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"job": 1}'])
def test_a_damaged_note_makes_a_new_file(tmp_path: Path, damage: str) -> None:
    kept = opened(tmp_path)
    kept.append(["one"], 0, 4)
    kept.path.with_name(f"{kept.path.name}.offset").write_text(damage)
    again = opened(tmp_path)
    assert (again.offset, kept.path.read_text()) == (0, "one\n")
    assert again.path != kept.path


def test_a_file_that_was_removed_begins_anew(tmp_path: Path) -> None:
    kept = opened(tmp_path)
    kept.append(["one"], 0, 4)
    kept.path.unlink()
    assert opened(tmp_path).offset == 0
