"""Block documents: what a saved block is called, how it is loaded, and what exactly is wrong with one."""

from __future__ import annotations

import re
from collections import Counter
from typing import TypeAlias, TypeVar

from prefect.blocks.core import Block
from prefect.exceptions import ObjectNotFound
from pydantic import SecretStr, ValidationError

from prefect_mantik.errors import BlockInvalid

B = TypeVar("B", bound=Block)


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
    found = [
        (tuple(item["loc"]), item["type"], item["msg"]) for item in error.errors(include_input=False, include_url=False)
    ]
    return "; ".join(
        f"{'.'.join(str(part) for part in path) or 'the block'}: "
        f"{message.removeprefix('Value error, ').removesuffix('.')}"
        for path, _, message in _of_the_block_meant(found)
    )


_Found: TypeAlias = tuple[tuple[int | str, ...], str, str]


def _of_the_block_meant(found: list[_Found]) -> list[_Found]:
    """A field that takes one of several blocks is reported once for each: keep the one of which most is there."""
    at = next((i for path, _, _ in found for i, part in enumerate(path) if _is_block_class(part)), None)
    if at is None:
        return found
    of_blocks = [item for item in found if len(item[0]) > at and _is_block_class(item[0][at])]
    labels = [path[at] for path, _, _ in of_blocks]
    if all(kind == "model_type" for _, kind, _ in of_blocks):
        names = ", ".join(_class_name(label) for label in dict.fromkeys(labels))
        others = [item for item in found if item not in of_blocks]
        return _of_the_block_meant(
            [*others, (of_blocks[0][0][:at], "model_type", f"must be one of the blocks {names}")]
        )
    lacking = Counter(path[at] for path, kind, _ in found if len(path) > at and kind == "missing")
    meant = min(labels, key=lambda label: lacking[label])
    return _of_the_block_meant(
        [
            ((*path[:at], *path[at + 1 :]) if path[at : at + 1] == (meant,) else path, kind, message)
            for path, kind, message in found
            if len(path) <= at or not _is_block_class(path[at]) or path[at] == meant
        ]
    )


def _class_name(part: int | str) -> str:
    """The class in pydantic's label of a type: `UnicoreSite`, `function-after[f(), UnicoreSite]`."""
    name = re.fullmatch(r"(?:function-.*, )?(\w+)\]?", str(part))
    return name[1] if name else ""


def _is_block_class(part: int | str) -> bool:
    """Whether a part of a path is the label of a block class, and no field."""
    return _class_name(part) in _block_names(Block)


def _block_names(base: type[Block]) -> set[str]:
    return {name for kind in base.__subclasses__() for name in (kind.__name__, *_block_names(kind))}
