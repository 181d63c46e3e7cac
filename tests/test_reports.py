"""The comparison table: valid Markdown whatever runs are called and whatever they logged."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

import pytest
from markdown_it import MarkdownIt
from prefect import flow
from prefect.runtime import flow_run

from prefect_mantik import apublish_comparison, publish_comparison
from prefect_mantik.reports import COMPARISON_KEY, comparison
from prefect_mantik.runs import MetricValue, Reason, RunHandle, RunMetrics, RunResult, RunState, RunStatus
from prefect_mantik.tracking import ModelVersion

NOW = datetime(2026, 11, 1, tzinfo=timezone.utc)
LINK = "https://mlflow.example.org/#/experiments/1/runs/{id}"


def ended(
    name: str = "train-0", state: RunState = RunState.FINISHED, *, site: str = "alder", **status: Any
) -> RunResult:
    handle = RunHandle(
        site=f"mantik-site/{site}",
        site_name=site,
        kind="mantik",
        remote_id=name,
        site_key="pm-x",
        name=name,
        links={"MLflow": LINK.format(id="1")},
    )
    return RunResult(handle=handle, status=RunStatus(state=state, observed_at=NOW, **status))


def logged(
    result: RunResult, final: Mapping[str, float] | None = None, parameters: Mapping[str, str] | None = None
) -> RunMetrics:
    values = {name: MetricValue(value=value, step=1, time=NOW) for name, value in (final or {}).items()}
    return RunMetrics(handle=result.handle, final=values, parameters=parameters or {})


class Table:
    """What a Markdown renderer makes of a comparison: the cells' texts, and the HTML."""

    def __init__(self, markdown: str) -> None:
        renderer = MarkdownIt("commonmark").enable(["table", "strikethrough"])
        self.html = renderer.render(markdown)
        self.rows = list(self._rows(renderer.parse(markdown)))

    @staticmethod
    def _rows(tokens: list[Any]) -> Iterator[list[str]]:
        row: list[str] = []
        for number, token in enumerate(tokens):
            if token.type == "tr_open":
                row = []
            elif token.type in ("th_open", "td_open"):
                inside = tokens[number + 1].children
                row.append("".join(child.content for child in inside if child.type in ("text", "code_inline")))
            elif token.type == "tr_close":
                yield row

    def column(self, title: str) -> list[str]:
        return [row[self.rows[0].index(title)] for row in self.rows[1:]]


def cells(line: str) -> int:
    """Cells of a line of a table: a `|` behind a backslash, which is not behind one itself, does not end a cell."""
    return line.replace("\\\\", "").replace("\\|", "").count("|") - 1


def table(markdown: str) -> Table:
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({cells(line) for line in lines}) == 1, markdown
    assert sum(1 for part in markdown.split("\n\n") if "|" in part) == 1, markdown
    rendered = Table(markdown)
    assert len(rendered.rows) == len(lines) - 1, rendered.html
    return rendered


def test_all_runs_their_metrics_and_what_they_differ_in() -> None:
    first, second = ended("train-0"), ended("train-1", site="birch")
    metrics = [
        logged(second, {"val_loss": 0.25, "epoch": 3}, {"lr": "0.1", "seed": "1"}),
        logged(first, {"val_loss": 0.125}, {"lr": "0.01", "seed": "1"}),
    ]
    model = ModelVersion(name="surrogate", version="3", source="s", run_id="r", link="https://mlflow.example.org/m")
    text = comparison([first, second], metrics, metric="val_loss", best=metrics[1], model=model)
    found = table(text)
    assert found.rows == [
        ["run", "site", "state", "val_loss", "epoch", "lr"],
        ["train-0", "alder", "FINISHED", "0.125", "-", "0.01"],
        ["train-1", "birch", "FINISHED", "0.25", "3", "0.1"],
    ]
    assert text.startswith("2 of 2 training runs finished. Best val_loss: 0.125 at alder.")
    assert found.html.count(f'<a href="{LINK.format(id="1")}">') == 2
    assert '<a href="https://mlflow.example.org/m">surrogate version 3</a>' in found.html


def test_the_best_run_is_bold_and_no_other() -> None:
    results = [ended(f"train-{number}") for number in range(3)]
    metrics = [logged(result, {"loss": number}) for number, result in enumerate(results)]
    html = table(comparison(results, metrics, metric="loss", best=metrics[1])).html
    bold = [row for row in html.split("<tr>") if "<strong>" in row]
    assert len(bold) == 1
    assert bold[0].count("<td>") == bold[0].count("<td><strong>") == 4
    assert "train-1" in bold[0]
    assert "<strong>" not in table(comparison(results, metrics, metric="loss")).html


