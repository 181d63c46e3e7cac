"""What the sandbox's HTTP APIs refuse with, and why it may not start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


class SandboxError(Exception):
    """The sandbox cannot start."""


class ApiError(Exception):
    """A refusal: an HTTP status and the `detail` of its body."""

    def __init__(self, status: int, detail: str | list[dict[str, Any]]) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


def parse(kind: type[T], value: object, location: Sequence[str]) -> T:
    """Validate part of a request and refuse it as FastAPI would.

    Args:
        kind: The type wanted.
        value: What came.
        location: Where it came, e.g. `("body",)`.
    """
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        detail = [{**problem, "loc": [*location, *problem["loc"]]} for problem in problems]
        raise ApiError(422, detail) from None


def configuration_error(cause: str) -> ApiError:
    """A config or MLproject that cannot be turned into a job."""
    return ApiError(400, f"While submitting the job, this configuration error occurred: {cause}")


def unicore_error(cause: str) -> ApiError:
    """A UNICORE site that refused."""
    return ApiError(400, f"Unicore backend error. Cause: {cause}")


def firecrest_error(cause: str) -> ApiError:
    """A FirecREST site that refused."""
    return ApiError(400, f"Firecrest backend error. Cause: {cause}")
