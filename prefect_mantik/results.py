"""What the verbs return besides runs: who is logged in, and a version of a model."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, ConfigDict


class LoginInfo(BaseModel):
    """Who is logged in. Never holds a token.

    Attributes:
        username: The platform's user name.
        user_id: Its id there, from the token; None where the token does not tell.
        expires_at: When the present access token ends; it is renewed by itself.
    """

    model_config = ConfigDict(defer_build=True)

    username: str
    user_id: UUID | None
    expires_at: datetime


class ModelVersion(BaseModel):
    """A version of a registered model.

    Attributes:
        name: Of the registered model.
        version: As MLflow numbers it.
        source: Where the files lie.
        run_id: MLflow run that made it.
        link: Where to look at it.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    name: str
    version: str
    source: str
    run_id: str
    link: str
