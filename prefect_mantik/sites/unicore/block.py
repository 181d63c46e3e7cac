"""The block of a site that is reached directly by UNICORE."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, field_validator, model_validator

from prefect_mantik.credentials import DOCUMENTATION, LOGO, MantikConnection, MantikProject, UnicoreCredentials
from prefect_mantik.documents import reference
from prefect_mantik.environment import check_url
from prefect_mantik.errors import ConfigurationError
from prefect_mantik.log import run_logger
from prefect_mantik.loop import Tls, per_process, tls_context
from prefect_mantik.sites.fields import PollLongest, PollShortest, Settle

if TYPE_CHECKING:
    from prefect_mantik.sites.unicore.site import DirectUnicoreSite
    from prefect_mantik.unicore import UnicoreClient

SETTLE = 120.0
"""Seconds of clean looks after which a site has no job: a gateway gives a request up before that."""


class UnicoreSite(Block):
    """Supercomputing site that runs are sent to directly, by UNICORE.

    Example:
        ```python
        from prefect_mantik import UnicoreSite

        site = UnicoreSite.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "UNICORE Site"
    _block_type_slug = "unicore-site"
    _documentation_url = DOCUMENTATION  # type: ignore[assignment]
    _logo_url = LOGO  # type: ignore[assignment]

    model_config = ConfigDict(hide_input_in_errors=True)

    api_url: str = Field(
        title="API URL", description="UNICORE's REST API at the site: https://<gateway>/<SITE>/rest/core."
    )
    login: UnicoreCredentials | MantikConnection | None = Field(
        default=None,
        title="Login",
        description="UNICORE credentials, or a Connection that the platform keeps. "
        "None: the variables MANTIK_UNICORE_USERNAME and MANTIK_UNICORE_PASSWORD.",
    )
    backend_config: dict[str, Any] = Field(
        title="Compute backend config",
        description="Resources, environment and what not to send, as Mantik's compute backend config in JSON.",
    )
    uid: str = Field(default="", title="User ID", description="Account at the site, if the login has several.")
    group: str = Field(default="", title="Group", description="Unix group at the site, if not the default one.")
    compute_project: str = Field(
        default="",
        title="Compute project",
        description="Budget that this site charges. Empty: the compute budget account of the Mantik project.",
    )
    ca_certificates: str = Field(
        default="",
        title="CA certificates",
        description="Certificates that the site's is verified with: PEM text, or the path of a PEM file where the "
        "flow runs. Empty: the usual ones.",
    )
    verify: bool = Field(
        default=True,
        title="Verify the certificate",
        description="Off: anybody in between can read the login and the data. For tests only.",
    )
    gpu_resource: str = Field(
        default="GPUsPerNode",
        title="GPU resource",
        description="What the site calls GPUs per node in UNICORE jobs; the Mantik platform sends GPUS.",
    )
    storage: str = Field(
        default="HOME", title="Storage", description="Storage at the site that is looked at when files are asked for."
    )
    settle: Settle = SETTLE
    poll_shortest: PollShortest = 0
    poll_longest: PollLongest = 0

    @field_validator("api_url")
    @classmethod
    def _is_a_url(cls, value: str) -> str:
        form = "https://<gateway>/<SITE>/rest/core"
        url = check_url(value, form=form).rstrip("/")
        if not url.endswith("/rest/core"):
            raise ValueError(f"does not end in /rest/core: UNICORE's REST API is at {form}")
        return url

    @field_validator("uid", "group")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_.@-]*", value):
            raise ValueError("must be one name of letters, digits and _ . @ -")
        return value

    @model_validator(mode="after")
    def _is_a_backend_config(self) -> UnicoreSite:
        from prefect_mantik.backend_config import parse_backend_config

        named = self.backend_config.get("UnicoreApiUrl", self.api_url)
        if str(named).rstrip("/") != self.api_url.rstrip("/"):
            raise ValueError(f"the backend config is for {named}, the site for {self.api_url}")
        try:
            parse_backend_config(self.whole_config)
        except ConfigurationError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def whole_config(self) -> dict[str, Any]:
        """The compute backend config with the site's URL."""
        return {"UnicoreApiUrl": self.api_url, **self.backend_config}

    def client(self) -> UnicoreClient:
        """The site's operations as the block's account, on the background loop.

        Raises:
            ConfigurationError: The CA certificates cannot be read.
        """
        from prefect_mantik.sites.unicore.login import credential_of
        from prefect_mantik.unicore import unicore_client

        if not self.verify:
            _warn(self.api_url)
        preferences = {"uid": self.uid, "group": self.group}
        tls = Tls(self.ca_certificates, self.verify)
        try:
            tls_context(tls)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"The CA certificates of {self.api_url} cannot be read here: {getattr(error, 'strerror', error)}."
            ) from None
        return unicore_client(
            self.api_url,
            credential_of(self.login),
            tuple((name, value) for name, value in preferences.items() if value),
            isinstance(self.login, UnicoreCredentials) and self.login.renewable,
            tls,
        )

    def open(self, project: MantikProject | None = None) -> DirectUnicoreSite:
        """Give what talks to the site. `project` is needed to submit."""
        from prefect_mantik.backend_config import parse_backend_config
        from prefect_mantik.sites.base import Pace
        from prefect_mantik.sites.unicore.site import DirectUnicoreSite, Settings

        saved = reference(self)
        config = parse_backend_config(self.whole_config)
        settings = Settings(
            reference=saved,
            name=(saved or f"/{config.site} (not saved)").partition("/")[2],
            queue=config.resources.queue,
            compute_project=self.compute_project,
            gpu_resource=self.gpu_resource,
            storage=self.storage,
            settle=self.settle,
            pace=Pace(self.poll_shortest, self.poll_longest),
        )
        return DirectUnicoreSite(settings, self.client(), project)


@per_process
def _warn(api_url: str) -> None:
    """Say it once a process."""
    run_logger().warning("The certificate of %s is not verified: anybody in between can read the login.", api_url)
