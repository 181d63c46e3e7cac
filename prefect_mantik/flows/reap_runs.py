"""End jobs whose flow run was cancelled. Deploy it on a schedule, once for each Prefect server."""

from __future__ import annotations

from prefect import flow, get_run_logger

from prefect_mantik.lifecycle.reaper import Reaped, reap
from prefect_mantik.loop import call
from prefect_mantik.reports import publish_reaped


@flow(name="reap-runs")
def reap_runs(
    sites: list[str] | None = None, reap_unknown: bool = False, older_than_hours: float | None = None
) -> Reaped:
    """Cancel jobs whose flow run is Cancelled, at all saved sites.

    It looks at jobs of this Prefect server only, never at those of another one that uses the same account. A job whose
    flow run Crashed, or failed, or still runs, is left alone: somebody may come back for it. A job whose flow run
    Prefect does not know is reported.

    Args:
        sites: References of the sites to ask, such as "unicore-site/birch". By default all that are saved.
        reap_unknown: Also cancel jobs whose flow run Prefect does not know. Needs older_than_hours.
        older_than_hours: Age in hours from which on such jobs are cancelled.
    """
    reaped = call(reap, sites, reap_unknown=reap_unknown, older_than_hours=older_than_hours)
    get_run_logger().info(reaped.describe())
    publish_reaped(reaped)
    return reaped
