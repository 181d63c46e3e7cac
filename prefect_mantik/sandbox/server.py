"""Puts the sandbox together and runs it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from starlette.routing import Route

from prefect_mantik.sandbox import tracking
from prefect_mantik.sandbox.accounts import Accounts, Connection, User
from prefect_mantik.sandbox.catalogue import Catalogue
from prefect_mantik.sandbox.control import Control
from prefect_mantik.sandbox.downloads import Downloads
from prefect_mantik.sandbox.env_file import write_env_file
from prefect_mantik.sandbox.errors import parse
from prefect_mantik.sandbox.faults import Faults, Rule
from prefect_mantik.sandbox.jobs import SiteKind
from prefect_mantik.sandbox.mlflow_server import MlflowServer
from prefect_mantik.sandbox.platform import Platform
from prefect_mantik.sandbox.repositories import Git
from prefect_mantik.sandbox.runs import Runs
from prefect_mantik.sandbox.scheduler import Site
from prefect_mantik.sandbox.settings import SandboxSettings, Switches
from prefect_mantik.sandbox.surroundings import Surroundings
from prefect_mantik.sandbox.watchdog import Watchdog
from prefect_mantik.sandbox.web import WebServer

logger = logging.getLogger(__name__)

Echo = Callable[[str], None]

_USERS = ("sandbox", "sandbox-2")
_PROJECT = Path(__file__).with_name("project")


@dataclass(frozen=True)
class _Place:
    name: str
    kind: SiteKind
    path: str
    # Queues differ a little in length from site to site.
    delay_factor: float


_PLACES = (
    _Place("alder", "UNICORE", "/ALDER/rest/core", 1.0),
    _Place("birch", "UNICORE", "/BIRCH/rest/core", 1.3),
    _Place("cedar", "FirecREST", "/firecrest", 0.7),
)


@dataclass(frozen=True)
class RunningSandbox:
    """A sandbox that is up."""

    url: str
    tracking_uri: str
    control_url: str
    control_token: str
    login_url: str
    state_dir: Path
    environment: dict[str, str]


@contextlib.asynccontextmanager
async def sandbox(
    settings: SandboxSettings | None = None, *, echo: Echo = logger.info
) -> AsyncIterator[RunningSandbox]:
    """Run a sandbox in the current event loop for as long as the context lasts.

    Args:
        settings: How it is set up.
        echo: Told what is going on while it starts.
    """
    settings = settings or SandboxSettings()
    async with contextlib.AsyncExitStack() as stack:
        watchdog = Watchdog()
        stack.callback(watchdog.close)
        state = _state_directory(settings, watchdog)
        listener = stack.enter_context(_listen(settings.port))
        port: int = listener.getsockname()[1]
        mlflow = MlflowServer(state / "mlflow", watchdog, settings.mlflow_command)
        stack.push_async_callback(mlflow.stop)
        echo("starting MLflow, which takes about ten seconds ...")
        await mlflow.start()
        git = Git(state / "git-home")
        code, data = state / "repositories" / "code", state / "repositories" / "data"
        git.publish(_PROJECT, code)
        git.publish(_data_files(state / "repositories" / "data-files"), data)
        await mlflow.wait_ready()
        catalogue = Catalogue(
            mlflow_experiment_id=await mlflow.experiment("sandbox"),
            experiment_name="sandbox",
            code_uri=f"file://{code}",
            data_uri=f"file://{data}",
            data_commit=git.run(data, "rev-parse", "HEAD").decode().strip(),
        )
        echo("MLflow is up; starting the platform and its sites ...")
        running = await _serve_all(stack, settings, state, listener, mlflow, git, catalogue, watchdog, port)
        yield running
        echo("stopping ...")


async def _serve_all(
    stack: contextlib.AsyncExitStack,
    settings: SandboxSettings,
    state: Path,
    listener: socket.socket,
    mlflow: MlflowServer,
    git: Git,
    catalogue: Catalogue,
    watchdog: Watchdog,
    port: int,
) -> RunningSandbox:
    url = f"http://127.0.0.1:{port}"
    switches = Switches.from_settings(settings)
    sites = _sites(settings, switches, state, url, watchdog)
    users = [User(name) for name in _USERS]
    _connect(users, sites)
    accounts = Accounts(users, switches, issuer=url)
    runs = Runs(
        accounts=accounts,
        catalogue=catalogue,
        sites=sites,
        mlflow=mlflow,
        git=git,
        switches=switches,
        directory=state / "checkouts",
        tracking_uri=f"{url}{tracking.PREFIX}/",
    )
    for site in sites:
        stack.push_async_callback(site.close)
    stack.push_async_callback(runs.close)
    downloads = Downloads(mlflow, catalogue.mlflow_experiment_id, url)
    browser = tracking.BrowserLogin(port)
    faults = Faults(_first_rules(settings.faults))

    def login_link() -> str:
        return f"{url}/login?ticket={browser.ticket()}"

    control = Control(
        accounts=accounts, runs=runs, sites=sites, faults=faults, switches=switches, login_link=login_link
    )
    platform = Platform(accounts=accounts, catalogue=catalogue, runs=runs, downloads=downloads, switches=switches)
    proxy = tracking.TrackingProxy(mlflow.client, accounts, browser)
    methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    routes = [
        *platform.routes(),
        Route("/login", browser.login, methods=["GET"]),
        Route(tracking.PREFIX, proxy.__call__, methods=methods),
        Route(f"{tracking.PREFIX}/{{path:path}}", proxy.__call__, methods=methods),
        *control.routes(),
    ]
    web = WebServer(routes, faults, accounts, listener)
    stack.push_async_callback(web.stop)
    await web.start()
    environment = _environment(url, users[0], catalogue, sites) | {
        "MANTIK_SANDBOX_CONTROL_URL": f"{url}/_sandbox",
        "MANTIK_SANDBOX_CONTROL_TOKEN": control.token,
    }
    return RunningSandbox(
        url=url,
        tracking_uri=environment["MLFLOW_TRACKING_URI"],
        control_url=environment["MANTIK_SANDBOX_CONTROL_URL"],
        control_token=control.token,
        login_url=login_link(),
        state_dir=state,
        environment=environment,
    )


def serve(settings: SandboxSettings, *, env_file: Path | None = None, echo: Echo = print) -> int:
    """Run a sandbox until SIGINT or SIGTERM.

    Args:
        settings: How it is set up.
        env_file: Where to write the variables that point to it.
        echo: Prints a line.
    """
    return asyncio.run(_serve(settings, env_file, echo))


async def _serve(settings: SandboxSettings, env_file: Path | None, echo: Echo) -> int:
    task = asyncio.current_task()
    asked = False

    def stop() -> None:
        nonlocal asked
        if not asked and task is not None:  # a second Ctrl-C must not cut the clean-up short
            asked = True
            task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        async with sandbox(settings, echo=echo) as running:
            if env_file is not None:
                write_env_file(env_file, running.environment)
            _announce(running, env_file, echo)
            await asyncio.Event().wait()
    except asyncio.CancelledError:
        if not asked:
            raise
    return 0


def _announce(running: RunningSandbox, env_file: Path | None, echo: Echo) -> None:
    names = " ".join(place.name for place in _PLACES)
    echo(f"ready: platform {running.url}, tracking {running.tracking_uri}, sites {names}")
    echo(f"  state:    {running.state_dir}")
    echo(f"  browser:  {running.login_url}  (works once)")
    if env_file is None:
        echo("  The password is random: start with --env-file .env to have it written to a file.")
    else:
        echo(f"  env file: {env_file}")
        echo(f"  next:     source {env_file}")
    echo("  stop:     Ctrl-C")


@contextlib.contextmanager
def _listen(port: int) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        yield listener


def _state_directory(settings: SandboxSettings, watchdog: Watchdog) -> Path:
    if settings.state_dir is None:
        state = Path(tempfile.mkdtemp(prefix="mantik-sandbox-"))
        watchdog.remove_at_end(state)
        return state.resolve()
    state = settings.state_dir.absolute()
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    state.chmod(0o700)
    return state


def _data_files(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "numbers.csv").write_text("x,y\n" + "".join(f"{x},{x * x}\n" for x in range(10)))
    return directory


def _first_rules(path: Path | None) -> list[Rule]:
    return [] if path is None else parse(list[Rule], json.loads(path.read_text()), ("faults",))


def _sites(settings: SandboxSettings, switches: Switches, state: Path, url: str, watchdog: Watchdog) -> list[Site]:
    surroundings = Surroundings(state / "software", settings.job_python)

    def delay(place: _Place) -> Callable[[], float]:
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
        for place in _PLACES
    ]


def _connect(users: list[User], sites: list[Site]) -> None:
    for user in users:
        for site in sites:
            connection = Connection(
                name=site.name,
                provider=site.kind,
                login=f"{user.name}-at-{site.name}",
                password=secrets.token_urlsafe(18),
            )
            user.connections[connection.id] = connection
            site.passwords[connection.login] = connection.password


def _environment(url: str, user: User, catalogue: Catalogue, sites: list[Site]) -> dict[str, str]:
    values = {
        "MANTIK_USERNAME": user.name,
        "MANTIK_PASSWORD": user.password,
        "MANTIK_API_URL": url,
        "MLFLOW_TRACKING_URI": f"{url}{tracking.PREFIX}/",
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
            values[f"MANTIK_SANDBOX_{name}_TOKEN_URL"] = f"{url}/firecrest-auth/token"
    return values
