"""Train machine-learning models on supercomputers from Prefect pipelines.

Names are imported when they are first used, so that `import prefect_mantik` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect_mantik.credentials import (
        FirecrestCredentials as FirecrestCredentials,
        MantikConnection as MantikConnection,
        MantikCredentials as MantikCredentials,
        MantikProject as MantikProject,
        UnicoreCredentials as UnicoreCredentials,
    )
    from prefect_mantik.environment import RuntimeContext as RuntimeContext
    from prefect_mantik.flows.reap_runs import reap_runs as reap_runs
    from prefect_mantik.flows.watch_runs import watch_runs as watch_runs
    from prefect_mantik.jobs import TrainingJob as TrainingJob, TrainingRun as TrainingRun
    from prefect_mantik.lifecycle.heartbeat import (
        acrash_runs_of_dead_hosts as acrash_runs_of_dead_hosts,
        crash_runs_of_dead_hosts as crash_runs_of_dead_hosts,
    )
    from prefect_mantik.lifecycle.hook import cancel_runs_of_flow as cancel_runs_of_flow
    from prefect_mantik.reports import (
        apublish_comparison as apublish_comparison,
        publish_comparison as publish_comparison,
    )
    from prefect_mantik.runs import (
        Reason as Reason,
        RunHandle as RunHandle,
        RunKey as RunKey,
        RunMetrics as RunMetrics,
        RunResult as RunResult,
        RunSpec as RunSpec,
        RunState as RunState,
        RunStatus as RunStatus,
    )
    from prefect_mantik.sites.firecrest.block import FirecrestSite as FirecrestSite
    from prefect_mantik.sites.mantik.block import MantikSite as MantikSite
    from prefect_mantik.sites.unicore.block import UnicoreSite as UnicoreSite
    from prefect_mantik.tasks import (
        aauthenticate as aauthenticate,
        acancel_run as acancel_run,
        afetch_log as afetch_log,
        agather_metrics as agather_metrics,
        aregister_model as aregister_model,
        asubmit_run as asubmit_run,
        asubmit_runs as asubmit_runs,
        authenticate as authenticate,
        await_for_run as await_for_run,
        await_for_runs as await_for_runs,
        cancel_run as cancel_run,
        fetch_log as fetch_log,
        gather_metrics as gather_metrics,
        register_model as register_model,
        select_best_run as select_best_run,
        submit_run as submit_run,
        submit_runs as submit_runs,
        wait_for_run as wait_for_run,
        wait_for_runs as wait_for_runs,
    )

_HOMES = {
    "credentials": (
        "FirecrestCredentials",
        "MantikConnection",
        "MantikCredentials",
        "MantikProject",
        "UnicoreCredentials",
    ),
    "environment": ("RuntimeContext",),
    "flows.reap_runs": ("reap_runs",),
    "flows.watch_runs": ("watch_runs",),
    "jobs": ("TrainingJob", "TrainingRun"),
    "lifecycle.heartbeat": ("acrash_runs_of_dead_hosts", "crash_runs_of_dead_hosts"),
    "lifecycle.hook": ("cancel_runs_of_flow",),
    "reports": ("apublish_comparison", "publish_comparison"),
    "runs": ("Reason", "RunHandle", "RunKey", "RunMetrics", "RunResult", "RunSpec", "RunState", "RunStatus"),
    "sites.firecrest.block": ("FirecrestSite",),
    "sites.mantik.block": ("MantikSite",),
    "sites.unicore.block": ("UnicoreSite",),
    "tasks": (
        "aauthenticate",
        "acancel_run",
        "afetch_log",
        "agather_metrics",
        "aregister_model",
        "asubmit_run",
        "asubmit_runs",
        "authenticate",
        "await_for_run",
        "await_for_runs",
        "cancel_run",
        "fetch_log",
        "gather_metrics",
        "register_model",
        "select_best_run",
        "submit_run",
        "submit_runs",
        "wait_for_run",
        "wait_for_runs",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)  # type checkers read the aliases above


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
