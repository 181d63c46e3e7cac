"""What a check of a FirecREST site tries: all that a run will need, without queueing one."""

from __future__ import annotations

import posixpath
import secrets

from prefect_mantik.backend_config import BackendConfig, refuse_unsendable
from prefect_mantik.credentials import MantikProject
from prefect_mantik.errors import ConfigurationError, RequestFailed
from prefect_mantik.firecrest import FirecrestClient, System
from prefect_mantik.sites.base import Finding
from prefect_mantik.sites.checking import Step, reach_tracking, tried
from prefect_mantik.sites.firecrest.settings import Settings


async def check_site(client: FirecrestClient, settings: Settings, project: MantikProject | None) -> list[Finding]:
    """Log in, look for partition and account, write below the root, list jobs, reach the tracking server.

    A job cannot be tried: FirecREST has none that never starts.

    Args:
        client: The system.
        settings: What runs will ask for.
        project: Whose tracking server is asked, where a project is known.
    """
    partition, root = settings.config.resources.queue, settings.root
    steps: dict[str, Step] = {
        "list our jobs": lambda: _list(client),
        "find the partition": lambda: _find_partition(client, partition),
        "send what the backend config asks for": lambda: _can_be_sent(client, settings.config),
        f"write below {root}": lambda: _write(client, root),
    }
    if settings.account:
        steps["find the account"] = lambda: _find_account(client, settings.account)
    if project:
        steps["reach the tracking server from here"] = lambda: reach_tracking(project)
    return await tried(("log in, and find the system", lambda: _log_in(client)), steps)


def check_root(system: System, root: str) -> None:
    """Refuse a working root that the system does not show.

    Raises:
        ConfigurationError: It is in none of the file systems.
    """
    if not system.holds(root):
        paths = ", ".join(item.path for item in system.file_systems)
        raise ConfigurationError(
            f"{root} is in none of the file systems that {system.name} shows ({paths}). Change the working root of the "
            "site's block."
        )


async def _can_be_sent(client: FirecrestClient, config: BackendConfig) -> str:
    if not (await client.about()).reads_directives:
        refuse_unsendable(config)
    return ""


async def _log_in(client: FirecrestClient) -> str:
    system = await client.log_in()
    user, _ = await client.user()
    mode = "" if system.reads_directives else "; it reads no #SBATCH lines: resources are the partition's defaults"
    return f"as {user}{mode}"


async def _list(client: FirecrestClient) -> str:
    sick = [item for item in (await client.log_in()).services_health if item.healthy is False]
    if sick:
        told = "; ".join(f"{item.service_type}: {item.message or 'no word'}" for item in sick)
        raise RequestFailed(f"FirecREST calls the system unhealthy ({told}). It asks again every minute or two.")
    return f"{len(await client.jobs('24h'))} in the last day"


async def _find_partition(client: FirecrestClient, partition: str) -> str:
    known = await client.partitions()
    if known and partition not in known:
        raise ConfigurationError(f"There is no partition {partition}, only {', '.join(known)}.")
    return partition if known else f"{partition}; the site does not list its partitions"


async def _find_account(client: FirecrestClient, account: str) -> str:
    _, known = await client.user()
    # Slurm's own commands cut long names, which FirecREST passes on: `service-a+`.
    if known and not any(account == name or (name.endswith("+") and account.startswith(name[:-1])) for name in known):
        raise ConfigurationError(f"There is no account {account} for this user, only {', '.join(known)}.")
    return account if known else f"{account}; the site does not list the accounts"


async def _write(client: FirecrestClient, root: str) -> str:
    name = f"mantik-check-{secrets.token_hex(4)}"
    check_root(await client.about(), root)
    await client.mkdir(root)
    await client.upload(root, name, b"written by prefect-mantik\n")
    await client.remove(posixpath.join(root, name))
    return ""
