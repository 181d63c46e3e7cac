"""Every path of the platform's REST API that we use, in one table, with what is known of each.

PROVEN: the official client calls it. UNPROVEN: the platform has the feature, but no public source shows the path.
An unproven path may answer 404 or 405; nothing depends on it. Any path can be overridden where a platform differs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Endpoint:
    """One operation of the platform.

    Attributes:
        method: HTTP method.
        path: Path with placeholders.
        proven: Whether the official client calls it.
        repeatable: Whether the call may be made again when its outcome is unknown.
    """

    method: str
    path: str
    proven: bool = True
    repeatable: bool = True


_RUN = "/projects/{projectId}/runs/{runId}"

ENDPOINTS: Mapping[str, Endpoint] = MappingProxyType(
    {
        "create_token": Endpoint("POST", "/mantik/tokens/create"),
        "refresh_token": Endpoint("POST", "/mantik/tokens/refresh"),
        "submit_run": Endpoint("POST", "/projects/{projectId}/runs", repeatable=False),
        "experiment": Endpoint("GET", "/projects/{projectId}/experiments/{experimentRepositoryId}"),
        "code_repository": Endpoint("GET", "/projects/{projectId}/code/{codeRepositoryId}"),
        "data_repository": Endpoint("GET", "/projects/{projectId}/data/{dataRepositoryId}"),
        "connection": Endpoint("GET", "/users/{userId}/settings/connections/{connectionId}"),
        "runs": Endpoint("GET", "/projects/{projectId}/runs", proven=False),
        "run_logs": Endpoint("GET", f"{_RUN}/logs", proven=False),
        "cancel_run": Endpoint("PUT", f"{_RUN}/cancel", proven=False),
    }
)


def endpoints(overrides: Mapping[str, str] | None = None) -> Mapping[str, Endpoint]:
    """The table, with some operations somewhere else.

    Args:
        overrides: For names of the table, `METHOD /path` with the same placeholders.

    Raises:
        ValueError: A name is not in the table, or a value is not of that form.
    """
    table = dict(ENDPOINTS)
    for name, override in (overrides or {}).items():
        method, _, path = override.strip().partition(" ")
        if name not in table or not method.isupper() or not path.startswith("/"):
            raise ValueError(
                f"{name!r}: {override!r} is no override: write one of {', '.join(ENDPOINTS)} as 'METHOD /path'."
            )
        placeholders = [set(re.findall(r"{(\w*)}", text)) for text in (path, table[name].path)]
        if not placeholders[0] <= placeholders[1]:
            raise ValueError(f"{name!r}: {override!r} has other placeholders than {table[name].path}.")
        table[name] = Endpoint(method, path, proven=True, repeatable=table[name].repeatable)
    return table
