"""Puts the sandbox together and runs it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from starlette.routing import Route
from starlette.types import Scope

from prefect_mantik.sandbox import tracking
from prefect_mantik.sandbox.accounts import Accounts, User
from prefect_mantik.sandbox.catalogue import Catalogue
from prefect_mantik.sandbox.control import Control
from prefect_mantik.sandbox.downloads import Downloads
from prefect_mantik.sandbox.env_file import check_target, write_env_file
from prefect_mantik.sandbox.errors import ApiError, SandboxError, parse
from prefect_mantik.sandbox.faults import Faults, Rule
from prefect_mantik.sandbox.firecrest.routes import Firecrest
from prefect_mantik.sandbox.mlflow_server import MlflowServer
from prefect_mantik.sandbox.places import PLACES, build_sites, connect, environment
from prefect_mantik.sandbox.platform import Platform
from prefect_mantik.sandbox.repositories import Git
from prefect_mantik.sandbox.runs import Runs
from prefect_mantik.sandbox.settings import SandboxSettings, Switches
from prefect_mantik.sandbox.tls import Certificate, make_certificate
from prefect_mantik.sandbox.unicore.identities import Identities
from prefect_mantik.sandbox.unicore.routes import Unicore
from prefect_mantik.sandbox.watchdog import Watchdog
from prefect_mantik.sandbox.web import WebServer

logger = logging.getLogger(__name__)

Echo = Callable[[str], None]

_USERS = ("sandbox", "sandbox-2")
_PROJECT = Path(__file__).with_name("project")


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
        secure = None
        if settings.tls:
            secure = stack.enter_context(_listen(0)), make_certificate(state / "tls")
        running = await _serve_all(stack, settings, state, listener, secure, mlflow, git, catalogue, watchdog)
        try:
            yield running
        finally:
            echo("stopping ...")


async def _serve_all(
    stack: contextlib.AsyncExitStack,
    settings: SandboxSettings,
    state: Path,
    listener: socket.socket,
    secure: tuple[socket.socket, Certificate] | None,
    mlflow: MlflowServer,
    git: Git,
    catalogue: Catalogue,
    watchdog: Watchdog,
) -> RunningSandbox:
    port: int = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    switches = Switches.from_settings(settings)
    sites = build_sites(settings, switches, state, url, watchdog)
    users = [User(name) for name in _USERS]
    people = connect(users, sites)
    unicore = Unicore(sites, Identities(people), switches)
    firecrest = Firecrest(next(site for site in sites if site.kind == "FirecREST"), switches, url)
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
        accounts=accounts,
        runs=runs,
        sites=sites,
        faults=faults,
        switches=switches,
        login_link=login_link,
        unicore=unicore,
        firecrest=firecrest,
    )

    def account_of(scope: Scope) -> str:
        return unicore.account_of(scope) or firecrest.account_of(scope) or accounts.account_of(scope)

    platform = Platform(accounts=accounts, catalogue=catalogue, runs=runs, downloads=downloads, switches=switches)
    proxy = tracking.TrackingProxy(mlflow.client, accounts, browser)
    methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    routes = [
        *platform.routes(),
        Route("/login", browser.login, methods=["GET"]),
        Route(tracking.PREFIX, proxy.__call__, methods=methods),
        Route(f"{tracking.PREFIX}/{{path:path}}", proxy.__call__, methods=methods),
        *control.routes(),
        *unicore.routes(),
        *firecrest.routes(),
    ]
    web = WebServer(routes, faults, account_of, listener, secure)
    stack.push_async_callback(web.stop)
    await web.start()
    variables = environment(url, users[0], people[0], catalogue, sites) | {
        "MANTIK_SANDBOX_CONTROL_URL": f"{url}/_sandbox",
        "MANTIK_SANDBOX_CONTROL_TOKEN": control.token,
    }
    if secure is not None:
        variables["MANTIK_SANDBOX_TLS_URL"] = f"https://127.0.0.1:{secure[0].getsockname()[1]}"
        variables["MANTIK_SANDBOX_CA_FILE"] = str(secure[1].certificate)
    return RunningSandbox(
        url=url,
        tracking_uri=variables["MLFLOW_TRACKING_URI"],
        control_url=variables["MANTIK_SANDBOX_CONTROL_URL"],
        control_token=control.token,
        login_url=login_link(),
        state_dir=state,
        environment=variables,
    )


def serve(
    settings: SandboxSettings, *, env_file: Path | None = None, echo: Echo = print, with_parent: bool = False
) -> int:
    """Run a sandbox until SIGINT or SIGTERM.

    Args:
        settings: How it is set up.
        env_file: Where to write the variables that point to it.
        echo: Prints a line.
        with_parent: Also end when standard input ends, as it does when the process at its other end is gone.
    """
    return asyncio.run(_serve(settings, env_file, echo, with_parent))


async def _serve(settings: SandboxSettings, env_file: Path | None, echo: Echo, with_parent: bool) -> int:
    if env_file is not None:
        check_target(env_file)
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
    if with_parent:
        loop.add_reader(sys.stdin.fileno(), stop)
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
    names = " ".join(place.name for place in PLACES)
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
    # With the protocol named, asyncio turns Nagle's algorithm off for the connections: 40 ms per answer.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
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
    if path is None:
        return []
    try:
        return parse(list[Rule], json.loads(path.read_text()), ("faults",))
    except (ApiError, ValueError) as error:
        raise SandboxError(f"{path} is not a list of fault rules: {error}") from None
