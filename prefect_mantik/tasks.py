"""The verbs for flows. Each comes as `verb` and as `averb`, its awaited twin.

Every task is NO_CACHE, submits too: the site is the memory. A result that Prefect cached by run id would answer a retry
with a run that ended long ago, without asking the site.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from prefect import State, task
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import Abort
from prefect.runtime import task_run
from prefect.states import Cancelled

from prefect_mantik import holding, jobs
from prefect_mantik.credentials import MantikCredentials
from prefect_mantik.documents import aload_block, reference
from prefect_mantik.errors import ConfigurationError, MetricMissing, NotSupported, RunsFailed, SubmitsFailed
from prefect_mantik.holding import OnTimeout
from prefect_mantik.jobs import TrainingJob, TrainingRun, as_handle
from prefect_mantik.loop import acall, call
from prefect_mantik.results import LoginInfo, ModelVersion
from prefect_mantik.runs import IfEnded, ParameterValue, RunHandle, RunMetrics, RunResult, Scope
from prefect_mantik.sites.opening import tracking_of

if TYPE_CHECKING:
    from prefect_mantik.tracking import TrackingClient

Run: TypeAlias = RunHandle | RunResult | TrainingRun
"""Anything that stands for a run."""

OnFailure = Literal["raise", "return"]
Mode = Literal["min", "max"]

R = TypeVar("R", bound=RunHandle | RunResult | TrainingRun)


def _submit_name() -> str:
    parameters: dict[str, Any] = task_run.parameters
    job = parameters["job"]
    site = reference(job.site) if isinstance(job, TrainingJob) else job
    return f"submit {parameters['key']} to {site.rpartition('/')[2] if site else 'a site made in code'}"


@task(name="authenticate", task_run_name="authenticate", cache_policy=NO_CACHE)
def authenticate(credentials: MantikCredentials | str) -> LoginInfo:
    """Log in to the platform, so that a flow with a wrong password fails in its first second.

    Args:
        credentials: The account, or the name of its saved block.

    Returns:
        User name, user id and when the token ends; never a token.

    Raises:
        LoginRefused: The platform refused user name and password. They are tried once.
        ServiceUnavailable: It could not be asked.
    """
    return call(_authenticate, credentials)


@task(name="authenticate", task_run_name="authenticate", cache_policy=NO_CACHE)
async def aauthenticate(credentials: MantikCredentials | str) -> LoginInfo:
    """As `authenticate`, awaited."""
    return await acall(_authenticate, credentials)


@task(name="submit run", task_run_name=_submit_name, cache_policy=NO_CACHE)
def submit_run(
    job: TrainingJob | str,
    *,
    key: str,
    parameters: Mapping[str, ParameterValue] | None = None,
    if_ended: IfEnded = "raise",
    scope: Scope = "flow",
    shared: bool = False,
) -> RunHandle:
    """Submit a training run, or return the run that exists under the key: at most one live job, whatever crashes.

    Args:
        job: What to train and where, or the name of a saved `TrainingJob`.
        key: Your stable name for this run, unique in the flow run and all its child flows.
        parameters: Parameters of the entry point, added to those of the job or replacing them.
        if_ended: What to do when the key's run ended without success: "raise", or "resubmit" as another attempt.
        scope: "flow": the key belongs to this flow run. "origin": it outlives it, so that tonight's flow run takes
            over yesterday's run. Outside a flow always "origin".
        shared: Accept that the key belongs to a run with another description, or of another child flow.

    Returns:
        The handle, which finds the run again from any process.

    Raises:
        SubmitRefused: The site said no; no job exists.
        SubmitUnknown: The site cannot tell; submit again under the same key when it answers.
        KeyInUse: The key belongs to a run with another description, at another site, or of another child flow.
        RunEnded: The key's run ended without success.
        DuplicateJobs: Two live jobs are under the key.
        ConfigurationError: The job, its blocks or the key cannot be used; nothing was sent.
    """
    return call(jobs.submit, job, key=key, parameters=parameters, if_ended=if_ended, scope=scope, shared=shared)


@task(name="submit run", task_run_name=_submit_name, cache_policy=NO_CACHE)
async def asubmit_run(
    job: TrainingJob | str,
    *,
    key: str,
    parameters: Mapping[str, ParameterValue] | None = None,
    if_ended: IfEnded = "raise",
    scope: Scope = "flow",
    shared: bool = False,
) -> RunHandle:
    """As `submit_run`, awaited."""
    return await acall(jobs.submit, job, key=key, parameters=parameters, if_ended=if_ended, scope=scope, shared=shared)


def submit_runs(
    jobs: Mapping[str, TrainingJob | str],
    *,
    parameters: Mapping[str, ParameterValue] | None = None,
    if_ended: IfEnded = "raise",
    scope: Scope = "flow",
    shared: bool = False,
) -> dict[str, RunHandle]:
    """Submit several training runs at the same time.

    Args:
        jobs: For each key its job, or the name of a saved one.
        parameters: For all of them, see `submit_run`.
        if_ended: See `submit_run`.
        scope: See `submit_run`.
        shared: See `submit_run`.

    Returns:
        The handles, by key.

    Raises:
        SubmitsFailed: Some were not submitted. It carries the handles of the others, which are live.
    """
    return call(asubmit_runs, jobs, parameters=parameters, if_ended=if_ended, scope=scope, shared=shared)


async def asubmit_runs(
    jobs: Mapping[str, TrainingJob | str],
    *,
    parameters: Mapping[str, ParameterValue] | None = None,
    if_ended: IfEnded = "raise",
    scope: Scope = "flow",
    shared: bool = False,
) -> dict[str, RunHandle]:
    """As `submit_runs`, awaited."""
    submits = [
        asubmit_run(job, key=key, parameters=parameters, if_ended=if_ended, scope=scope, shared=shared)
        for key, job in jobs.items()
    ]
    outcomes = dict(zip(jobs, await asyncio.gather(*submits, return_exceptions=True), strict=True))
    handles = {key: outcome for key, outcome in outcomes.items() if isinstance(outcome, RunHandle)}
    errors = {key: outcome for key, outcome in outcomes.items() if isinstance(outcome, BaseException)}
    if errors:
        raise SubmitsFailed(handles, errors)
    return handles


def wait_for_runs(
    runs: Mapping[str, R] | Sequence[R],
    *,
    on_failure: OnFailure = "raise",
    wait: Literal["hold", "suspend"] = "hold",
    timeout: float | None = None,
    on_timeout: OnTimeout = "leave",
) -> list[RunResult]:
    """Wait until all runs ended. Changes of state are logged, with the times in the queue and at work.

    Args:
        runs: Handles in a list, or by key as `submit_runs` returns them.
        on_failure: "raise" when a run did not finish, or "return" all results whatever they are.
        wait: "hold" keeps this process. "suspend" ends it: the flow run is suspended until the deployed flow
            `watch_runs` sees that the runs ended, and then begins at its top; its submits are given the same runs as
            before. Where that cannot be (a child flow, a flow without a deployment, a wait within a task, no
            `watch_runs` deployed) the wait says why, and holds.
        timeout: Seconds after which to stop waiting. None: no limit. Time that the flow run is suspended counts.
        on_timeout: What then becomes of runs that have not ended: "leave" them alone, or "cancel" them.

    Returns:
        The results, in the order given.

    Raises:
        RunsFailed: Some runs did not finish. It carries all results.
        WaitTimeout: The time passed first.
        SiteSilent: A run gave no sign of life for as long as its site's block allows.
    """
    handles = _handles(runs)
    left = timeout
    if _suspends(wait, on_timeout):
        from prefect_mantik.suspending import suspend_until_ended

        left = suspend_until_ended(handles, timeout)
    return _unless_cancelled(_wait_for_runs(handles, on_failure, left, on_timeout))


async def await_for_runs(
    runs: Mapping[str, R] | Sequence[R],
    *,
    on_failure: OnFailure = "raise",
    wait: Literal["hold", "suspend"] = "hold",
    timeout: float | None = None,
    on_timeout: OnTimeout = "leave",
) -> list[RunResult]:
    """As `wait_for_runs`, awaited."""
    handles = _handles(runs)
    left = timeout
    if _suspends(wait, on_timeout):
        from prefect_mantik.suspending import asuspend_until_ended

        left = await asuspend_until_ended(handles, timeout)
    return _unless_cancelled(await _await_for_runs(handles, on_failure, left, on_timeout))


def wait_for_run(
    run: Run,
    *,
    on_failure: OnFailure = "raise",
    wait: Literal["hold", "suspend"] = "hold",
    timeout: float | None = None,
    on_timeout: OnTimeout = "leave",
) -> RunResult:
    """Wait until one run ended. Arguments and errors as for `wait_for_runs`."""
    return wait_for_runs([run], on_failure=on_failure, wait=wait, timeout=timeout, on_timeout=on_timeout)[0]


async def await_for_run(
    run: Run,
    *,
    on_failure: OnFailure = "raise",
    wait: Literal["hold", "suspend"] = "hold",
    timeout: float | None = None,
    on_timeout: OnTimeout = "leave",
) -> RunResult:
    """As `wait_for_run`, awaited."""
    return (await await_for_runs([run], on_failure=on_failure, wait=wait, timeout=timeout, on_timeout=on_timeout))[0]


@task(name="gather metrics", task_run_name="gather metrics", cache_policy=NO_CACHE)
def gather_metrics(runs: Mapping[str, R] | Sequence[R], *, history: Sequence[str] | None = None) -> list[RunMetrics]:
    """What runs logged to MLflow: final metrics, parameters and tags, in one call for each tracking account.

    Args:
        runs: Handles or results, in a list or by key.
        history: Not in this version: metrics of which all steps are wanted.

    Returns:
        One for each run, in the order given. A run that logged nothing has no metrics.

    Raises:
        NotSupported: `history` was given.
    """
    return call(_gather, _handles(runs), history)


@task(name="gather metrics", task_run_name="gather metrics", cache_policy=NO_CACHE)
async def agather_metrics(
    runs: Mapping[str, R] | Sequence[R], *, history: Sequence[str] | None = None
) -> list[RunMetrics]:
    """As `gather_metrics`, awaited."""
    return await acall(_gather, _handles(runs), history)


def select_best_run(
    metrics: Sequence[RunMetrics], metric: str, *, mode: Mode, at: Literal["final", "best"] = "final"
) -> RunMetrics:
    """The run with the best value of a metric. Runs without the metric, or whose value is not finite, do not count.

    Args:
        metrics: From `gather_metrics`.
        metric: Name of the metric.
        mode: Whether the smallest ("min") or the largest ("max") value is the best.
        at: "final": the last value of each run. "best", its best value, is not in this version.

    Raises:
        MetricMissing: No run has it.
        NotSupported: `at="best"`.
        ValueError: `mode` is neither "min" nor "max".
    """
    if mode not in ("min", "max"):
        raise ValueError(f'mode is "min" or "max", not {mode!r}')
    if at != "final":
        raise NotSupported(f'at={at!r} is not in this version: use at="final", the last value of each run.')
    usable = [run for run in metrics if metric in run.final and math.isfinite(run.final[metric].value)]
    if not usable:
        known = sorted({name for run in metrics for name in run.final})
        shown = f"they logged {', '.join(known)}" if known else "they logged no metric at all"
        raise MetricMissing(
            f"None of {len(metrics)} training runs has a finite value of the metric {metric!r}: {shown}."
        )
    choose = min if mode == "min" else max
    return choose(usable, key=lambda run: run.final[metric].value)


@task(name="register model", task_run_name="register model {name}", cache_policy=NO_CACHE)
def register_model(run: Run | RunMetrics, *, name: str) -> ModelVersion:
    """Register the model that a run logged as a version of a model in MLflow's registry; once, however often called.

    Args:
        run: The run, or its metrics.
        name: Of the registered model; it is made if there is none.

    Raises:
        NotFound: The run logged no model.
    """
    return call(_register, run, name)


@task(name="register model", task_run_name="register model {name}", cache_policy=NO_CACHE)
async def aregister_model(run: Run | RunMetrics, *, name: str) -> ModelVersion:
    """As `register_model`, awaited."""
    return await acall(_register, run, name)


@task(name="fetch log", task_run_name="fetch log", cache_policy=NO_CACHE)
def fetch_log(run: Run) -> str:
    """The log of a run so far.

    Raises:
        NotSupported: The site shows no logs; the message names what does.
    """
    return call(jobs.log, as_handle(run))


@task(name="fetch log", task_run_name="fetch log", cache_policy=NO_CACHE)
async def afetch_log(run: Run) -> str:
    """As `fetch_log`, awaited."""
    return await acall(jobs.log, as_handle(run))


@task(name="cancel run", task_run_name="cancel run", cache_policy=NO_CACHE)
def cancel_run(run: Run) -> None:
    """End a run. That it has ended already is success.

    Raises:
        NotSupported: The site cannot be told to; the message names what can.
    """
    call(jobs.cancel, as_handle(run))


@task(name="cancel run", task_run_name="cancel run", cache_policy=NO_CACHE)
async def acancel_run(run: Run) -> None:
    """As `cancel_run`, awaited."""
    await acall(jobs.cancel, as_handle(run))


@task(name="wait for runs", task_run_name="wait for runs", cache_policy=NO_CACHE)
def _wait_for_runs(
    handles: list[RunHandle], on_failure: str, timeout: float | None, on_timeout: OnTimeout
) -> list[RunResult] | State[list[RunResult]]:
    try:
        return _judged(holding.hold(handles, timeout=timeout, on_timeout=on_timeout), on_failure)
    except Abort as cancelled:
        return Cancelled(message=str(cancelled))


@task(name="wait for runs", task_run_name="wait for runs", cache_policy=NO_CACHE)
async def _await_for_runs(
    handles: list[RunHandle], on_failure: str, timeout: float | None, on_timeout: OnTimeout
) -> list[RunResult] | State[list[RunResult]]:
    try:
        return _judged(await holding.ahold(handles, timeout=timeout, on_timeout=on_timeout), on_failure)
    except Abort as cancelled:
        return Cancelled(message=str(cancelled))


def _unless_cancelled(outcome: list[RunResult] | State[list[RunResult]]) -> list[RunResult]:
    """The wait's task ends as cancelled; the flow must not go on, nor take it for an error."""
    if isinstance(outcome, State):
        raise Abort(outcome.message)
    return outcome


