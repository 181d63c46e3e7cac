"""The tracking server's operations that we need, over REST.

MLflow's own client takes its credentials from the environment, from `~/.mlflow/credentials` and from netrc, all of
which win over a token, and shares one store between accounts at the same URI. This client sends the bearer token of
its account and nothing else. Only endpoints that MLflow 2.2 has are used: the platform's version is not known.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from time import time as wall_clock
from typing import Any

from pydantic import BaseModel, ConfigDict, SecretStr

from prefect_mantik.api import TOTAL_TIMEOUT, BearerLogin, Call, JsonApi
from prefect_mantik.errors import NotFound, RequestFailed, ServiceUnavailable
from prefect_mantik.loop import per_process
from prefect_mantik.platform import PlatformTokens, platform_client
from prefect_mantik.runs import MetricValue

_MLFLOW = "/api/2.0/mlflow"
_PAGE = 1000

PREPARING = "-preparing"
"""How the name of a run ends that was made and does not wait for its job yet."""

POLL_TIMEOUT = 20.0
"""Seconds for what is asked again anyway, or is a help and no need."""

_IDS_PER_CALL = _PAGE


class TrackedRun(BaseModel):
    """An MLflow run as `runs/search` shows it, final metrics included."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    experiment_id: str
    name: str = ""
    status: str = ""
    start_time: datetime | None = None
    end_time: datetime | None = None
    artifact_uri: str = ""
    deleted: bool = False
    metrics: Mapping[str, MetricValue]
    parameters: Mapping[str, str]
    tags: Mapping[str, str]


class TrackingClient:
    """One account at one tracking server. Use `tracking_client`, which shares one for each account.

    Args:
        uri: Tracking URI, with its path prefix.
        username: For messages and the connection pool.
        tokens: Where bearer tokens come from.
    """

    def __init__(self, uri: str, username: str, tokens: PlatformTokens) -> None:
        self.uri, self.tokens = uri.rstrip("/"), tokens
        self._api = JsonApi("the tracking server", self.uri, username, BearerLogin(tokens))
        self._searches_by_id = True

    def now(self) -> datetime:
        """The server's clock."""
        return self._api.now()

    def run_link(self, experiment_id: str, run_id: str) -> str:
        """Where a person looks at a run."""
        return f"{self.uri}/#/experiments/{experiment_id}/runs/{run_id}"

    def model_link(self, name: str, version: str) -> str:
        """Where a person looks at a version of a registered model."""
        return f"{self.uri}/#/models/{name}/versions/{version}"

    async def experiment_ids(self) -> list[str]:
        """The ids of all experiments that the account sees."""
        body = {"max_results": _PAGE, "view_type": "ACTIVE_ONLY"}
        return [str(found["experiment_id"]) for found in await self._pages("experiments/search", body, "experiments")]

    async def runs_named_like(self, part: str, experiment_ids: Sequence[str]) -> list[TrackedRun]:
        """Runs whose name contains a text of [a-z0-9-], newest first, deleted ones too.

        A run that somebody deleted in the UI may still have a live job, so it is not left out.
        """
        if not experiment_ids:
            return []
        return await self._search(f"attributes.run_name LIKE '%{part}%'", experiment_ids)

    async def runs_by_id(
        self, run_ids: Sequence[str], experiment_ids: Sequence[str], *, timeout: float = TOTAL_TIMEOUT
    ) -> dict[str, TrackedRun]:
        """Runs by their ids, in as few calls as possible: one for each 1,000. Unknown ones are left out."""
        unique = sorted(set(run_ids))
        if not self._searches_by_id:
            return await self._one_by_one(unique, timeout)
        found: dict[str, TrackedRun] = {}
        for start in range(0, len(unique), _IDS_PER_CALL):
            listed = ", ".join(f"'{run_id}'" for run_id in unique[start : start + _IDS_PER_CALL])
            try:
                runs = await self._search(f"attributes.run_id IN ({listed})", sorted(set(experiment_ids)), timeout)
            except RequestFailed as error:
                if error.status != 400 or "clause" not in error.detail:
                    raise
                # MLflow 2.2 with a sqlparse from 0.4.4 on takes `IN` for an invalid clause.
                self._searches_by_id = False
                return await self._one_by_one(unique, timeout)
            found.update({run.run_id: run for run in runs})
        return found

    async def _one_by_one(self, run_ids: Sequence[str], timeout: float) -> dict[str, TrackedRun]:
        runs = await asyncio.gather(*(self.run(run_id, timeout) for run_id in run_ids))
        return {run.run_id: run for run in runs if run}

    async def run(self, run_id: str, timeout: float = POLL_TIMEOUT) -> TrackedRun | None:
        """One run; None where the server has none of this id."""
        try:
            answer = await self.call("GET", "runs/get", params={"run_id": run_id}, timeout=timeout)
        except NotFound:
            return None
        return _tracked(answer["run"])

    async def runs_tagged(self, key: str, value: str, experiment_ids: Sequence[str]) -> list[TrackedRun]:
        """Runs with a tag of a value of [a-z0-9-], newest first, deleted ones too."""
        return await self._search(f"tags.`{key}` = '{value}'", experiment_ids) if experiment_ids else []

    async def create_run(self, experiment_id: str, name: str, tags: Mapping[str, str]) -> TrackedRun:
        """Make a run that waits for its job. Not repeatable: look for the tags first.

        MLflow begins every run as RUNNING. So it gets its name together with SCHEDULED, in one call: a run whose name
        still ends with `PREPARING` was cut off between the two, and is at work for nobody.
        """
        body = {
            "experiment_id": experiment_id,
            "run_name": name + PREPARING,
            "start_time": int(wall_clock() * 1000),
            "tags": [{"key": key, "value": value} for key, value in tags.items()],
        }
        made = _tracked((await self.call("POST", "runs/create", body, repeatable=False))["run"])
        await self.schedule_run(made.run_id, name)
        return made.model_copy(update={"name": name})

    async def schedule_run(self, run_id: str, name: str) -> None:
        """Say of a run that was made that it waits for its job."""
        await self.call("POST", "runs/update", {"run_id": run_id, "status": "SCHEDULED", "run_name": name})

    async def set_status(self, run_id: str, status: str, end_time: datetime | None = None) -> None:
        """Set the status of a run, one of MLflow's words."""
        body: dict[str, Any] = {"run_id": run_id, "status": status}
        if end_time:
            body["end_time"] = int(end_time.timestamp() * 1000)
        await self.call("POST", "runs/update", body, timeout=POLL_TIMEOUT)

    async def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        body = {"run_id": run_id, "tags": [{"key": key, "value": value} for key, value in tags.items()]}
        await self.call("POST", "runs/log-batch", body, timeout=POLL_TIMEOUT)

    async def artifacts(self, run_id: str, path: str = "") -> list[dict[str, Any]]:
        """List the artifacts of a run below a path: `path`, `is_dir`, `file_size` of each."""
        params = {"run_id": run_id, **({"path": path} if path else {})}
        return list((await self.call("GET", "artifacts/list", params=params)).get("files", []))

    async def call(
        self,
        method: str,
        path: str,
        json: Any = None,
        *,
        params: Mapping[str, str] | None = None,
        timeout: float = TOTAL_TIMEOUT,
        repeatable: bool = True,
    ) -> dict[str, Any]:
        """Call one of MLflow's REST endpoints.

        Raises:
            NotFound: MLflow, or something before it, answers 404.
            RequestFailed: It refused the request.
            ServiceUnavailable: No usable answer.
        """
        answer = await self._api.call(
            Call(method, f"{_MLFLOW}/{path}", json=json, params=params, timeout=timeout, repeatable=repeatable)
        )
        if not isinstance(answer, dict):
            raise ServiceUnavailable(
                f"{method} {_MLFLOW}/{path}: {self.uri} does not answer as MLflow does. Is this the tracking URI?",
                method=method,
                path=f"{_MLFLOW}/{path}",
            )
        return answer

    async def _search(
        self, condition: str, experiment_ids: Sequence[str], timeout: float = TOTAL_TIMEOUT
    ) -> list[TrackedRun]:
        body = {
            "experiment_ids": list(experiment_ids),
            "filter": condition,
            "run_view_type": "ALL",
            "order_by": ["attributes.start_time DESC"],
            "max_results": _PAGE,
        }
        return [_tracked(run) for run in await self._pages("runs/search", body, "runs", timeout)]

    async def _pages(
        self, path: str, body: Mapping[str, Any], name: str, timeout: float = TOTAL_TIMEOUT
    ) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        page_token = None
        while True:
            page = {**body, **({"page_token": page_token} if page_token else {})}
            answer = await self.call("POST", path, page, timeout=timeout)
            if answer and name not in answer and "next_page_token" not in answer:
                # An empty search is `{}`. Anything else is not MLflow's: never taken for "there is no run".
                raise ServiceUnavailable(f"POST {_MLFLOW}/{path}: {self.uri} does not answer as MLflow does.")
            rows.extend(answer.get(name, []))
            page_token = answer.get("next_page_token")
            if not page_token:
                return rows