@pytest.mark.parametrize(
    ("value", "shown"),
    [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf"), (0, "0"), (1e-12, "1e-12"), (1 / 3, "0.333333")],
)
def test_any_number_is_shown(value: float, shown: str) -> None:
    result = ended()
    metrics = logged(result, {"loss": value})
    found = table(comparison([result, ended("other")], [metrics], metric="loss", best=metrics))
    assert found.column("loss") == [shown, "-"]


def test_failed_runs_say_how_they_ended() -> None:
    results = [
        ended("a", RunState.FAILED, reason=Reason.EXIT_CODE, exit_code=3),
        ended("b", RunState.FAILED, reason=Reason.UNTOLD),
        ended("c", RunState.KILLED, reason=Reason.CANCELLED_BY_US),
        ended("d", RunState.LOST, reason=Reason.LOST),
        ended("e"),
    ]
    text = comparison(results, [logged(results[4], {"loss": 1})], metric="loss")
    found = table(text)
    assert text.startswith("1 of 5 training runs finished.")
    assert found.column("state") == [
        "FAILED (exit code 3)",
        "FAILED (the site does not tell why)",
        "KILLED (CANCELLED_BY_US)",
        "LOST (LOST)",
        "FINISHED",
    ]
    assert found.column("loss") == ["-", "-", "-", "-", "1"]


@pytest.mark.parametrize("known", [True, False])
def test_a_run_that_logged_nothing_has_dashes(known: bool) -> None:
    silent, other = ended("silent"), ended("other")
    metrics = [logged(other, {"loss": 1, "accuracy": 2}, {"lr": "1"})] + ([logged(silent)] if known else [])
    found = table(comparison([silent, other], metrics, metric="loss"))
    assert found.rows[1][3:] == ["-"] * len(found.rows[0][3:])
    assert table(comparison([silent], [], metric="loss")).rows[1] == ["silent", "alder", "FINISHED", "-"]


def test_a_site_that_is_not_linked_has_no_link() -> None:
    result = ended()
    unlinked = result.model_copy(update={"handle": result.handle.model_copy(update={"links": {}})})
    assert "<a " not in table(comparison([unlinked], [], metric="loss")).html


AWKWARD = [
    "a|b",
    "[a](b)",
    "a\nb",
    "a]b[",
    "a\\",
    "a\\|b",
    "*a*",
    "_a_",
    "`a`",
    "a | b |",
    "<b>a</b>",
    "~~a~~",
    "a&amp;b",
]


@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.parametrize("where", ["run", "site", "metric", "parameter", "value"])
def test_any_name_stays_in_its_cell(where: str, name: str) -> None:
    words = {"run": "r", "site": "s", "metric": "m", "parameter": "p", "value": "v", where: name}
    result, other = ended(words["run"], site=words["site"]), ended("other")
    metrics = [
        logged(result, {words["metric"]: 1}, {words["parameter"]: words["value"]}),
        logged(other, {words["metric"]: 2}, {words["parameter"]: "w"}),
    ]
    found = table(comparison([result, other], metrics, metric=words["metric"]))
    shown = {key: " ".join(word.split()) for key, word in words.items()}
    assert found.rows[0] == ["run", "site", "state", shown["metric"], shown["parameter"]]
    assert found.rows[1] == [shown["run"], shown["site"], "FINISHED", "1", shown["value"]]
    assert found.html.count("<a ") == 2
    assert not [tag for tag in ("<b>", "<em>", "<strong>", "<code>", "<s>") if tag in found.html]


def test_an_empty_value_of_the_best_run_is_an_empty_cell() -> None:
    result, other = ended(), ended("other")
    metrics = [logged(result, {"m": 1}, {"augment": ""}), logged(other, {"m": 2}, {"augment": "flip"})]
    assert table(comparison([result, other], metrics, metric="m", best=metrics[0])).column("augment") == ["", "flip"]


@pytest.mark.parametrize("awaited", [False, True])
def test_published_as_an_artifact_of_the_flow_run(prefect_server: Any, awaited: bool) -> None:
    results = [ended(f"published-{awaited}")]
    metrics = [logged(results[0], {"loss": math.nan})]

    @flow
    def publishes() -> tuple[str, str]:
        return publish_comparison(results, metrics, metric="loss"), str(flow_run.id)

    @flow
    async def apublishes() -> tuple[str, str]:
        return await apublish_comparison(results, metrics, metric="loss"), str(flow_run.id)

    text, run = asyncio.run(apublishes()) if awaited else publishes()
    assert text == comparison(results, metrics, metric="loss")
    latest = prefect_server.request("GET", f"/artifacts/{COMPARISON_KEY}/latest")
    assert (latest["type"], latest["data"], latest["flow_run_id"]) == ("markdown", text, run)