def _suspends(wait: str, on_timeout: str) -> bool:
    """Whether to suspend. What is wrong is said now: after the suspension may be days later."""
    if wait not in ("hold", "suspend"):
        raise ConfigurationError(f'wait is "hold" or "suspend", not {wait!r}')
    if on_timeout not in ("leave", "cancel"):
        raise ConfigurationError(f'on_timeout is "leave" or "cancel", not {on_timeout!r}')
    return wait == "suspend"


def _judged(results: list[RunResult], on_failure: str) -> list[RunResult]:
    if on_failure == "raise" and not all(result.finished for result in results):
        raise RunsFailed(results)
    return results


async def _authenticate(credentials: MantikCredentials | str) -> LoginInfo:
    account = await aload_block(MantikCredentials, credentials) if isinstance(credentials, str) else credentials
    return await account.get_client().tokens.login()


async def _gather(handles: list[RunHandle], history: Sequence[str] | None) -> list[RunMetrics]:
    if history is not None:
        raise NotSupported("history is not in this version: final metrics are gathered without it.")
    from prefect_mantik.tracking import final_metrics

    accounts: dict[TrackingClient, list[RunHandle]] = {}
    for handle in handles:
        accounts.setdefault(await tracking_of(handle), []).append(handle)
    gathered = await asyncio.gather(*(final_metrics(client, theirs) for client, theirs in accounts.items()))
    by_handle = {metrics.handle: metrics for account in gathered for metrics in account}
    return [by_handle[handle] for handle in handles]


async def _register(run: Run | RunMetrics, name: str) -> ModelVersion:
    handle = run.handle if isinstance(run, RunMetrics) else as_handle(run)
    from prefect_mantik.tracking import register

    return await register(await tracking_of(handle), handle, name=name)


def _handles(runs: Mapping[str, R] | Sequence[R]) -> list[RunHandle]:
    return [as_handle(run) for run in (runs.values() if isinstance(runs, Mapping) else runs)]
