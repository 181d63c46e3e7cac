"""What the types of parameters mean. MLflow knows four and checks hardly one, and a wrong value costs a night."""

from __future__ import annotations

import re
from collections.abc import Callable

_LIST = re.compile(r"list\[(.*)\]")


def is_known_type(kind: str) -> bool:
    """Whether values of a type can be checked."""
    inner = _LIST.fullmatch(kind)
    return is_known_type(inner[1]) if inner else kind in _FITS


def fits_type(value: object, kind: str) -> bool:
    """Whether a value, or the text of one, is of a type. Everything is of an unknown type.

    Args:
        value: A text, a number, true, false or null: the command sees `str(value)`.
        kind: As declared in the MLproject, such as `float` or `list[int]`.
    """
    text = str(value)
    if inner := _LIST.fullmatch(kind):
        items = text.strip().removeprefix("[").removesuffix("]").split(",")
        return items == [""] or all(fits_type(item.strip(), inner[1]) for item in items)
    fits = _FITS.get(kind)
    return fits is None or fits(text)


def _reads(number: Callable[[str], object]) -> Callable[[str], bool]:
    def fits(text: str) -> bool:
        try:
            number(text)
        except ValueError:
            return False
        return True

    return fits


_FITS: dict[str, Callable[[str], bool]] = {
    "string": lambda text: True,
    "str": lambda text: True,
    "path": lambda text: bool(text.strip()),
    "uri": lambda text: re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", text) is not None,
    "float": _reads(float),
    "int": _reads(int),
    "bool": lambda text: text.lower() in ("true", "false", "0", "1"),
}
_FITS |= {"integer": _FITS["int"], "boolean": _FITS["bool"]}
