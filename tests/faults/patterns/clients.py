"""The sites as people reach them by hand: pyunicore and pyfirecrest, as their documentation shows them."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from firecrest.v2 import Firecrest

_UNICORE_ENDS = ("SUCCESSFUL", "FAILED")
_FIRECREST_ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")


def submit_job(site: str, name: str, seconds: float) -> str:
    """Submit a job that sleeps, and give what the site calls it."""
    if site == "birch":
        from pyunicore.client import Client, Transport
        from pyunicore.credentials import UsernamePassword

        login = UsernamePassword(os.environ["MANTIK_UNICORE_USERNAME"], os.environ["MANTIK_UNICORE_PASSWORD"])
        client = Client(Transport(login), os.environ["MANTIK_SANDBOX_BIRCH_URL"])
        resources = {"Queue": "batch", "Runtime": "10m", "Nodes": "1"}
        job = client.new_job({"Name": name, "Executable": f"sleep {seconds:g}", "Resources": resources})
        return str(job.resource_url)
    script = f"#!/bin/bash\n#SBATCH --job-name={name}\n#SBATCH --partition=batch\nsleep {seconds:g}\n"
    answer = _firecrest().submit("cedar", os.environ["MANTIK_SANDBOX_CEDAR_ROOT"], script_str=script)
    return str(answer["jobId"])


def wait_for_job(site: str, job: str) -> str:
    """Ask until a job has ended, and give its last state."""
    while not (state := _state(site, job)).startswith(_UNICORE_ENDS if site == "birch" else _FIRECREST_ENDS):
        time.sleep(1)
    if not state.startswith(("SUCCESSFUL", "COMPLETED")):
        raise RuntimeError(f"the job ended {state}")
    return state


def _state(site: str, job: str) -> str:
    if site == "birch":
        from pyunicore.client import Job, Transport
        from pyunicore.credentials import UsernamePassword

        login = UsernamePassword(os.environ["MANTIK_UNICORE_USERNAME"], os.environ["MANTIK_UNICORE_PASSWORD"])
        return str(Job(Transport(login), job).properties["status"])
    [found] = _firecrest().job_info("cedar", jobid=job)
    return str(found["status"]["state"])


def _firecrest() -> Firecrest:
    from firecrest import ClientCredentialsAuth
    from firecrest.v2 import Firecrest

    env = os.environ
    login = ClientCredentialsAuth(
        env["MANTIK_FIRECREST_CLIENT_ID"],
        env["MANTIK_FIRECREST_CLIENT_SECRET"],
        env["MANTIK_SANDBOX_CEDAR_TOKEN_URL"],
        min_token_validity=40,
    )
    return Firecrest(env["MANTIK_SANDBOX_CEDAR_URL"], authorization=login)
