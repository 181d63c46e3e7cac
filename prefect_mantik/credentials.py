"""Blocks that say who we are and where our things lie on the platform; and the one helper that loads blocks.

A Connection is resolved by whoever needs its secrets, at run time and in memory. Nothing here asks a server.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.blocks.abstract import CredentialsBlock
from prefect.blocks.core import Block
from pydantic import (
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from prefect_mantik.documents import real_secret, reference
from prefect_mantik.environment import MantikEnvironment, check_api_url, check_tracking_uri
from prefect_mantik.errors import EnvironmentInvalid

if TYPE_CHECKING:
    from prefect_mantik.firecrest import ClientCredentials
    from prefect_mantik.platform import PlatformClient
    from prefect_mantik.tracking import TrackingClient
    from prefect_mantik.unicore import Credential

DOCUMENTATION = "https://mantik-ai.gitlab.io/mantik/"
LOGO = "https://github.com/mantik-ai.png"


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


class UnicoreCredentials(CredentialsBlock):
    """Login for UNICORE sites: user name and password, a bearer token, or a file with a token that is kept fresh.

    Example:
        Look at a site with pyunicore's own client:
        ```python
        from prefect_mantik import UnicoreCredentials

        credentials = UnicoreCredentials.load("BLOCK_NAME")
        client = credentials.get_client("https://unicore.example.org/SITE/rest/core")
        print(client.access_info())
        ```
    """

    _block_type_name = "UNICORE Credentials"
    _block_type_slug = "unicore-credentials"
    _documentation_url = DOCUMENTATION  # type: ignore[assignment]
    _logo_url = LOGO  # type: ignore[assignment]

    model_config = ConfigDict(hide_input_in_errors=True)

    username: str = Field(default="", title="User name", description="User name at the site.")
    # Not `SecretStr | None`: a form of Prefect shows what is typed into that.
    password: SecretStr = Field(default=SecretStr(""), title="Password", description="Password of that user.")
    token: SecretStr = Field(
        default=SecretStr(""),
        title="Token",
        description="Bearer token, where the site asks for more than a password: of its identity provider, or "
        "UNICORE's own (<API URL>/token).",
    )
    token_file: str = Field(
        default="",
        title="Token file",
        description="Path of a file with a bearer token where the flow runs. It is read anew for each login.",
    )
    renewable: bool = Field(
        default=False,
        title="Renew the token",
        description="Get a renewable token of UNICORE's with this login, and renew that for as long as the flow runs.",
    )

    @field_validator("password", "token")
    @classmethod
    def _is_a_secret(cls, value: SecretStr) -> SecretStr:
        return real_secret(value) if value.get_secret_value() else value

    @model_validator(mode="after")
    def _is_one_login(self) -> UnicoreCredentials:
        password, token = bool(self.password.get_secret_value()), bool(self.token.get_secret_value())
        if password and not self.username:
            raise ValueError("user name and password belong together: give both")
        if password + token + bool(self.token_file) != 1:
            raise ValueError("give one of: user name and password, a token, a token file")
        return self

    def get_client(self, api_url: str = "", *_: Any, **__: Any) -> Any:
        """A client of pyunicore's for a site, with its certificate verified (pyunicore by itself does not).

        Args:
            api_url: The site's REST API, https://<gateway>/<SITE>/rest/core.

        Raises:
            ConfigurationError: No URL was given, or the token file cannot be read.
        """
        from prefect_mantik.unicore.pyunicore_client import pyunicore_client

        return pyunicore_client(self.credential(), api_url)

    def credential(self) -> Credential:
        """What proves who we are, for our own clients."""
        from prefect_mantik.unicore import Password, Token, TokenFile

        if self.token_file:
            return TokenFile(self.token_file)
        if self.token.get_secret_value():
            return Token(self.token, reference(self) or "the token")
        return Password(self.username, self.password, reference(self) or "")


class FirecrestCredentials(CredentialsBlock):
    """Login for FirecREST sites: id and secret of a client that is registered with the site's identity provider.

    Example:
        Look at a site with pyfirecrest's own client:
        ```python
        from prefect_mantik import FirecrestCredentials

        credentials = FirecrestCredentials.load("BLOCK_NAME")
        client = credentials.get_client(
            "https://api.example.org/hpc/firecrest/v2",
            "https://auth.example.org/auth/realms/firecrest-clients/protocol/openid-connect/token",
        )
        print(client.systems())
        ```
    """

    _block_type_name = "FirecREST Credentials"
    _block_type_slug = "firecrest-credentials"
    _documentation_url = DOCUMENTATION  # type: ignore[assignment]
    _logo_url = LOGO  # type: ignore[assignment]

    model_config = ConfigDict(hide_input_in_errors=True)

    client_id: str = Field(
        title="Client ID", description="Id of the client, from the site's portal for developers.", min_length=1
    )
    client_secret: SecretStr = Field(title="Client secret", description="Secret of that client.")
    scope: str = Field(
        default="",
        title="Scope",
        description="What the site's identity provider wants named with each token, such as openid. Mostly nothing.",
    )

    @field_validator("client_secret")
    @classmethod
    def _is_a_secret(cls, value: SecretStr) -> SecretStr:
        return real_secret(value)

    def get_client(self, api_url: str = "", token_url: str = "", *_: Any, **__: Any) -> Any:
        """A client of pyfirecrest's for a site, with a time limit and tokens that live long enough.

        Args:
            api_url: FirecREST's API at the site, https://<host>/<platform>/firecrest/v2.
            token_url: Where the site's identity provider gives tokens.

        Raises:
            ConfigurationError: A URL was not given, or cannot be used.
        """
        from prefect_mantik.firecrest.pyfirecrest_client import pyfirecrest_client

        return pyfirecrest_client(self.credential(), api_url, token_url)

    def credential(self) -> ClientCredentials:
        """What proves who we are, for our own clients."""
        from prefect_mantik.firecrest.login import ClientCredentials

        return ClientCredentials(self.client_id, self.client_secret, reference(self) or "", self.scope)


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
