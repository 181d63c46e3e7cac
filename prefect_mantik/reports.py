"""What people look at in the Prefect UI: Markdown tables with links, one artifact for one thing."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from prefect.artifacts import acreate_markdown_artifact

from prefect_mantik.lifecycle.reaper import Reaped
from prefect_mantik.loop import acall, call
from prefect_mantik.markdown import cell, link, number, table
from prefect_mantik.runs import RunMetrics, RunResult
from prefect_mantik.tracking import ModelVersion

COMPARISON_KEY = "mantik-comparison"
REAPED_KEY = "mantik-reaper"


def publish_comparison(
    results: Sequence[RunResult],
    metrics: Sequence[RunMetrics],
    *,
    metric: str,
    best: RunMetrics | None = None,
    model: ModelVersion | None = None,
) -> str:
    """Write the comparison of training runs as an artifact of the flow run, and return its Markdown.

    Args:
        results: Of all runs, the failed ones too.
        metrics: What runs logged, in any order; runs without are shown with dashes.
        metric: The one that decides.
        best: The run that won, if one did.
        model: What it was registered as, if it was.
    """
    markdown = comparison(results, metrics, metric=metric, best=best, model=model)
    call(_publish, markdown)
    return markdown


async def apublish_comparison(
    results: Sequence[RunResult],
    metrics: Sequence[RunMetrics],
    *,
    metric: str,
    best: RunMetrics | None = None,
    model: ModelVersion | None = None,
) -> str:
    """As `publish_comparison`, awaited."""
    markdown = comparison(results, metrics, metric=metric, best=best, model=model)
    await acall(_publish, markdown)
    return markdown


async def _publish(markdown: str) -> UUID:
    return await acreate_markdown_artifact(
        key=COMPARISON_KEY, markdown=markdown, description="Training runs compared by their final metrics"
    )


def comparison(
    results: Sequence[RunResult],
    metrics: Sequence[RunMetrics],
    *,
    metric: str,
    best: RunMetrics | None = None,
    model: ModelVersion | None = None,
) -> str:
    """The comparison as Markdown: a headline, a table with one row a run, what was registered."""
    logged = {run.handle: run for run in metrics}
    names = [metric, *sorted({name for run in metrics for name in run.final} - {metric})]
    varied = _varied(metrics)
    rows = [["run", "site", "state", *map(cell, names), *map(cell, varied)]]
    for result in results:
        run = logged.get(result.handle)
        label = cell(result.handle.name)
        url = next(iter(result.handle.links.values()), "")
        values = [number(run.final[name].value) if run and name in run.final else "-" for name in names]
        settings = [cell(run.parameters.get(name, "-")) if run else "-" for name in varied]
        row = [link(label, url), cell(result.handle.site_name), result.status.describe()]
        row += values + settings
        rows.append(
            [f"**{shown}**" if shown else "" for shown in row] if best and best.handle == result.handle else row
        )
    parts = [_headline(results, metric, best), table(rows)]
    if model:
        parts.append(f"Registered as {link(f'{cell(model.name)} version {model.version}', model.link)}.")
    return "\n\n".join(parts)


def publish_reaped(reaped: Reaped) -> None:
    """Write what the reaper did as an artifact of its flow run, if there is something to tell."""
    if reaped.cancelled or reaped.unknown or reaped.left:
        call(_publish_reaped, reaped_table(reaped))


async def _publish_reaped(markdown: str) -> UUID:
    return await acreate_markdown_artifact(
        key=REAPED_KEY, markdown=markdown, description="Jobs that the reaper ended, or could not judge"
    )


def reaped_table(reaped: Reaped) -> str:
    """What the reaper did as Markdown."""
    rows = [["run", "site", "job", "what became of it"]]
    for handles, became in (
        (reaped.cancelled, "cancelled"),
        (reaped.unknown, "left alone: this Prefect does not know its flow run"),
    ):
        for handle in handles:
            run = link(cell(handle.name), next(iter(handle.links.values()), ""))
            rows.append([run, cell(handle.site_name), cell(handle.remote_id), became])
    problems = "\n".join(f"- {cell(sentence)}" for sentence in reaped.left)
    return "\n\n".join(part for part in (reaped.describe(), table(rows) if rows[1:] else "", problems) if part)


def _headline(results: Sequence[RunResult], metric: str, best: RunMetrics | None) -> str:
    finished = sum(result.finished for result in results)
    text = f"{finished} of {len(results)} training runs finished."
    if best:
        text += f" Best {cell(metric)}: {number(best.final[metric].value)} at {cell(best.handle.site_name)}."
    return text


def _varied(metrics: Sequence[RunMetrics]) -> list[str]:
    """The parameters in which the runs differ: the others only widen the table."""
    names = sorted({name for run in metrics for name in run.parameters})
    return [name for name in names if len({run.parameters.get(name) for run in metrics}) > 1]
