"""A sandbox as a child process, and a client for its control API."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from prefect_mantik.sandbox.env_file import read_env_file
from prefect_mantik.sandbox.settings import to_arguments


class SandboxControl:
    """Looks inside a sandbox and makes trouble in it."""

    def __init__(self, url: str, token: str) -> None:
        # Each call has a connection of its own: a kept one may be closed in the very moment of the next call.
        self._client = httpx.Client(
            base_url=url,
            headers={"X-Sandbox-Token": token},
            timeout=60,
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    def jobs(self, *, run_key: str | None = None, live: bool | None = None) -> list[dict[str, Any]]:
        """List the jobs of all sites, oldest first.

        Args:
            run_key: Only those with this MANTIK_RUN_KEY.
            live: Only those that have not ended, or only those that have.
        """
        jobs: list[dict[str, Any]] = self.call("GET", "/jobs")
        return [job for job in jobs if run_key in (None, job["runKey"]) and (live is None or job["live"] is live)]

    def job_of(self, number: str | int, site: str = "cedar") -> str:
        """Give the id by which this API knows a job.

        Args:
            number: The number that the batch system gave it.
            site: The site.
        """
        return next(str(job["id"]) for job in self.jobs() if (job["site"], job["number"]) == (site, int(number)))

    def requests(self) -> list[dict[str, Any]]:
        """List how often which route was called by whom and with which outcome (0: no answer)."""
        counts: list[dict[str, Any]] = self.call("GET", "/requests")
        return counts

    def count(self, *, route: str | None = None, method: str | None = None, account: str | None = None) -> int:
        """Count the requests since the last reset.

        Args:
            route: Only those to this route template.
            method: Only those with this method.
            account: Only those of this account.
        """
        return sum(
            int(entry["count"])
            for entry in self.requests()
            if route in (None, entry["route"])
            and method in (None, entry["method"])
            and account in (None, entry["account"])
        )

    def request_log(self) -> list[dict[str, Any]]:
        """List the last requests one by one, in the order of their answers: when each came, method, path, status."""
        log: list[dict[str, Any]] = self.call("GET", "/requests/log")
        return log

    def reset_requests(self) -> None:
        """Start to count anew."""
        self.call("DELETE", "/requests")

    def add_fault(self, action: str, **rule: Any) -> None:
        """Add a rule of misbehaviour; the fields are those of `prefect_mantik.sandbox.faults.Rule`."""
        self.call("POST", "/faults", {"action": action, **rule})

    def clear_faults(self) -> None:
        """Behave again."""
        self.call("DELETE", "/faults")

    def switch(self, **positions: Any) -> dict[str, Any]:
        """Turn switches; the names are those of `prefect_mantik.sandbox.settings.Switches`."""
        switches: dict[str, Any] = self.call("PATCH", "/switches", positions)
        return switches

    def expire_tokens(self) -> None:
        """Make every access token given out so far an expired one."""
        self.call("POST", "/tokens/expire")

    def revoke_refresh_tokens(self) -> None:
        """Make every refresh token given out so far an invalid one."""
        self.call("POST", "/tokens/revoke-refresh")

    def change_password(self, username: str, password: str | None = None) -> str:
        """Change a user's password and give the new one.

        Args:
            username: The user.
            password: The new password; by default a random one.
        """
        changed = self.call("POST", "/password", {"username": username, "password": password})
        return str(changed["password"])

    def accounts(self) -> list[dict[str, Any]]:
        """List the users with their passwords and connections."""
        accounts: list[dict[str, Any]] = self.call("GET", "/accounts")
        return accounts

    def change_site(self, name: str, **changes: bool | str) -> None:
        """Change a site.

        Args:
            name: The site.
            **changes: `maintenance` and its `message`, `refuse_logins`, `entitled` (false: users are known but may do
                nothing), `quota_full`, `queue_reason` (not empty: no job starts, for this reason), and for the
                FirecREST site `unhealthy` (the server takes its services for broken) and `accounting_down`.
        """
        self.call("PATCH", f"/sites/{name}", changes)

    def hold_job(self, job_id: str, hold: str = "UNDEFINED", reason: str = "") -> dict[str, Any]:
        """Hold a job where it is.

        Args:
            job_id: The job.
            hold: UNDEFINED: UNICORE cannot name its state; QUEUED: it never gets its turn. A job of the FirecREST
                site is PENDING or SUSPENDED with either.
            reason: What the job's log says, and at the FirecREST site why the job waits (by default JobHeldUser).
        """
        job: dict[str, Any] = self.call("POST", f"/jobs/{job_id}/hold", {"hold": hold, "reason": reason})
        return job

    def requeue_job(self, job_id: str, seconds: float = 120) -> dict[str, Any]:
        """Have the node of a running job fail; unless it may not be, the job is queued again.

        Args:
            job_id: The job.
            seconds: When it may start again.
        """
        job: dict[str, Any] = self.call("POST", f"/jobs/{job_id}/requeue", {"seconds": seconds})
        return job

    def age_job(self, job_id: str, seconds: float) -> dict[str, Any]:
        """Move everything that has happened to a job into the past.

        Args:
            job_id: The job.
            seconds: How far.
        """
        job: dict[str, Any] = self.call("POST", f"/jobs/{job_id}/age", {"seconds": seconds})
        return job

    def release_job(self, job_id: str) -> dict[str, Any]:
        """Let a job go on that is held."""
        return self.hold_job(job_id, "")

    def firecrest_token(self, client: str, lifetime: float = 300) -> str:
        """Give out an access token of the FirecREST site.

        Args:
            client: Whose, as in MANTIK_FIRECREST_CLIENT_ID.
            lifetime: Seconds it lives.
        """
        return str(self.call("POST", "/firecrest/tokens", {"client": client, "lifetime": lifetime})["token"])

    def expire_firecrest_tokens(self) -> None:
        """Make every access token of the FirecREST site given out so far an expired one."""
        self.call("POST", "/firecrest/tokens/expire")

    def unicore_token(self, username: str, lifetime: float = 3600) -> str:
        """Give out an access token of the sites' OpenID provider.

        Args:
            username: Whose, as in MANTIK_UNICORE_USERNAME.
            lifetime: Seconds it lives.
        """
        return str(self.call("POST", "/unicore/tokens", {"username": username, "lifetime": lifetime})["token"])

    def expire_unicore_sessions(self) -> None:
        """Make the UNICORE sites forget all security sessions."""
        self.call("POST", "/unicore/sessions/expire")

    def end_job(self, job_id: str, state: str = "CANCELLED") -> dict[str, Any]:
        """End a job from outside.

        Args:
            job_id: The job.
            state: What it is said to have died of; VANISHED: nobody is told.
        """
        job: dict[str, Any] = self.call("POST", f"/jobs/{job_id}/end", {"state": state})
        return job

    def login_url(self) -> str:
        """Give a new link, good for one login in a browser."""
        return str(self.call("POST", "/login")["url"])

    def call(self, method: str, path: str, body: object = None) -> Any:
        """Make any call of the control API.

        Args:
            method: The HTTP method.
            path: The path below `/_sandbox`.
            body: The JSON body.
        """
        answer = self._client.request(method, path, json=body)
        answer.raise_for_status()
        return answer.json()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class SandboxProcess:
    """A sandbox that runs as a child of this process."""

    def __init__(self, process: subprocess.Popen[bytes], directory: Path, env_file: Path) -> None:
        self._process = process
        self._directory = directory
        self.env_file = env_file
        self.env = read_env_file(env_file)
        self.control = SandboxControl(self.env["MANTIK_SANDBOX_CONTROL_URL"], self.env["MANTIK_SANDBOX_CONTROL_TOKEN"])

    @property
    def url(self) -> str:
        """The platform's base URL."""
        return self.env["MANTIK_API_URL"]

    @property
    def tracking_uri(self) -> str:
        """The MLflow tracking URI."""
        return self.env["MLFLOW_TRACKING_URI"]

    @property
    def pid(self) -> int:
        """The id of the sandbox's process."""
        return self._process.pid

    def output(self) -> str:
        """Give what the sandbox has printed so far."""
        return _output(self._directory)

    def wait(self, timeout: float) -> int:
        """Wait until the sandbox has ended by itself, and give its exit code.

        Args:
            timeout: Seconds to wait.
        """
        return self._process.wait(timeout)

    def stop(self, timeout: float = 15) -> int:
        """End the sandbox and everything it started, and give its exit code.

        Args:
            timeout: Seconds after which it is killed.
        """
        self.control.close()
        try:
            return _end(self._process, timeout)
        finally:
            shutil.rmtree(self._directory, ignore_errors=True)

    def kill(self) -> None:
        """Kill the sandbox without giving it a chance; its watchdog clears up after it."""
        self._process.kill()
        self.stop()

    def __enter__(self) -> SandboxProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start_sandbox(*, timeout: float = 120, **switches: object) -> SandboxProcess:
    """Start a sandbox as a child process and wait until it is ready.

    Args:
        timeout: Seconds to wait.
        **switches: Fields of `prefect_mantik.sandbox.settings.SandboxSettings`.
    """
    arguments = to_arguments(switches)
    directory = Path(tempfile.mkdtemp(prefix="mantik-sandbox-process-"))
    env_file = directory / "sandbox.env"
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(shutil.rmtree, directory, ignore_errors=True)
        with (directory / "output").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "prefect_mantik.sandbox", f"--env-file={env_file}", "--with-parent", *arguments],
                stdin=subprocess.PIPE,  # held open: its end tells the sandbox that we are gone, also by SIGKILL
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(),
                start_new_session=True,  # a Ctrl-C in the terminal is for the parent, which then stops us in order
            )
        on_failure.callback(_end, process, 10)
        deadline = time.monotonic() + timeout
        while "ready: " not in (printed := _output(directory)):
            if process.poll() is not None:
                raise RuntimeError(f"The sandbox ended with exit code {process.returncode}:\n{printed}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"The sandbox was not ready within {timeout} seconds:\n{printed}")
            time.sleep(0.05)
        on_failure.pop_all()
    return SandboxProcess(process, directory, env_file)


def _environment() -> dict[str, str]:
    # The parent's credentials are no business of the sandbox.
    return {name: value for name, value in os.environ.items() if not name.startswith(("MANTIK_", "MLFLOW_"))}


def _output(directory: Path) -> str:
    return (directory / "output").read_text(errors="replace")


def _end(process: subprocess.Popen[bytes], timeout: float) -> int:
    process.terminate()  # does nothing to one that has ended
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
