"""The three sites of the sandbox, who may use them, and the variables that point to everything."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prefect_mantik.sandbox import tracking
from prefect_mantik.sandbox.accounts import Connection, User
from prefect_mantik.sandbox.catalogue import Catalogue
from prefect_mantik.sandbox.jobs import SiteKind
from prefect_mantik.sandbox.scheduler import Site
from prefect_mantik.sandbox.settings import SandboxSettings, Switches
from prefect_mantik.sandbox.surroundings import Surroundings
from prefect_mantik.sandbox.unicore.identities import Person
from prefect_mantik.sandbox.watchdog import Watchdog


@dataclass(frozen=True)
class Place:
    """A site before it is built."""

    name: str
    kind: SiteKind
    path: str
    # Queues differ a little in length from site to site.
    delay_factor: float


PLACES = (
    Place("alder", "UNICORE", "/ALDER/rest/core", 1.0),
    Place("birch", "UNICORE", "/BIRCH/rest/core", 1.3),
    Place("cedar", "FirecREST", "/firecrest/v2", 0.7),
)


def build_sites(settings: SandboxSettings, switches: Switches, state: Path, url: str, watchdog: Watchdog) -> list[Site]:
    """Build the sites.

    Args:
        settings: Their size and manners.
        switches: The queue delay, looked at for every job.
        state: The sandbox's state directory.
        url: The sandbox's base URL.
        watchdog: Watches over their jobs.
    """
    surroundings = Surroundings(state / "software", settings.job_python)

    def delay(place: Place) -> Callable[[], float]:
        return lambda: switches.queue_delay * place.delay_factor

    return [
        Site(
            name=place.name,
            kind=place.kind,
            url=f"{url}{place.path}",
            directory=state / "sites" / place.name,
            slots=settings.slots,
            delay=delay(place),
            grace=settings.grace,
            surroundings=surroundings,
            watchdog=watchdog,
        )
        for place in PLACES
    ]


def connect(users: list[User], sites: list[Site]) -> list[Person]:
    """Give every user an account at every site and a connection for it, and tell who they are there.

    The person's own name and password are good at every UNICORE site; each stands for the site's local account.

    Args:
        users: The users.
        sites: The sites.
    """
    people = [Person(user.name) for user in users]
    for user, person in zip(users, people, strict=True):
        for site in sites:
            connection = Connection(
                name=site.name,
                provider=site.kind,
                login=f"{user.name}-at-{site.name}",
                password=secrets.token_urlsafe(18),
            )
            user.connections[connection.id] = connection
            site.passwords[connection.login] = connection.password
            person.logins[site.name] = connection.login
    return people


def environment(url: str, user: User, person: Person, catalogue: Catalogue, sites: list[Site]) -> dict[str, str]:
    """Give the variables that point to the sandbox.

    Args:
        url: The sandbox's base URL.
        user: Whose name and password are given.
        person: The same, as the UNICORE sites know them.
        catalogue: The project and its repositories.
        sites: The sites.
    """
    values = {
        "MANTIK_USERNAME": user.name,
        "MANTIK_PASSWORD": user.password,
        "MANTIK_API_URL": url,
        "MLFLOW_TRACKING_URI": f"{url}{tracking.PREFIX}/",
        "MANTIK_UNICORE_USERNAME": person.name,
        "MANTIK_UNICORE_PASSWORD": person.password,
        "MANTIK_COMPUTE_BUDGET_ACCOUNT": "sandbox-budget",
        "MANTIK_PROJECT_ID": str(catalogue.project_id),
        "MANTIK_EXPERIMENT_REPOSITORY_ID": str(catalogue.experiment_id),
        "MANTIK_CODE_REPOSITORY_ID": str(catalogue.code_id),
        "MANTIK_DATA_REPOSITORY_ID": str(catalogue.data_id),
    }
    connections = {connection.name: connection for connection in user.connections.values()}
    for site in sites:
        name = site.name.upper()
        values[f"MANTIK_CONNECTION_ID_{name}"] = str(connections[site.name].id)
        values[f"MANTIK_SANDBOX_{name}_URL"] = site.url
        if site.kind == "FirecREST":
            values["MANTIK_FIRECREST_CLIENT_ID"] = connections[site.name].login
            values["MANTIK_FIRECREST_CLIENT_SECRET"] = connections[site.name].password
            values[f"MANTIK_SANDBOX_{name}_TOKEN_URL"] = f"{url}/firecrest-auth/token"
            values[f"MANTIK_SANDBOX_{name}_ROOT"] = str(site.scratch(connections[site.name].login) / "runs")
    return values
