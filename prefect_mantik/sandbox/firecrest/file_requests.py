"""What requests about files say: parameters in the query, fields of a JSON body, and a file in a form."""

from __future__ import annotations

import json
import re
from typing import Any

from prefect_mantik.sandbox.firecrest.replies import FirecrestError, validation_error
from prefect_mantik.sandbox.firecrest.service import Call

_TRUE = {"true", "1", "on", "yes", "t", "y"}
_FALSE = {"false", "0", "off", "no", "f", "n"}
_COMPRESSIONS = ("none", "bzip2", "gzip", "xz")
_FILE_NAME = re.compile(r'filename="((?:[^"\\]|\\.)*)"')


def query_text(call: Call, name: str) -> str:
    """Give a parameter of the query that has to be there."""
    text = call.request.query_params.get(name)
    if text is None:
        raise _missing("query", name)
    return text


def query_flag(call: Call, name: str) -> bool:
    """Give a parameter of the query that is true or false; false by default."""
    text = call.request.query_params.get(name, "false").lower()
    if text not in _TRUE | _FALSE:
        message = "Input should be a valid boolean, unable to interpret input"
        raise validation_error("query", name, message, problem="bool_parsing")
    return text in _TRUE


def query_number(call: Call, name: str) -> int | None:
    """Give a parameter of the query that is a number, if it is there."""
    text = call.request.query_params.get(name)
    try:
        return None if text is None else int(text)
    except ValueError:
        message = "Input should be a valid integer, unable to parse string as an integer"
        raise validation_error("query", name, message, problem="int_parsing") from None


class Fields:
    """The fields of a JSON body; the server takes each of them in camel case and in snake case."""

    def __init__(self, content: dict[str, Any], within: str = "") -> None:
        self._content = content
        # The server names the outermost field only.
        self._within = within

    def source(self) -> str:
        """Give the path that nearly all bodies have; it has one spelling more."""
        return self.text("sourcePath", "path")

    def text(self, name: str, *spellings: str, default: str | None = None) -> str:
        """Give a string.

        Args:
            name: The field in camel case.
            *spellings: Further spellings.
            default: What is given if the field is not there; by default that is refused.
        """
        value = self._value(name, *spellings)
        if value is None and default is not None:
            return default
        if value is None:
            raise _missing("body", self._within or name)
        if not isinstance(value, str):
            raise self._wrong(name, "Input should be a valid string", "string_type")
        return value

    def flag(self, name: str) -> bool:
        """Give a truth value; false by default."""
        value = self._value(name)
        text = str(value).lower() if isinstance(value, bool | str | int) else ""
        if value is None or text in _FALSE:
            return False
        if text not in _TRUE:
            raise self._wrong(name, "Input should be a valid boolean", "bool_type")
        return True

    def number(self, name: str) -> int | None:
        """Give a number, if it is there."""
        value = self._value(name)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        if isinstance(value, str) and value.isdigit():
            return int(value)
        raise self._wrong(name, "Input should be a valid integer", "int_type")

    def compression(self) -> str:
        """Give the kind of compression."""
        value = self.text("compression", default="gzip")
        if value not in _COMPRESSIONS:
            raise self._wrong("compression", "Input should be 'none', 'bzip2', 'gzip' or 'xz'", "enum")
        return value

    def inner(self, name: str) -> Fields:
        """Give the fields of an object within."""
        value = self._value(name)
        if value is None:
            raise _missing("body", name)
        if not isinstance(value, dict):
            raise self._wrong(name, "Input should be a valid dictionary", "dict_type")
        return Fields(value, name)

    def _value(self, *spellings: str) -> Any:
        snake = (re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", name) for name in spellings)
        return next((self._content[name] for name in (*spellings, *snake) if name in self._content), None)

    def _wrong(self, name: str, message: str, problem: str) -> FirecrestError:
        return validation_error("body", self._within or name, message, problem=problem)


async def body_fields(call: Call) -> Fields:
    """Read the JSON object that the request brings."""
    raw = await call.request.body()
    try:
        content = json.loads(raw) if raw else None
    except ValueError:
        raise validation_error("body", "0", "JSON decode error", problem="json_invalid") from None
    if content is None:
        raise _missing("body", "body")
    if not isinstance(content, dict):
        message = "Input should be a valid dictionary or object to extract fields from"
        raise validation_error("body", "body", message, problem="model_attributes_type")
    return Fields(content)


async def form_file(call: Call) -> tuple[str, bytes]:
    """Read the form's field `file`: its name and its content."""
    kind = call.request.headers.get("content-type", "")
    _, found, boundary = kind.partition("boundary=")
    if not kind.startswith("multipart/form-data") or not found:
        raise _missing("body", "file")
    mark = b"--" + boundary.split(";")[0].strip().strip('"').encode()
    # Each part begins with a line break that belongs to the mark before it, and ends with that of the next one.
    for part in (b"\r\n" + await call.request.body()).split(b"\r\n" + mark)[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        disposition = head.decode(errors="replace")
        name = _FILE_NAME.search(disposition)
        if name is not None and re.search(r'[; ]name="?file"?', disposition):
            return re.sub(r"\\(.)", r"\1", name[1]), content
    raise _missing("body", "file")


def _missing(location: str, name: str) -> FirecrestError:
    return validation_error(location, name, "Field required", problem="missing")
