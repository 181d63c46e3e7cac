"""Blocks that say who we are and where our things lie on the platform; and the one helper that loads blocks.

A Connection is resolved by whoever needs its secrets, at run time and in memory. Nothing here asks a server.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from prefect.blocks.abstract import CredentialsBlock
from prefect.blocks.core import Block
from prefect.exceptions import ObjectNotFound
from pydantic import ConfigDict, Field, SecretStr, ValidationError, ValidationInfo, field_validator

from prefect_mantik.environment import MantikEnvironment, check_api_url, check_tracking_uri
from prefect_mantik.errors import BlockInvalid, EnvironmentInvalid

if TYPE_CHECKING:
    from prefect_mantik.platform import PlatformClient
    from prefect_mantik.tracking import TrackingClient

DOCUMENTATION = "https://mantik-ai.gitlab.io/mantik/"
LOGO = "https://github.com/mantik-ai.png"

B = TypeVar("B", bound=Block)


class MantikCredentials(CredentialsBlock):
    """Account on the Mantik platform: user name and password, and where the platform and its tracking server are.

    Example:
        Load a saved account and log in:
        ```python
        from prefect_mantik import MantikCredentials, authenticate

        credentials = MantikCredentials.load("BLOCK_NAME")
        print(authenticate(credentials).expires_at)
        ```
    """

    _block_type_name = "Mantik Credentials"
    _block_type_slug = "mantik-credentials"
    _documentation_url = DOCUMENTATION  # type: ignore[assignment]  # Prefect makes a URL of it
    _logo_url = LOGO  # type: ignore[assignment]

    model_config = ConfigDict(hide_input_in_errors=True)

    username: str = Field(title="User name", description="User name on the Mantik platform.", min_length=1)
    password: SecretStr = Field(title="Password", description="Password of that user.")
    self_hosted: bool = Field(
        default=False,
        title="Self-hosted",
        description="Whether this is a platform of your own, whose URLs may have any path.",
    )
    api_url: str = Field(
        default="https://api.cloud.mantik.ai",
        title="API URL",
        description="Base URL of the platform's API (the variable MANTIK_API_URL).",
    )
    tracking_uri: str = Field(
        default="https://api.cloud.mantik.ai/tracking",
        title="Tracking URI",
        description="MLflow tracking URI of the platform (the variable MLFLOW_TRACKING_URI).",
    )
    endpoints: dict[str, str] = Field(
        default_factory=dict,
        title="Endpoints",
        description="Operations that your platform has elsewhere, as a JSON object such as "
        '{"cancel_run": "POST /projects/{projectId}/runs/{runId}/cancel"}.',
    )

    @field_validator("password")
    @classmethod
    def _is_a_password(cls, value: SecretStr) -> SecretStr:
        return real_secret(value)

    @field_validator("endpoints")
    @classmethod
    def _are_endpoints(cls, value: dict[str, str]) -> dict[str, str]:
        from prefect_mantik.platform.endpoints import endpoints

        endpoints(value)
        return value

    @field_validator("api_url")
    @classmethod
    def _is_an_api_url(cls, value: str, info: ValidationInfo) -> str:
        return check_api_url(value, self_hosted=bool(info.data.get("self_hosted")))

    @field_validator("tracking_uri")
    @classmethod
    def _is_a_tracking_uri(cls, value: str, info: ValidationInfo) -> str:
        return check_tracking_uri(value, self_hosted=bool(info.data.get("self_hosted")))

    @classmethod
    def from_env(cls, env_file: str | Path | None = None, *, self_hosted: bool = False) -> MantikCredentials:
        """Make the block from the MANTIK_* variables of the environment or a `.env` file.

        Args:
            env_file: File of `export NAME=value` lines; a variable of the process environment wins over it.
            self_hosted: Whether URLs with any path are accepted.

        Raises:
            EnvironmentInvalid: Variables are missing or malformed, all of them listed.
        """
        found = MantikEnvironment.load(env_file, self_hosted=self_hosted)
        if not found.password.get_secret_value().strip("*"):
            raise EnvironmentInvalid(["MANTIK_PASSWORD is only asterisks: put the password itself there."])
        return cls(
            username=found.username,
            password=found.password,
            api_url=found.api_url,
            tracking_uri=found.tracking_uri,
            self_hosted=self_hosted,
        )

    def get_client(self, *_: Any, **__: Any) -> PlatformClient:
        """The platform's operations as this account, on the background loop."""
        from prefect_mantik.platform import platform_client

        return platform_client(self.api_url, self.username, self.password, self._overrides)

    def tracking_client(self) -> TrackingClient:
        """The tracking server's operations as this account, on the background loop."""
        from prefect_mantik.tracking import tracking_client

        return tracking_client(self.tracking_uri, self.api_url, self.username, self.password, self._overrides)

    @property
    def _overrides(self) -> tuple[tuple[str, str], ...]:
        return tuple(sorted(self.endpoints.items()))


