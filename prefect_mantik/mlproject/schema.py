"""What an MLproject file holds, as far as a run needs it."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

from prefect_mantik.runs import ParameterValue


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Parameter(_Part):
    """A parameter of an entry point. One without a default has to be given."""

    type: str = "string"
    default: ParameterValue = None

    @property
    def required(self) -> bool:
        """Whether it has to be given; MLflow takes a default of null for none."""
        return self.default is None


class EntryPoint(_Part):
    """A command with placeholders, and the parameters that fill them."""

    command: str
    parameters: Mapping[str, Parameter] = Field(default_factory=dict)


class MLproject(_Part):
    """The entry points of a training code."""

    name: str | None = None
    entry_points: Mapping[str, EntryPoint]
