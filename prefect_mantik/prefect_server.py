"""Why the Prefect that we meet does not work, in one line."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

IMPORT_TIMEOUT = 120.0


def why_server_cannot_start() -> str | None:
    """Try to import the installed Prefect's server in a process of its own; say what is wrong, None if it works."""
    tried = subprocess.run(
        [sys.executable, "-c", "import prefect.server.api.server"],
        capture_output=True,
        text=True,
        timeout=IMPORT_TIMEOUT,
        check=False,
    )
    if tried.returncode == 0:
        return None
    last = (tried.stderr.strip().splitlines() or ["no reason given"])[-1]
    return (
        f"the installed Prefect {metadata.version('prefect')} cannot start its server with fastapi "
        f"{metadata.version('fastapi')} ({last}): pip install 'fastapi>=0.139,<0.151'"
    )


def explain(error: BaseException) -> str | None:
    """One line on an error of Prefect's client; None if it is no trouble with the Prefect server."""
    import httpx
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if url is None:
        why = why_server_cannot_start()
        return f"{why[0].upper()}{why[1:]}" if why else None
    if isinstance(error, PrefectHTTPStatusError):
        return f"The Prefect server at {url} answered {error.response.status_code}."
    if isinstance(error, httpx.TransportError):
        return f"The Prefect server at {url} cannot be reached ({error or type(error).__name__}). Is it running?"
    return None
