"""The block of a site that is reached through the Mantik platform."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, field_validator

from prefect_mantik.credentials import DOCUMENTATION, LOGO, MantikConnection, MantikProject
from prefect_mantik.errors import ConfigurationError
from prefect_mantik.sites.fields import PollLongest, PollShortest, Settle

if TYPE_CHECKING:
    from prefect_mantik.sites.mantik.site import PlatformSite

SETTLE = 120.0
"""Seconds of clean looks after which the platform has no run: not established for the platform, so generous."""


class MantikSite(Block):
    """Supercomputing site that runs are sent to through the Mantik platform.

    Example:
        ```python
        from prefect_mantik import MantikSite

        site = MantikSite.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "Mantik Site"
    _block_type_slug = "mantik-site"
    _documentation_url = DOCUMENTATION  # type: ignore[assignment]
    _logo_url = LOGO  # type: ignore[assignment]

    model_config = ConfigDict(hide_input_in_errors=True)

    connection: MantikConnection = Field(
        title="Connection", description="Connection with the login for the site, kept by the platform."
    )
    backend_config: dict[str, Any] = Field(
        title="Compute backend config",
        description="Mantik's compute backend config as a JSON object: the site's URL, resources and environment.",
    )
    settle: Settle = SETTLE
    poll_shortest: PollShortest = 0
    poll_longest: PollLongest = 0
    silence_warning: float = Field(
        default=1800,
        title="Silence warning",
        description="Seconds without a sign of life of a running run after which a wait warns. 0 for never.",
        ge=0,
    )
    silence_limit: float = Field(
        default=0,
        title="Silence limit",
        description="Seconds without a sign of life after which a wait stops and asks. 0 for never.",
        ge=0,
    )

    ask_site: bool = Field(
        default=True,
        title="Ask the site itself",
        description="Where the site speaks UNICORE or FirecREST, use the Connection's login for fresh states, logs and "
        "cancelling.",
    )

    @field_validator("backend_config")
    @classmethod
    def _is_a_backend_config(cls, value: dict[str, Any]) -> dict[str, Any]:
        from prefect_mantik.backend_config import check_backend_config

        try:
            check_backend_config(value)
        except ConfigurationError as error:
            raise ValueError(str(error)) from None
        return value

    @property
    def whole_config(self) -> dict[str, Any]:
        """The compute backend config."""
        return self.backend_config

    def open(self, project: MantikProject | None = None) -> PlatformSite:
        """Give what talks to the site. `project` is needed to submit."""
        from prefect_mantik.sites.mantik.site import PlatformSite

        return PlatformSite(self, project)
