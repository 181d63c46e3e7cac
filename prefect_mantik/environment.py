"""The platform's environment variables: read from the process and a `.env` file, checked, given to the rest as models.

Users keep their variables in a `.env` file and `source` it. A file read here gives the value that bash would give, or
an error that names the line: a password that differs in one character looks like a wrong password, and centres lock
accounts for those. `os.environ` is read here and never written.

Names, defaults and the rules of the two URLs are those of the platform's page "Credentials and Environment Variables".
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import stat
from collections.abc import Collection, Mapping
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, Secret, SecretStr, ValidationError, ValidationInfo, field_validator
from typing_extensions import Self

from prefect_mantik.errors import EnvironmentInvalid

DEFAULT_API_URL = "https://api.cloud.mantik.ai"
DEFAULT_TRACKING_URI = "https://api.cloud.mantik.ai/tracking"

_logger = logging.getLogger(__name__)

# --- .env files -----------------------------------------------------------------------------------------------------

# What bash calls one word without expansions: pieces in single quotes, in double quotes, escaped, or plain. Plain
# characters leave out all that an assignment may change: quotes, expansions, `~`, and braces (expanded by `export`).
_PIECE = re.compile(r"""'([^']*)'|"((?:[^"\\$`]|\\[\s\S])*)"|\\([^\n])|([^\s'"\\$`;&|<>(){}~])""")
_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_LINE = re.compile(
    rf"""[ \t]*(?:
        (?: (?:export[ \t]+)?(?P<name>{_NAME})=(?P<word>(?:{_PIECE.pattern})*) | export[ \t]+{_NAME} )
        (?:[ \t]+\#[^\n]*|[ \t]*)
        | (?:\#[^\n]*)?
    )(?:\n|\Z)""",
    re.VERBOSE,
)
_UNSEEN = re.compile(r"\A\ufeff|[\x00-\x08\x0b-\x1f\x7f]|[\udc80-\udcff]")  # the last: bytes that are not UTF-8


def read_variables(env_file: str | Path | None = None) -> dict[str, str]:
    r"""Read the variables of this process and, where one is named, of a `.env` file.

    Args:
        env_file: A file of `NAME=value` or `export NAME=value` lines. None reads no file.

    Returns:
        All variables by name. The process wins over the file, also with an empty value.

    Raises:
        EnvironmentInvalid: The file cannot be read, or bash would not take one of its lines as one plain value
            (`$` outside single quotes, for example). Names all such lines and never shows what stands in them.
    """
    from_file = _read_file(Path(env_file)) if env_file is not None else {}
    overridden = sorted(name for name, value in from_file.items() if os.environ.get(name, value) != value)
    if overridden:
        _logger.warning("%s: the environment has other values, and wins: %s", env_file, ", ".join(overridden))
    return from_file | dict(os.environ)


