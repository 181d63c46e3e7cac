"""What a check of a UNICORE site tries: all that a run will need, without queueing one."""

from __future__ import annotations

from prefect_mantik.credentials import MantikProject
from prefect_mantik.errors import ConfigurationError, RequestFailed
from prefect_mantik.sites import direct
from prefect_mantik.sites.base import Finding
from prefect_mantik.sites.checking import Step, reach_tracking, tried
from prefect_mantik.sites.unicore.directory import RunDirectory
from prefect_mantik.sites.unicore.jobs import uspace
from prefect_mantik.unicore import UnicoreClient


async def check_site(client: UnicoreClient, name: str, queue: str, project: MantikProject | None) -> list[Finding]:
    """Log in, look for the queue, submit a job that never starts, write into its directory, reach the tracking server.

    Args:
        client: The site.
        name: What to call it.
        queue: Which queue runs will ask for.
        project: Whose tracking server is asked, where a project is known.
    """
    steps: dict[str, Step] = {
        "take jobs": lambda: _is_open(client, name),
        "find the queue": lambda: _find_queue(client, name, queue),
        "submit a job that never starts, and write into its directory": lambda: _submit(client),
    }
    if project:
        steps["reach the tracking server from here"] = lambda: reach_tracking(project)
    return await tried(("log in", lambda: _log_in(client)), steps)


async def _log_in(client: UnicoreClient) -> str:
    who = await client.who()
    return f"as {who.uid or who.dn}"


async def _is_open(client: UnicoreClient, name: str) -> str:
    if closed := (await client.who()).closed:
        raise RequestFailed(f"{name} takes no jobs now: {closed}")
    return ""


async def _find_queue(client: UnicoreClient, name: str, queue: str) -> str:
    queues = await client.queues()
    if queues and queue not in queues:
        raise ConfigurationError(f"{name} has no queue {queue}, only {', '.join(queues)}.")
    return queue if queues else f"{queue}; the site does not list its queues"


async def _submit(client: UnicoreClient) -> str:
    job = await client.submit(
        {
            "Name": "prefect-mantik check",
            "haveClientStageIn": "true",
            "Umask": "0077",
            "Imports": [{"To": direct.TOKEN_FILE, "Data": "-", "Permissions": "rw-------"}],
        }
    )
    try:
        await RunDirectory(client, job).names()
        await client.write(uspace(job), "check", b"written by prefect-mantik\n")
    finally:
        await client.delete_job(job)
    return ""
