"""The card of progress as Markdown: valid and small whatever runs are called and whatever they logged."""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from prefect_mantik.log import duration
from prefect_mantik.markdown import link
from prefect_mantik.progress.logged import Logged, last_logged
from prefect_mantik.progress.rendering import LARGEST, MOST_ROWS, Row, render
from prefect_mantik.runs import MetricValue, Reason, RunHandle, RunState, RunStatus
from prefect_mantik.tracking import TrackedRun
from prefect_mantik.tracking.client import moment
from tests.test_reports import AWKWARD, Table

NOW = datetime(2026, 11, 1, 12, tzinfo=timezone.utc)
LINK = "https://mlflow.example.org/#/experiments/1/runs/{id}"


def ago(**parts: float) -> datetime:
    return NOW - timedelta(**parts)


def handle(name: str = "train-0", site: str = "alder", **more: Any) -> RunHandle:
    return RunHandle(
        **{
            "site": f"mantik-site/{site}",
            "site_name": site,
            "kind": "mantik",
            "remote_id": f"{site}/{name}",
            "site_key": "pm-x",
            "name": name,
            "links": {"MLflow": LINK.format(id="1")},
            **more,
        }
    )


def row(
    name: str = "train-0",
    state: str | None = "RUNNING",
    site: str = "alder",
    logged: Logged | None = None,
    **status: Any,
) -> Row:
    told = None if state is None else RunStatus(**{"state": RunState(state), "observed_at": NOW, **status})
    return Row(handle(name, site), told, logged=logged)


def shown(rows: list[Row], **more: Any) -> dict[str, dict[str, str]]:
    """The cells of the table of runs, by run and title."""
    text = render(rows, NOW, **more).replace("\u00a0", " ")
    head, *body = [line for line in Table(text).rows if len(line) == 9]
    return {line[0]: dict(zip(head, line, strict=True)) for line in body}


def test_what_is_told_of_each_run() -> None:
    rows = [
        row("waits", "SCHEDULED", site_word="PENDING (Priority)", queued_at=ago(minutes=3)),
        row("runs", queued_at=ago(hours=3), started_at=ago(hours=1), logged=Logged("val_loss", 0.125, "3 of 10")),
        row("failed", "FAILED", reason=Reason.EXIT_CODE, exit_code=3, started_at=ago(seconds=70), ended_at=NOW),
        row("unasked", None),
    ]
    cells = shown(rows)
    assert list(cells) == ["failed", "runs", "waits", "unasked"]
    assert cells["waits"] == {
        "run": "waits",
        "site": "alder",
        "state": "SCHEDULED",
        "site's word": "PENDING (Priority)",
        "reason": "-",
        "waited": "3 min 00 s",
        "ran": "-",
        "last metric": "-",
        "step": "-",
    }
    assert [cells["runs"][title] for title in ("waited", "ran", "last metric", "step")] == [
        "2 h 00 min",
        "1 h 00 min",
        "val_loss 0.125",
        "3 of 10",
    ]
    assert (cells["failed"]["reason"], cells["failed"]["ran"]) == ("exit code 3", "1 min 10 s")
    text = render(rows, NOW)
    assert text.startswith("**4 training runs**: 1 failed, 1 running, 1 queued, 1 not asked yet.")
    assert "As of 2026-11-01 12:00:00 UTC." in text
    assert Table(text).html.count(f'<a href="{LINK.format(id="1")}">') == 4


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ({"state": "FAILED", "reason": Reason.UNTOLD}, "not told"),
        ({"state": "FAILED", "reason": Reason.TIME_LIMIT, "exit_code": 1}, "time limit, exit code 1"),
        ({"state": "KILLED", "reason": Reason.CANCELLED_BY_US}, "cancelled by us"),
        ({"state": "SCHEDULED", "reason": Reason.STUCK, "message": "held by its owner"}, "stuck, held by its owner"),
        ({"state": "FINISHED", "exit_code": 0}, "-"),
    ],
)
def test_the_reason(status: dict[str, Any], reason: str) -> None:
    assert shown([row(**status)])["train-0"]["reason"] == reason


def test_times_where_a_site_tells_little() -> None:
    rows = [
        row("no-start", "FINISHED", queued_at=ago(hours=1), ended_at=NOW),
        row("lost", "LOST", queued_at=ago(hours=1)),
        row("requeued", "SCHEDULED", queued_at=ago(hours=1), started_at=ago(minutes=30)),
        row("nothing"),
        row("clocks-differ", queued_at=NOW, started_at=NOW + timedelta(seconds=40)),
    ]
    cells = shown(rows)
    times = {name: (line["waited"], line["ran"]) for name, line in cells.items()}
    assert times == {
        "no-start": ("-", "1 h 00 min, queue included"),
        "lost": ("-", "-"),
        "requeued": ("1 h 00 min", "-"),
        "nothing": ("-", "-"),
        "clocks-differ": ("40 s", "0 s"),
    }