def variables_for_child(*without: str) -> dict[str, str]:
    """The variables of this process for a child process.

    Args:
        *without: What the names of those begin with that are left out.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith(without)}


def _read_file(path: Path) -> dict[str, str]:
    from dotenv.parser import parse_stream

    text = _text_of(path)
    values: dict[str, str] = {}
    findings: list[str] = []
    # python-dotenv tells the entries apart and goes on behind one it cannot read; what an entry's text means is
    # bash's to say. An entry may hold several lines of bash: for python-dotenv `'a\'` does not end at its last quote.
    for entry in parse_stream(StringIO(text)):
        source, position = entry.original.string, 0
        while position < len(source):
            line = _LINE.match(source, position)
            if line is None:
                number = entry.original.line + source.count("\n", 0, position)
                findings.append(
                    f"{path}, line {number} is not one plain NAME=value for bash. Put the value in single quotes: "
                    r"NAME='value', no space around the =. Write a single quote inside it as '\''"
                )
                break
            if line["name"]:
                values[line["name"]] = _PIECE.sub(_unquoted, line["word"])
            position = line.end()
    if findings:
        raise EnvironmentInvalid(findings)
    return values


def _text_of(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            if os.name == "posix" and os.fstat(file.fileno()).st_mode & (stat.S_IRGRP | stat.S_IROTH):
                _logger.warning("%s can be read by other users of this machine: run chmod 600 on it", path)
            text = file.read()
    except OSError as error:
        raise EnvironmentInvalid([f"{path} cannot be read: {error.strerror}"]) from None
    if unseen := _UNSEEN.search(text):
        number = 1 + text.count("\n", 0, unseen.start())
        raise EnvironmentInvalid(
            [
                f"{path}, line {number} holds a control character, a Windows line ending, a byte-order mark or bytes "
                "that are not UTF-8, which bash takes as they are: save the file as UTF-8 with Unix line endings"
            ]
        )
    return text


def _unquoted(piece: re.Match[str]) -> str:
    single, double, escaped, plain = piece.groups()
    if double is not None:
        return re.sub(r'\\(?:([\\$`"])|\n)', r"\1", double)  # an escaped end of line is no end of line
    return str(single or escaped or plain or "")


# --- URLs -----------------------------------------------------------------------------------------------------------

_URL = re.compile(
    r"(https?)://(\[[0-9a-f:.]+\]|[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)(?::([0-9]{1,5}))?(/.*)?", re.IGNORECASE | re.ASCII
)
_URL_FAULTS = {
    r".*[\s\x00-\x1f\x7f]": "it holds a space or a control character",
    r"(?!https?://)": "it does not start with https://",
    r".*[?#]": "it has a query or a fragment",
    r".*[@\\]": "it holds a user name or password, or a character that does not belong there",
}


def check_api_url(value: str, *, self_hosted: bool = False) -> str:
    """Check the URL of the platform API: scheme, host and perhaps a port.

    Args:
        value: What the user gave, with or without a slash at the end.
        self_hosted: Allow a path, as for a platform behind somebody's own proxy.

    Returns:
        The URL with scheme and host in lower case and no slash at the end.

    Raises:
        ValueError: Says what is wrong and shows the right form, never the value.
    """
    return check_url(value, form=f"https://<host>, as in {DEFAULT_API_URL}", paths=None if self_hosted else {""})


def check_tracking_uri(value: str, *, self_hosted: bool = False) -> str:
    """Check the URI of the platform's MLflow server: as for the API, or with the path `/tracking`.

    Args:
        value: What the user gave, with or without a slash at the end. A URI without a path stays without one.
        self_hosted: Allow any path.

    Returns:
        The URI with scheme and host in lower case and no slash at the end.

    Raises:
        ValueError: Says what is wrong and shows the right form, never the value.
    """
    form = f"https://<host>/tracking, as in {DEFAULT_TRACKING_URI}"
    return check_url(value, form=form, paths=None if self_hosted else {"", "/tracking"})


def check_url(value: str, *, form: str, paths: Collection[str] | None = None) -> str:
    """Check a URL to which credentials are sent: https, unless the server is on this machine.

    Args:
        value: The URL, with or without a slash at the end.
        form: The right form, for the message.
        paths: The paths that are allowed, without a slash at the end. None allows any.

    Returns:
        The URL with scheme and host in lower case and no slash at the end.

    Raises:
        ValueError: Says what is wrong and shows the right form, never the value: it may hold a password.
    """
    parts = _URL.fullmatch(value)
    scheme, host, port, path = parts.groups(default="") if parts else ("", "", "", "")
    scheme, host, path = scheme.lower(), host.lower(), path.rstrip("/")
    fault = next((text for pattern, text in _URL_FAULTS.items() if re.match(pattern, value, re.I | re.S)), None)
    if not fault and (not host or not 0 < int(port or 443) < 65536 or (host[0] == "[" and not _address(host))):
        fault = "it has no valid host or port"
    if not fault and scheme == "http" and not is_loopback(host):
        fault = "plain http is for a server on this machine only"
    if not fault and paths is not None and path not in paths:
        fault = "it has another path"
    if fault:
        raise ValueError(f"this URL cannot be used: {fault}. The right form is {form}")
    return f"{scheme}://{host}{port and ':'}{port}{path}"


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine."""
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


