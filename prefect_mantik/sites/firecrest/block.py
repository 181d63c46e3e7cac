"""The block of a site that is reached directly by FirecREST."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, field_validator, model_validator

from prefect_mantik.credentials import DOCUMENTATION, LOGO, FirecrestCredentials, MantikConnection, MantikProject
from prefect_mantik.documents import reference
from prefect_mantik.environment import check_url
from prefect_mantik.errors import ConfigurationError
from prefect_mantik.sites.fields import PollLongest, PollShortest, Settle

if TYPE_CHECKING:
    from prefect_mantik.firecrest import FirecrestClient
    from prefect_mantik.sites.firecrest.site import DirectFirecrestSite

SETTLE = 150.0
"""Seconds of clean looks after which a site has no job: while its controller is busy, `sbatch` itself tries for two
minutes, also when nobody waits for it any more."""


class FirecrestSite(Block):
    """Supercomputing site that runs are sent to directly, by FirecREST (version 2 of its API).

    Example:
        ```python
        from prefect_mantik import FirecrestSite

        site = FirecrestSite.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "FirecREST Site"
    _block_type_slug = "firecrest-site"
    _documentation_url = DOCUMENTATION  # type: ignore[assignment]
    _logo_url = LOGO  # type: ignore[assignment]

    model_config = ConfigDict(hide_input_in_errors=True)

    api_url: str = Field(
        title="API URL", description="FirecREST's API at the site: https://<host>/<platform>/firecrest/v2."
    )
    token_url: str = Field(
        title="Token URL",
        description="Where the site's identity provider gives tokens: "
        "https://<host>/auth/realms/<realm>/protocol/openid-connect/token.",
    )
    system: str = Field(title="System", description="Name of the machine, as FirecREST calls it, such as daint.")
    login: FirecrestCredentials | MantikConnection | None = Field(
        default=None,
        title="Login",
        description="FirecREST credentials, or a Connection that the platform keeps. "
        "None: the variables MANTIK_FIRECREST_CLIENT_ID and MANTIK_FIRECREST_CLIENT_SECRET.",
    )
    root: str = Field(
        title="Working root",
        description="Absolute path of a directory of yours there, such as on scratch, below which each run gets one.",
    )
    backend_config: dict[str, Any] = Field(
        title="Compute backend config",
        description="Resources, environment and what not to send, as Mantik's compute backend config in JSON.",
    )
    account: str = Field(
        default="",
        title="Account",
        description="Budget that this site charges. Empty: the compute budget account of the Mantik project.",
    )
    fail_if_stuck: bool = Field(
        default=False,
        title="Fail if stuck",
        description="Cancel a job that for two minutes will not start by itself, such as one over the partition's time "
        "limit. Off: a wait warns once and goes on.",
    )
    settle: Settle = SETTLE
    poll_shortest: PollShortest = 0
    poll_longest: PollLongest = 0

    @field_validator("api_url")
    @classmethod
    def _is_an_api_url(cls, value: str) -> str:
        from prefect_mantik.backend_config import retired

        url = check_url(value, form="https://<host>/<platform>/firecrest/v2")
        if message := retired("Firecrest.ApiUrl", url):
            raise ValueError(message)
        return url

    @field_validator("token_url")
    @classmethod
    def _is_a_token_url(cls, value: str) -> str:
        return check_url(value, form="https://<host>/auth/realms/<realm>/protocol/openid-connect/token")

    @field_validator("system")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", value):
            raise ValueError("must be the name of one system, of letters, digits and _ . -")
        return value

    @field_validator("root")
    @classmethod
    def _is_a_path(cls, value: str) -> str:
        if not re.fullmatch(r"(/[A-Za-z0-9_.@+-]+)+/?", value) or ".." in value.split("/"):
            raise ValueError("must be an absolute path of letters, digits and _ . @ + -, without variables")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _is_a_backend_config(self) -> FirecrestSite:
        from prefect_mantik.backend_config import parse_backend_config

        ours, given = self._where, self.backend_config.get("Firecrest", {})
        if not isinstance(given, dict):
            raise ValueError("the backend config's Firecrest is no mapping: leave it out")  # noqa: TRY004  # pydantic's
        named = {**ours, **given}
        if wrong := [name for name in ours if str(named[name]).rstrip("/").lower() != ours[name].lower()]:
            name = wrong[0]
            raise ValueError(f"the backend config's Firecrest.{name} is another one than the site's {ours[name]}")
        try:
            parse_backend_config(self.whole_config)
        except ConfigurationError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def _where(self) -> dict[str, str]:
        return {"ApiUrl": self.api_url, "TokenUrl": self.token_url, "Machine": self.system}

    @property
    def whole_config(self) -> dict[str, Any]:
        """The compute backend config with the site's URLs and system."""
        return {**self.backend_config, "Firecrest": {**self.backend_config.get("Firecrest", {}), **self._where}}

    def client(self) -> FirecrestClient:
        """The system's operations as the block's account, on the background loop."""
        from prefect_mantik.firecrest import firecrest_client
        from prefect_mantik.sites.firecrest.login import client_of

        return firecrest_client(self.api_url, self.token_url, self.system, client_of(self.login))

    def open(self, project: MantikProject | None = None) -> DirectFirecrestSite:
        """Give what talks to the site. `project` is needed to submit."""
        from prefect_mantik.backend_config import parse_backend_config
        from prefect_mantik.sites.base import Pace
        from prefect_mantik.sites.firecrest.settings import Settings
        from prefect_mantik.sites.firecrest.site import DirectFirecrestSite

        saved = reference(self)
        settings = Settings(
            reference=saved,
            name=(saved or f"/{self.system} (not saved)").partition("/")[2],
            root=self.root,
            config=parse_backend_config(self.whole_config),
            account=self.account,
            settle=self.settle,
            pace=Pace(self.poll_shortest, self.poll_longest),
            fail_if_stuck=self.fail_if_stuck,
        )
        return DirectFirecrestSite(settings, self.client(), project)