class MantikConnection(Block):
    """Credentials for a site, a storage or a repository that the Mantik platform keeps, known by their Connection ID.

    Example:
        ```python
        from prefect_mantik import MantikConnection

        connection = MantikConnection.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "Mantik Connection"
    _block_type_slug = "mantik-connection"
    _documentation_url = DOCUMENTATION  # type: ignore[assignment]
    _logo_url = LOGO  # type: ignore[assignment]

    model_config = ConfigDict(hide_input_in_errors=True)

    connection_id: SecretStr = Field(
        title="Connection ID", description="UUID of the Connection, from Settings > Connections in Mantik."
    )
    provider: str = Field(
        default="",
        title="Provider",
        description="What the Connection holds credentials for, such as UNICORE, FirecREST, SSH or S3. "
        "Empty: not checked.",
    )
    credentials: MantikCredentials = Field(
        title="Mantik credentials", description="Account that the Connection belongs to."
    )

    @field_validator("connection_id")
    @classmethod
    def _is_a_uuid(cls, value: SecretStr) -> SecretStr:
        try:
            UUID(real_secret(value).get_secret_value().strip())
        except ValueError as error:
            if "asterisks" in str(error):
                raise
            raise ValueError(
                "a Connection ID is a UUID like 123e4567-e89b-12d3-a456-426614174000: copy it from Settings > "
                "Connections in Mantik"
            ) from None
        return value

    @property
    def id(self) -> UUID:
        """The Connection ID in clear: for requests, never for messages."""
        return UUID(self.connection_id.get_secret_value().strip())


class MantikProject(Block):
    """Project on the Mantik platform: the experiment to track in, the code to run, the budget to charge.

    Example:
        ```python
        from prefect_mantik import MantikProject

        project = MantikProject.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "Mantik Project"
    _block_type_slug = "mantik-project"
    _documentation_url = DOCUMENTATION  # type: ignore[assignment]
    _logo_url = LOGO  # type: ignore[assignment]

    model_config = ConfigDict(hide_input_in_errors=True)

    credentials: MantikCredentials = Field(title="Mantik credentials", description="Account to work as.")
    project_id: UUID = Field(title="Project ID", description="UUID of the project.")
    experiment_repository_id: UUID = Field(
        title="Experiment repository ID", description="UUID of the experiment that runs are tracked in."
    )
    code_repository_id: UUID = Field(
        title="Code repository ID", description="UUID of the code repository with the MLproject."
    )
    data_repository_id: UUID | None = Field(
        default=None, title="Data repository ID", description="UUID of the data repository that runs use, if any."
    )
    compute_budget_account: str = Field(
        default="",
        title="Compute budget account",
        description="Budget that the sites charge. Empty: the default of the account there.",
    )


def real_secret(value: SecretStr) -> SecretStr:
    """Return a secret as it is, or say that it was lost.

    Raises:
        ValueError: It is empty, or only asterisks: Prefect's UI stores those when it loses a nested block.
    """
    text = value.get_secret_value()
    if not text.strip():
        raise ValueError("is empty")
    if not text.strip("*"):
        raise ValueError(
            "is only asterisks: the real value was lost when the block was edited in the Prefect UI, or the block was "
            "passed as a masked copy. Save the block again, with the value or with the nested block picked anew"
        )
    return value


def reference(block: Block) -> str | None:
    """`<block type slug>/<document name>` of a block that was saved or loaded; None for one made in code."""
    name = block._block_document_name
    return f"{block.get_block_type_slug()}/{name}" if name else None


async def aload_block(kind: type[B], name: str) -> B:
    """Load a saved block, or say exactly what is wrong with it.

    Args:
        kind: Class of the block.
        name: Its name, or `<block type slug>/<name>`.

    Raises:
        BlockInvalid: There is no such block, or fields of it are wrong: each is named.
    """
    slug = kind.get_block_type_slug()
    given, _, document = name.rpartition("/")
    if given not in ("", slug):
        raise BlockInvalid(f"{name} is no {slug} block: name one of those.")
    try:
        return await kind.aload(document)
    except ObjectNotFound:
        problem = _missing(slug, document)
    except (ValueError, RuntimeError) as error:
        # Prefect wraps what went wrong; a pydantic error holds the input, so it is not kept as a context.
        cause = error if isinstance(error, ValidationError) else error.__cause__
        if isinstance(cause, ValidationError):
            problem = _invalid(slug, document, cause)
        elif isinstance(cause, ObjectNotFound):
            problem = _missing(slug, document)
        else:
            raise
    raise problem


def _missing(slug: str, document: str) -> BlockInvalid:
    return BlockInvalid(
        f"There is no saved block {slug}/{document}. `prefect block ls` lists what is saved; "
        "`prefect-mantik blocks save FILE` saves blocks from a file."
    )


def _invalid(slug: str, document: str, error: ValidationError) -> BlockInvalid:
    return BlockInvalid(f"The saved block {slug}/{document} cannot be used: {validation_findings(error)}.")


def validation_findings(error: ValidationError) -> str:
    """What is wrong with which field, without the values: they may be secrets."""
    return "; ".join(
        f"{'.'.join(str(part) for part in finding['loc']) or 'the block'}: "
        f"{finding['msg'].removeprefix('Value error, ').removesuffix('.')}"
        for finding in error.errors(include_input=False, include_url=False)
    )
