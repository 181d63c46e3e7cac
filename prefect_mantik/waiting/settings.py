"""How waits behave: Prefect settings of this package, `PREFECT_INTEGRATIONS_MANTIK_*`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from prefect.settings.base import PrefectBaseSettings, build_settings_config
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from prefect_mantik.loop import per_process


class MantikSettings(PrefectBaseSettings):
    """Settings of waits, from variables, `.env`, `prefect.toml` or `pyproject.toml`, as Prefect's own are.

    A site's block may say other intervals for its site.
    """

    model_config: ClassVar[SettingsConfigDict] = build_settings_config(("integrations", "mantik"))

    poll_shortest: float = Field(default=5.0, gt=0, description="Seconds between two polls of a run, at least.")
    poll_longest: float = Field(default=60.0, gt=0, description="Seconds between two polls of a run, at most.")
    poll_queued: float = Field(
        default=120.0, gt=0, description="Seconds between two polls of a run that waits in a queue, at most."
    )
    share_polls: bool = Field(
        default=True, description="Whether processes of one Prefect server let one of them ask for all."
    )
    follow_logs: bool = Field(default=True, description="Whether logs of training runs appear in the flow run's log.")
    log_directory: Path | None = Field(default=None, description="Directory for the whole logs of training runs.")
    progress: bool = Field(default=True, description="Whether a flow run shows a card with its training runs.")


@per_process
def settings() -> MantikSettings:
    """The settings, read once a process."""
    return MantikSettings()