def _tracked(run: Mapping[str, Any]) -> TrackedRun:
    info, data = run["info"], run.get("data", {})
    return TrackedRun(
        run_id=info["run_id"],
        experiment_id=str(info["experiment_id"]),
        name=info.get("run_name") or _pairs(data.get("tags", [])).get("mlflow.runName", ""),
        status=str(info.get("status", "")),
        start_time=moment(info.get("start_time")),
        end_time=moment(info.get("end_time")),
        artifact_uri=info.get("artifact_uri", ""),
        deleted=info.get("lifecycle_stage") == "deleted",
        # At the highest step: the last value, which is not always the best one.
        metrics={item["key"]: _metric(item) for item in data.get("metrics", [])},
        parameters=_pairs(data.get("params", [])),
        tags=_pairs(data.get("tags", [])),
    )


def _metric(item: Mapping[str, Any]) -> MetricValue:
    time = moment(item.get("timestamp")) or datetime.fromtimestamp(0, timezone.utc)
    # MLflow writes NaN and infinities as texts, which float() reads.
    return MetricValue(value=float(item["value"]), step=int(item.get("step", 0)), time=time)


def _pairs(items: Sequence[Mapping[str, str]]) -> dict[str, str]:
    return {item["key"]: item.get("value", "") for item in items}


def moment(milliseconds: str | int | None) -> datetime | None:
    """MLflow's times are milliseconds since 1970; 0 and absence mean none.

    A script can log any number as the time of a metric, such as nanoseconds: a time that no calendar has is none.
    """
    number = int(milliseconds or 0)
    try:
        return datetime.fromtimestamp(number / 1000, timezone.utc) if number else None
    except (OverflowError, ValueError, OSError):
        return None


@per_process
def tracking_client(
    uri: str, api_url: str, username: str, password: SecretStr, overrides: tuple[tuple[str, str], ...] = ()
) -> TrackingClient:
    """The tracking client of one platform account, shared by all who use that account in this process."""
    return TrackingClient(uri, username, platform_client(api_url, username, password, overrides).tokens)
