"""What a compute backend config may hold. The aliases are the platform's own key names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from prefect_mantik.backend_config import rules

BackendKind = Literal["unicore", "firecrest", "ssh"]

KINDS: dict[str, BackendKind] = {"UnicoreApiUrl": "unicore", "Firecrest": "firecrest", "SSH": "ssh"}
"""The key that tells what kind of site a config is for."""

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_KIBIBYTES = {"K": 1, "M": 1024, "G": 1024**2, "T": 1024**3}

_Commands = Annotated[tuple[str, ...], rules.COMMANDS, BeforeValidator(rules.command_list)]


class _Part(BaseModel):
    """A part of a config: what is in it is checked by the rules that stand in its annotations, before it is made."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, hide_input_in_errors=True, coerce_numbers_to_str=True
    )


class Firecrest(_Part):
    """A machine behind FirecREST."""

    api_url: Annotated[str, rules.FIRECREST_URL] = Field(alias="ApiUrl")
    token_url: Annotated[str, rules.TOKEN_URL] = Field(alias="TokenUrl")
    machine: Annotated[str, rules.TEXT] = Field(alias="Machine")


class Ssh(_Part):
    """A machine that the platform reaches by SSH."""

    hostname: Annotated[str, rules.TEXT] = Field(alias="Hostname")
    port: Annotated[int | None, rules.PORT] = Field(None, alias="Port")


class Resources(_Part):
    """What a job asks of the batch system. `None` leaves it to the site."""

    queue: Annotated[str, rules.TEXT] = Field(alias="Queue")
    runtime: Annotated[str | None, rules.RUNTIME] = Field(None, alias="Runtime")
    nodes: Annotated[int | None, rules.COUNT] = Field(None, alias="Nodes")
    total_cpus: Annotated[int | None, rules.COUNT] = Field(None, alias="TotalCPUs")
    cpus_per_node: Annotated[int | None, rules.COUNT] = Field(None, alias="CPUsPerNode")
    gpus_per_node: Annotated[int | None, rules.COUNT_OR_NONE] = Field(None, alias="GPUsPerNode")
    memory_per_node: Annotated[str | None, rules.MEMORY] = Field(None, alias="MemoryPerNode")
    reservation: Annotated[str | None, rules.TEXT] = Field(None, alias="Reservation")
    node_constraints: Annotated[str | None, rules.TEXT] = Field(None, alias="NodeConstraints")
    qos: Annotated[str | None, rules.TEXT] = Field(None, alias="QoS")

    @property
    def runtime_seconds(self) -> int | None:
        """The time limit in seconds; 0 is no limit, None leaves it to the site."""
        if self.runtime is None or self.runtime == "0":
            return None if self.runtime is None else 0
        return int(self.runtime[:-1]) * _SECONDS[self.runtime[-1]]

    @property
    def memory_kibibytes(self) -> int | None:
        """The memory in KiB; None leaves it to the site, as a number below 0 does.

        Units are powers of 1024, whatever their spelling. A number without one is megabytes, as for Slurm.
        """
        if not self.memory_per_node or self.memory_per_node.startswith("-"):
            return None
        number = self.memory_per_node.rstrip("KMGTiB")
        unit = self.memory_per_node[len(number) :][:1] or "M"
        return int(number) * _KIBIBYTES[unit]


class Apptainer(_Part):
    """A container image in which the entry point runs."""

    path: Annotated[str, rules.IMAGE] = Field(alias="Path")
    type: Annotated[Literal["local", "remote"], rules.IMAGE_TYPE, BeforeValidator(str.lower)] = Field(
        "local", alias="Type"
    )
    options: Annotated[tuple[str, ...], rules.OPTIONS, BeforeValidator(rules.command_list)] = Field((), alias="Options")

    @property
    def image(self) -> str:
        """What the job calls the image: its path at the site, or the file name of one that was uploaded."""
        return self.path if self.type == "remote" else self.path.rpartition("/")[2]


class Environment(_Part):
    """In what a job runs, and what runs before and after it."""

    apptainer: Apptainer | None = Field(None, alias="Apptainer")
    python: Annotated[str | None, rules.VENV, BeforeValidator(rules.python_path)] = Field(None, alias="Python")
    modules: Annotated[tuple[str, ...], rules.MODULES, BeforeValidator(rules.word_list)] = Field((), alias="Modules")
    variables: Annotated[Mapping[str, str], rules.VARIABLES, BeforeValidator(rules.variable_texts)] = Field(
        default_factory=dict, alias="Variables"
    )
    before_on_login_node: _Commands = Field((), alias="PreRunCommandOnLoginNode")
    after_on_login_node: _Commands = Field((), alias="PostRunCommandOnLoginNode")
    before_on_compute_node: _Commands = Field((), alias="PreRunCommandOnComputeNode")
    after_on_compute_node: _Commands = Field((), alias="PostRunCommandOnComputeNode")


class BackendConfig(_Part):
    """A compute backend config: one of three kinds of site, resources, environment, and files to leave out."""

    unicore_api_url: Annotated[str | None, rules.UNICORE_URL] = Field(None, alias="UnicoreApiUrl")
    firecrest: Firecrest | None = Field(None, alias="Firecrest")
    ssh: Ssh | None = Field(None, alias="SSH")
    resources: Resources = Field(alias="Resources")
    environment: Environment = Field(default_factory=Environment, alias="Environment")
    exclude: Annotated[tuple[str, ...], rules.NAMES, BeforeValidator(rules.text_list)] = Field((), alias="Exclude")

    @model_validator(mode="after")
    def _is_for_one_site(self) -> BackendConfig:
        if sum(part is not None for part in (self.unicore_api_url, self.firecrest, self.ssh)) != 1:
            raise ValueError(f"exactly one of {', '.join(KINDS)} must be there")
        return self

    @property
    def kind(self) -> BackendKind:
        """Which kind of site the config is for."""
        return "unicore" if self.unicore_api_url else "firecrest" if self.firecrest else "ssh"

    @property
    def site(self) -> str:
        """What to call the site: UNICORE's site, the machine, or the host."""
        if self.firecrest:
            return self.firecrest.machine
        return self.ssh.hostname if self.ssh else unicore_site(str(self.unicore_api_url))


def unicore_site(url: str) -> str:
    """The name of a UNICORE site, from its URL."""
    parts = urlsplit(url)
    first = parts.path.strip("/").partition("/")[0]
    return parts.netloc if first in ("", "rest") else first  # without a gateway the path names no site


def fields_of(model: type[BaseModel]) -> dict[str, Any]:
    """The fields of a part by the platform's names."""
    return {str(field.alias): field for field in model.model_fields.values()}
