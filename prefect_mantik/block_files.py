"""Blocks as code: a YAML file that says which blocks there are, with secrets from variables only.

The file holds a list `blocks`. Each has a `type` (block type slug), a `name`, and its fields. In place of any value may
stand `{env: NAME}`, the value of a variable, `{env: NAME, default: value}`, or `{block: slug/name}`, another saved
block. A secret field takes a variable only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from prefect.blocks.core import Block
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from prefect_mantik import _blocks
from prefect_mantik.documents import aload_block, validation_findings
from prefect_mantik.errors import BlockInvalid, ConfigurationError, EnvironmentInvalid

BLOCK_TYPES: Mapping[str, type[Block]] = {
    getattr(_blocks, name).get_block_type_slug(): getattr(_blocks, name) for name in _blocks.__all__
}


class BlockEntry(BaseModel):
    """One block of a file."""

    model_config = ConfigDict(extra="allow")

    type: str
    name: str = Field(pattern=r"^[a-z0-9-]+$")

    @property
    def reference(self) -> str:
        """`<block type slug>/<name>`."""
        return f"{self.type}/{self.name}"

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of the block, as they stand in the file."""
        return self.model_extra or {}


def read_block_file(path: Path) -> list[BlockEntry]:
    """Read a block file.

    Raises:
        ConfigurationError: It cannot be read, or something in it is wrong: what, and where.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not valid YAML: it is not text in UTF-8.") from None
    except yaml.MarkedYAMLError as error:
        # Never the line itself: somebody may have written a secret there.
        mark = error.context_mark or error.problem_mark
        place = f", line {mark.line + 1}" if mark else ""
        raise ConfigurationError(f"{path} is not valid YAML{place}: {error.problem or error.context}.") from None
    except yaml.YAMLError:
        raise ConfigurationError(f"{path} is not valid YAML.") from None
    listed = document.get("blocks") if isinstance(document, dict) else None
    if not isinstance(listed, list) or not listed:
        raise ConfigurationError(f"{path} has no list `blocks`.")
    entries = [_entry(path, number, item) for number, item in enumerate(listed, 1)]
    references = [entry.reference for entry in entries]
    for reference in references:
        if references.count(reference) > 1:
            raise ConfigurationError(f"{path}: block {reference} is there twice.")
    return entries


def _entry(path: Path, number: int, item: Any) -> BlockEntry:
    try:
        entry = BlockEntry.model_validate(item)
    except ValidationError as error:
        finding = error.errors()[0]
        place = ".".join(str(part) for part in finding["loc"])
        raise ConfigurationError(f"{path}, block {number}: {place or 'entry'}: {finding['msg']}.") from None
    if entry.type not in BLOCK_TYPES:
        raise ConfigurationError(
            f"{path}, block {entry.reference}: there is no block type {entry.type!r}, only {', '.join(BLOCK_TYPES)}."
        )
    known = BLOCK_TYPES[entry.type].model_fields
    unknown = sorted(set(entry.fields) - set(known))
    if unknown:
        raise ConfigurationError(
            f"{path}, block {entry.reference}: unknown field {', '.join(unknown)}; its fields are {', '.join(known)}."
        )
    for name, value in entry.fields.items():
        if known[name].annotation is SecretStr and not _is_variable(value):
            raise ConfigurationError(
                f"{path}, block {entry.reference}: {name} is a secret: write {{env: NAME}} and set that variable."
            )
    return entry


async def asave_blocks(entries: Sequence[BlockEntry], variables: Mapping[str, str]) -> list[str]:
    """Create or update blocks in the order given, and return their references. All are checked before one is saved.

    Args:
        entries: From `read_block_file`.
        variables: What `{env: NAME}` stands for.

    Raises:
        EnvironmentInvalid: Variables are missing, all of them listed.
        BlockInvalid: A block's fields are wrong; nothing was saved.
    """
    missing = sorted({name for entry in entries for name in _variables_of(entry.fields)} - set(variables))
    if missing:
        raise EnvironmentInvalid([f"{name} is not set, and the block file needs it." for name in missing])
    made: dict[str, Block] = {}
    for entry in entries:
        made[entry.reference] = _made(entry, await _resolved(entry.fields, variables, made))
    for entry in entries:
        # Parts that were just saved are references by now, so that the whole holds no copy of their secrets.
        block = made[entry.reference]
        await block.asave(entry.name, overwrite=True)
    return list(made)


def _made(entry: BlockEntry, fields: Any) -> Block:
    try:
        return BLOCK_TYPES[entry.type](**fields)
    except ValidationError as error:
        findings = validation_findings(error)
    # Outside of `except`: the pydantic error holds the input, and would be kept as a context.
    raise BlockInvalid(f"Block {entry.reference}: {findings}. Nothing was saved.")


async def _resolved(value: Any, variables: Mapping[str, str], made: Mapping[str, Block]) -> Any:
    if isinstance(value, dict):
        if _is_variable(value):
            return variables.get(str(value["env"])) or value.get("default", "")
        if set(value) == {"block"}:
            return await _block(str(value["block"]), made)
        return {name: await _resolved(item, variables, made) for name, item in value.items()}
    if isinstance(value, list):
        return [await _resolved(item, variables, made) for item in value]
    return value


async def _block(reference: str, made: Mapping[str, Block]) -> Block:
    if reference in made:
        return made[reference]
    slug, _, name = reference.partition("/")
    if slug not in BLOCK_TYPES or not name:
        raise ConfigurationError(
            f"{reference!r} names no block: write <type>/<name>, types are {', '.join(BLOCK_TYPES)}."
        )
    return await aload_block(BLOCK_TYPES[slug], name)


def _is_variable(value: Any) -> bool:
    return isinstance(value, dict) and "env" in value and set(value) <= {"env", "default"}


def _variables_of(value: Any) -> set[str]:
    if isinstance(value, dict):
        if _is_variable(value):
            return set() if "default" in value else {str(value["env"])}
        return {name for item in value.values() for name in _variables_of(item)}
    if isinstance(value, list):
        return {name for item in value for name in _variables_of(item)}
    return set()
