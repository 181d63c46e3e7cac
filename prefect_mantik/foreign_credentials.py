"""What would win over the tracking token in somebody's own MLflow code: other credentials of this machine."""

from __future__ import annotations

import configparser
import netrc
import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from prefect_mantik.environment import DEFAULT_TRACKING_URI

_FOREIGN_VARIABLES = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
_MLFLOW_FILE = "~/.mlflow/credentials"
_NETRC_FILES = ("~/.netrc", "~/_netrc")


def foreign_tracking_credentials(variables: Mapping[str, str]) -> list[str]:
    """Name what a plain MLflow client would use in place of the token, so that the platform refuses it.

    Nothing of this package uses them. A user's own MLflow code may: MLflow prefers a user name and password from the
    environment or its credentials file, and `requests`, on which it stands, replaces the token by a netrc entry.

    Args:
        variables: As from `read_variables`.

    Returns:
        Variables and files that hold such credentials. Empty where the token is used.
    """
    found = [name for name in _FOREIGN_VARIABLES if variables.get(name)]
    if _has_mlflow_section(os.path.expanduser(_MLFLOW_FILE)):
        found.append(f"{_MLFLOW_FILE} (section [mlflow])")
    named = variables.get("NETRC")
    places = _NETRC_FILES if named is None else (named,)
    place = next((place for place in places if os.path.exists(os.path.expanduser(place))), None)
    host = _host(variables.get("MLFLOW_TRACKING_URI") or DEFAULT_TRACKING_URI)
    if place and host and _has_netrc_entry(os.path.expanduser(place), host):
        found.append(f"{place} (entry for {host})")
    return found


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _has_mlflow_section(path: str) -> bool:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, OSError, UnicodeDecodeError):
        return False
    return parser.has_section("mlflow")


def _has_netrc_entry(path: str, host: str) -> bool:
    try:
        entry = netrc.netrc(path).authenticators(host)
    except (netrc.NetrcParseError, OSError, UnicodeDecodeError):
        return False
    return entry is not None and any(entry)