def test_old_news_say_so_and_times_stop_with_the_wait() -> None:
    old = row("old", started_at=ago(hours=1), observed_at=ago(minutes=14))
    left = row("left", started_at=ago(hours=1), observed_at=ago(minutes=50))._replace(waited_for=False)
    cells = shown([old, left])
    assert (cells["old"]["state"], cells["old"]["ran"]) == ("RUNNING, as told 14 min 00 s ago", "1 h 00 min")
    assert (cells["left"]["state"], cells["left"]["ran"]) == ("RUNNING, not waited for any more", "10 min 00 s")


def test_a_thousand_runs_are_counted_and_the_most_interesting_shown() -> None:
    states = ["FINISHED"] * 500 + ["SCHEDULED"] * 400 + ["RUNNING"] * 90 + ["FAILED"] * 10
    rows = [row(f"train-{number}", state, site=f"site-{number % 3}") for number, state in enumerate(states)]
    text = render(rows, NOW)
    assert text.startswith("**1000 training runs**: 10 failed, 90 running, 400 queued, 500 finished.")
    counts = [line for line in Table(text).rows if len(line) == 6]
    assert counts[0] == ["site", "failed", "running", "queued", "finished", "all"]
    assert [sum(int(line[column]) for line in counts[1:]) for column in range(1, 6)] == [10, 90, 400, 500, 1000]
    cells = shown(rows)
    assert len(cells) == MOST_ROWS
    assert {line["state"] for line in cells.values()} == {"FAILED", "RUNNING"}
    assert "Not shown: 400 queued, 500 finished." in text
    assert len(text.encode()) <= LARGEST


def test_few_runs_have_no_table_of_counts_and_a_natural_order() -> None:
    assert list(shown([row(f"train-{number}") for number in (10, 9, 1)])) == ["train-1", "train-9", "train-10"]
    assert render([row()], NOW).startswith("**1 training run**: 1 running.")
    assert "3 more ended earlier." in render([row()], NOW, forgotten=3)


def test_many_sites_are_counted_together() -> None:
    rows = [row(f"train-{number}", site=f"site-{number}") for number in range(300)]
    counts = [line for line in Table(render(rows, NOW)).rows if len(line) == 3]
    assert len(counts) == 22
    assert counts[-1] == ["280 other sites", "280", "280"]


def test_the_card_is_small_whatever_is_in_it() -> None:
    rows = [
        Row(
            handle("|ü" * 500 + str(number), "_€" * 200, links={"MLflow": "https://x/" + "ä|" * 145}),
            RunStatus(state=RunState.FAILED, site_word="*" * 999, message="[" * 999, observed_at=NOW),
            logged=Logged("ö`" * 999, math.inf, "1"),
        )
        for number in range(1000)
    ]
    text = render(rows, NOW)
    assert len(text.encode()) <= LARGEST
    lines = [line for line in Table(text).rows if len(line) == 9]
    assert len(lines) > 10
    assert f"Not shown: {1000 - len(lines) + 1} failed." in text


@pytest.mark.parametrize("name", [*AWKWARD, "9" * 5000, "²"])
@pytest.mark.parametrize("where", ["run", "site", "word", "message", "metric"])
def test_any_text_stays_in_its_cell(where: str, name: str) -> None:
    words = {"run": "r", "site": "s", "word": "w", "message": "m", "metric": "l", where: name}
    one = Row(
        handle(words["run"], words["site"]),
        RunStatus(state=RunState.FAILED, site_word=words["word"], message=words["message"], observed_at=NOW),
        logged=Logged(words["metric"], math.nan, ""),
    )
    found = Table(render([one, row("other")], NOW))
    said = {key: " ".join(word.split()) for key, word in words.items()}
    said = {key: word if len(word) < 100 else None for key, word in said.items()}
    expected = [
        said["run"],
        said["site"],
        "FAILED",
        said["word"],
        said["message"],
        "-",
        "-",
        f"{said['metric']} nan",
        "-",
    ]
    for got, wanted in zip(found.rows[1], expected, strict=True):
        assert "None" in str(wanted) or got == wanted
    assert found.html.count("<a ") == 2
    assert not [tag for tag in ("<b>", "<em>", "<code>", "<s>") if tag in found.html]


