"""What a UNICORE job bears so that it is found again: its tags, which are there from the first moment on.

Tags are of [A-Za-z0-9-]: a server takes `_` and `%` in a search for wildcards.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from time import time as wall_clock
from typing import Any
from uuid import UUID

from prefect_mantik.credentials import MantikProject
from prefect_mantik.documents import reference
from prefect_mantik.runs import ORIGIN_LENGTH, RunHandle, RunKey, RunSpec
from prefect_mantik.sites.base import OUR_PREFIX
from prefect_mantik.tracking import TrackedRun

PACKAGE_TAG = "prefect-mantik"

_DIGEST = 8
_ORIGIN = len(OUR_PREFIX) + ORIGIN_LENGTH
_SITE_KEY = re.compile(r"pm-[a-z2-7]{8}-[a-z2-7]{26}-[a-z2-7]{16}")
_ACCOUNT = "mantik-credentials"


def tags_of(
    spec: RunSpec, key: RunKey, attempt: int, run: TrackedRun, project: MantikProject, commit: str | None
) -> list[str]:
    """The tags of a job: those it is searched by, and those that tell what a handle needs."""
    account = (reference(project.credentials) or "").rpartition("/")[2]
    facts = {
        "attempt": str(attempt),
        "name": key.slug,
        "spec": spec.digest[:_DIGEST],
        "mlflow": run.run_id,
        "experiment": run.experiment_id,
        "project": str(spec.project_id),
        "account": account,
        "commit": commit or "",
        "at": str(int(wall_clock() * 1000)),
    }
    searched = [PACKAGE_TAG, key.site_key[:_ORIGIN], key.prefix, key.site_key]
    told = [f"{name}-{value}" for name, value in facts.items() if re.fullmatch(r"[A-Za-z0-9-]+", value)]
    return [*searched, *told]


def commit_of(tags: Sequence[str]) -> str | None:
    """The commit of the code that a job was submitted with, where it came from git."""
    return next((tag.removeprefix("commit-") for tag in tags if tag.startswith("commit-")), None)


def search_tag(prefix: str) -> str:
    """The tag that the jobs bear whose site keys begin with a prefix; they may be some of those that bear it."""
    whole = prefix.rstrip("-")
    if whole == OUR_PREFIX.rstrip("-"):
        return PACKAGE_TAG
    return whole if len(whole) in (_ORIGIN, _ORIGIN + 27, _ORIGIN + 27 + 17) else whole[:_ORIGIN]


def handle_from(tags: Sequence[str], known: Mapping[str, Any], project: MantikProject | None) -> RunHandle | None:
    """The handle of a job; None where it bears no key of ours.

    Args:
        tags: Of the job.
        known: What the site knows of it besides.
        project: Whose tracking server gives the link to the MLflow run.
    """
    site_key = next((tag for tag in tags if _SITE_KEY.fullmatch(tag)), None)
    if site_key is None or PACKAGE_TAG not in tags:
        return None
    facts = {name: value for name, dash, value in (tag.partition("-") for tag in tags) if dash}
    run, experiment = facts.get("mlflow"), facts.get("experiment")
    links = dict(known["links"])
    if project and run and experiment:
        links = {"MLflow": project.credentials.tracking_client().run_link(experiment, run), **links}
    account = facts.get("account")
    submitted_at = _in_order(known["submitted_at"], facts.get("at", ""))
    return RunHandle.model_validate(
        {
            **known,
            "site_key": site_key,
            "attempt": int(facts["attempt"]) if re.fullmatch("[1-9][0-9]{0,6}", facts.get("attempt", "")) else 1,
            "name": facts.get("name", site_key),
            "spec_digest": facts.get("spec", ""),
            "account": f"{_ACCOUNT}/{account}" if account else None,
            "mlflow_run_id": run,
            "mlflow_experiment_id": experiment,
            "platform_project_id": _uuid(facts.get("project", "")),
            "links": links,
            "submitted_at": submitted_at,
        }
    )


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _in_order(submitted_at: datetime | None, at: str) -> datetime | None:
    """A server counts whole seconds. Within one, jobs are ordered by the clocks of those who sent them."""
    if submitted_at is None or submitted_at.microsecond or not at.isdigit():
        return submitted_at
    behind = int(at) - int(submitted_at.timestamp() * 1000)  # milliseconds; clocks may differ by a minute
    return submitted_at.replace(microsecond=min(max((behind + 60_000) * 8, 0), 999_999))