# --- Models ---------------------------------------------------------------------------------------------------------

_PAIRS = (
    ("MANTIK_UNICORE_USERNAME", "MANTIK_UNICORE_PASSWORD"),
    ("MANTIK_FIRECREST_CLIENT_ID", "MANTIK_FIRECREST_CLIENT_SECRET"),
)


class _Variables(BaseModel):
    """Fields whose aliases are the names of environment variables."""

    model_config = ConfigDict(frozen=True, populate_by_name=True, hide_input_in_errors=True, defer_build=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_stray_spaces(cls, value: Any) -> Any:
        if isinstance(value, str) and value != value.strip():
            raise ValueError("the value begins or ends with a space, a tab or a line end: remove it")
        return value

    @classmethod
    def _given(cls, variables: Mapping[str, str]) -> dict[str, str]:
        """Pick this model's variables; an empty value is a missing one."""
        names = [field.alias for field in cls.model_fields.values() if field.alias]
        return {name: variables[name] for name in names if variables.get(name, "").strip()}


class MantikEnvironment(_Variables):
    """What a user sets to work with the platform. Secrets, and the Connection ID with them, print as asterisks."""

    username: str = Field(alias="MANTIK_USERNAME")
    password: SecretStr = Field(alias="MANTIK_PASSWORD")
    api_url: str = Field(DEFAULT_API_URL, alias="MANTIK_API_URL")
    tracking_uri: str = Field(DEFAULT_TRACKING_URI, alias="MLFLOW_TRACKING_URI")

    unicore_username: str | None = Field(None, alias="MANTIK_UNICORE_USERNAME")
    unicore_password: SecretStr | None = Field(None, alias="MANTIK_UNICORE_PASSWORD")
    firecrest_client_id: str | None = Field(None, alias="MANTIK_FIRECREST_CLIENT_ID")
    firecrest_client_secret: SecretStr | None = Field(None, alias="MANTIK_FIRECREST_CLIENT_SECRET")
    compute_budget_account: str | None = Field(None, alias="MANTIK_COMPUTE_BUDGET_ACCOUNT")

    project_id: UUID | None = Field(None, alias="MANTIK_PROJECT_ID")
    experiment_repository_id: UUID | None = Field(None, alias="MANTIK_EXPERIMENT_REPOSITORY_ID")
    data_repository_id: UUID | None = Field(None, alias="MANTIK_DATA_REPOSITORY_ID")
    code_repository_id: UUID | None = Field(None, alias="MANTIK_CODE_REPOSITORY_ID")
    connection_id: Secret[UUID] | None = Field(None, alias="MANTIK_CONNECTION_ID")

    @field_validator("api_url")
    @classmethod
    def _api_url(cls, value: str, info: ValidationInfo) -> str:
        return check_api_url(value, **(info.context or {}))

    @field_validator("tracking_uri")
    @classmethod
    def _tracking_uri(cls, value: str, info: ValidationInfo) -> str:
        return check_tracking_uri(value, **(info.context or {}))

    @classmethod
    def load(cls, env_file: str | Path | None = None, *, self_hosted: bool = False) -> Self:
        """Read and check the variables of this process and, where one is named, of a `.env` file.

        Args:
            env_file: See `read_variables`.
            self_hosted: Allow other paths in the two URLs, as for a platform behind somebody's own proxy.

        Returns:
            The checked variables.

        Raises:
            EnvironmentInvalid: Lists all that is missing or malformed, never with a value.
        """
        given = cls._given(read_variables(env_file))
        findings = [
            f"{one} is set and {other} is not: set both or neither"
            for pair in _PAIRS
            for one, other in (pair, pair[::-1])
            if one in given and other not in given
        ]
        if "MANTIK_API_URL" in given and "MLFLOW_TRACKING_URI" not in given:
            findings.append(
                "MANTIK_API_URL is set and MLFLOW_TRACKING_URI is not: set both, or a platform's token would go to "
                "another platform's tracking server"
            )
        try:
            environment = cls.model_validate(given, context={"self_hosted": self_hosted})
        except ValidationError as error:
            findings = [_sentence(detail) for detail in error.errors(include_input=False)] + findings
        if findings:  # outside the except clause: nothing that has seen the values hangs on to the error
            raise EnvironmentInvalid(findings)
        return environment


def _sentence(detail: Mapping[str, Any]) -> str:
    name = detail["loc"][0]
    if detail["type"] == "missing":
        return (
            f"{name} is missing or empty: write export {name}='<value>' into the .env file, with the single quotes. "
            "An empty value in the shell hides the one in the file"
        )
    if detail["type"] == "uuid_parsing":
        return f"{name} is not a UUID, which looks like 01234567-89ab-cdef-0123-456789abcdef"
    return f"{name}: {detail.get('ctx', {}).get('error', detail['msg'])}"


class RuntimeContext(_Variables):
    """What the platform tells the code of a run, inside its job. Never holds the token.

    Attributes:
        working_directory: The run's directory at the site.
        experiment_id: The experiment's id in MLflow, which is not the platform's.
        run_id: The run's id in MLflow.
        tracking_uri: The MLflow server to report to.
        run_name: The run's name in MLflow.
        git_ref: Branch or commit of the code; none for code that is not in a repository.
        run_key: The key under which the run was submitted; none for a run submitted by other means.
    """

    working_directory: Path = Field(alias="MANTIK_WORKING_DIRECTORY")
    experiment_id: str = Field(alias="MLFLOW_EXPERIMENT_ID")
    run_id: str = Field(alias="MLFLOW_RUN_ID")
    tracking_uri: str = Field(alias="MLFLOW_TRACKING_URI")
    run_name: str | None = Field(None, alias="MLFLOW_RUN_NAME")
    git_ref: str | None = Field(None, alias="MANTIK_GIT_REF")
    run_key: str | None = Field(None, alias="MANTIK_RUN_KEY")

    @classmethod
    def current(cls, variables: Mapping[str, str] | None = None) -> Self:
        """Read the context of the run in which this code is running.

        Args:
            variables: Instead of the process environment.

        Returns:
            The context.

        Raises:
            EnvironmentInvalid: This is not the inside of a run.
        """
        try:
            return cls.model_validate(cls._given(os.environ if variables is None else variables))
        except ValidationError as error:
            names = ", ".join(str(detail["loc"][0]) for detail in error.errors(include_input=False))
        raise EnvironmentInvalid([f"missing or malformed: {names}. They are set only inside a run of the platform"])


def unicore_login(variables: Mapping[str, str] | None = None) -> tuple[str, SecretStr]:
    """User name and password for UNICORE sites, from the variables of this process.

    Args:
        variables: Instead of the process environment.

    Raises:
        EnvironmentInvalid: One of them is missing or empty.
    """
    return _pair("MANTIK_UNICORE_USERNAME", "MANTIK_UNICORE_PASSWORD", "UnicoreCredentials", variables)


def firecrest_login(variables: Mapping[str, str] | None = None) -> tuple[str, SecretStr]:
    """Client id and secret for FirecREST sites, from the variables of this process. As for `unicore_login`."""
    return _pair("MANTIK_FIRECREST_CLIENT_ID", "MANTIK_FIRECREST_CLIENT_SECRET", "FirecrestCredentials", variables)


def _pair(name: str, secret: str, block: str, variables: Mapping[str, str] | None) -> tuple[str, SecretStr]:
    given = os.environ if variables is None else variables
    missing = [variable for variable in (name, secret) if not given.get(variable)]
    if missing:
        raise EnvironmentInvalid(
            [f"{' and '.join(missing)} not set: set both or give the site a login ({block} or a Connection)"]
        )
    return given[name], SecretStr(given[secret])