def test_a_token_in_the_words_of_a_site_is_hidden() -> None:
    token = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.abc"
    assert token not in render([row(site_word=f"Bearer {token}", message=token)], NOW)


@pytest.mark.parametrize("url", ["https://x/a b", "https://x/(a)", "https://x/a|b", "https://x/<a>", 'https://x/"a"'])
def test_any_address_is_a_link(url: str) -> None:
    assert Table(f"| a |\n|---|\n| {link('label', url)} |").html.count('<a href="https://x/') == 1


@pytest.mark.parametrize("url", ["", "javascript:alert(1)", "/relative"])
def test_what_is_no_address_is_no_link(url: str) -> None:
    assert link("label", url) == "label"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-5, "0 s"),
        (59.4, "59 s"),
        (60, "1 min 00 s"),
        (3600, "1 h 00 min"),
        (47 * 3600, "47 h 00 min"),
        (2e5, "2 d 07 h"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


# --- What was logged ------------------------------------------------------------------------------------------------


def tracked(
    metrics: dict[str, tuple[float, int]], parameters: dict[str, str] | None = None, **times: datetime
) -> TrackedRun:
    return TrackedRun(
        run_id="r",
        experiment_id="1",
        metrics={
            name: MetricValue(value=value, step=step, time=times.get(name, NOW))
            for name, (value, step) in metrics.items()
        },
        parameters=parameters or {},
        tags={},
    )


@pytest.mark.parametrize(
    ("metrics", "parameters", "step"),
    [
        ({"loss": 3}, {"epochs": "10"}, "3 of 10"),  # Keras; Lightning by MLflow's autologging
        ({"loss": 1200, "epoch": 1200}, {"max_steps": "-1", "num_train_epochs": "3.0"}, "epoch 1.50 of 3"),  # Trainer
        ({"loss": 1200, "epoch": 1200}, {"max_steps": "5000", "num_train_epochs": "3"}, "1200 of 5000"),
        ({"train_loss": 99, "epoch": 99}, {"max_epochs": "4"}, "epoch 1.50 of 4"),  # Lightning's own logger
        ({"loss": 7}, {"num_boost_round": "100"}, "7 of 100"),
        ({"loss": 1200}, {"epochs": "10"}, "1200"),
        ({"loss": 12}, {"total_steps": "10"}, "12"),
        ({"loss": 0}, {}, ""),
        ({"loss": 0}, {"epochs": "1e3"}, "0 of 1000"),
        ({"loss": -4}, {"epochs": "10"}, ""),
        ({"loss": 4}, {"epochs": "ten", "max_steps": "nan", "total_steps": "inf"}, "4"),
        ({"loss": 2, "system/cpu": 500}, {"epochs": "10"}, "2 of 10"),
    ],
)
def test_how_far_a_training_is(metrics: dict[str, int], parameters: dict[str, str], step: str) -> None:
    values = {name: (1.5 if name == "epoch" else 0.25, step) for name, step in metrics.items()}
    assert last_logged(tracked(values, parameters), NOW).step == step


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["accuracy", "loss", "val_loss"], "val_loss"),
        (["epoch", "grad_norm", "learning_rate", "loss"], "loss"),
        (["eval_runtime", "f1"], "f1"),
        (["lr"], "lr"),
        (["system/cpu"], ""),
        ([], ""),
    ],
)
def test_the_metric_that_tells_most(names: list[str], told: str) -> None:
    assert last_logged(tracked(dict.fromkeys(names, (1.0, 1))), NOW).metric == told


def test_the_newest_metric_unless_its_time_is_nonsense() -> None:
    metrics = {"val_loss": (1.0, 1), "loss": (0.5, 2), "odd": (2.0, 1)}
    run = tracked(metrics, val_loss=ago(minutes=10), loss=ago(minutes=1), odd=datetime(9000, 1, 1, tzinfo=timezone.utc))
    assert last_logged(run, NOW).metric == "loss"
    assert last_logged(tracked({"odd": (2.0, 1)}, odd=run.metrics["odd"].time), NOW).metric == "odd"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_any_value_is_shown(value: float) -> None:
    run = tracked({"loss": (value, 1), "epoch": (value, 1)}, {"epochs": "10"})
    logged = last_logged(run, NOW)
    assert logged.step == "1 of 10"
    assert shown([row(logged=logged)])["train-0"]["last metric"] == f"loss {value}"


@pytest.mark.parametrize("nonsense", [1_700_000_000_000_000_000, -(10**18), 10**30])
def test_a_time_that_no_calendar_has_is_none(nonsense: int) -> None:
    assert moment(nonsense) is None
