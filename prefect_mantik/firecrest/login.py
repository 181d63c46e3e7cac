"""Who calls a FirecREST server: a registered client, and the tokens that its identity provider gives.

pyfirecrest's own `ClientCredentialsAuth` is not used: it asks with a blocking call without a time limit, keeps no lock,
and keeps a token until 10 s before its end, while a server refuses those with less than 30 s left.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from time import time as wall_clock
from typing import Protocol
from urllib.parse import urlencode

import httpx
from pydantic import BaseModel, Field, SecretStr, ValidationError

from prefect_mantik.api import Call, JsonApi
from prefect_mantik.errors import LoginRefused, NotFound, RequestFailed, ServiceUnavailable
from prefect_mantik.loop import VERIFIED, HideHeader, SingleFlight, Tls
from prefect_mantik.responses import HTML_PAGE

MARGIN = 40.0
"""Seconds before its end at which a token is replaced: a server refuses those with less than 30 s left."""

ECHO = "auth-token"
"""Header of a refusal in which a server repeats the token."""

logging.getLogger("httpcore.http11").addFilter(HideHeader(ECHO))


class ClientSource(Protocol):
    """Gives the credentials of a client. Hashable: who has the same shares one client of ours."""

    @property
    def username(self) -> str:
        """Whose they are, for messages."""
        ...

    async def client(self) -> ClientCredentials:
        """The credentials, valid now."""
        ...


@dataclass(frozen=True)
class ClientCredentials:
    """Client id and secret.

    Attributes:
        where: What holds them, for messages.
        scope: What the identity provider wants named with each token; empty where it wants nothing.
    """

    client_id: str
    client_secret: SecretStr
    where: str = field(default="", compare=False)
    scope: str = ""

    @property
    def username(self) -> str:
        """See `ClientSource`."""
        return self.client_id

    async def client(self) -> ClientCredentials:
        """See `ClientSource`."""
        return self


@dataclass(frozen=True)
class KeptClient:
    """Credentials that somebody keeps for us: fetched for each token, held in memory only.

    Attributes:
        where: What to call them in messages.
        identity: Who has the same here shares one client.
        resolve: Fetches them.
    """

    where: str
    identity: Hashable = field(repr=False)
    resolve: Callable[[], Awaitable[ClientCredentials]] = field(compare=False, repr=False)

    @property
    def username(self) -> str:
        """See `ClientSource`."""
        return self.where

    async def client(self) -> ClientCredentials:
        """See `ClientSource`."""
        return await self.resolve()


class _TokenAnswer(BaseModel):
    """RFC 6749, 5.1."""

    access_token: SecretStr = Field(min_length=1)
    expires_in: float = 300.0


@dataclass
class _Token:
    access: str = field(repr=False)
    ends: float
    """By our wall clock, which goes on while a laptop sleeps: the server told how long from when we asked."""


class FirecrestLogin:
    """Gets tokens as one client, one request at a time.

    A refused client is tried once: later calls get the same error without a request, until its credentials change.

    Args:
        token_url: Of the identity provider.
        source: The credentials.
        tls: How the provider's certificate is verified.
    """

    def __init__(self, token_url: str, source: ClientSource, tls: Tls = VERIFIED) -> None:
        self._api = JsonApi("the token endpoint", token_url, source.username, tls=tls)
        self._source = source
        self._token: _Token | None = None
        self._renewal = SingleFlight()
        self._refused: tuple[ClientCredentials, LoginRefused] | None = None

    async def headers(self) -> dict[str, str]:
        """See `api.Login`."""
        token = self._token
        if token is None or wall_clock() >= token.ends - MARGIN:
            token = await self._renewal.run(self._renew)
        return {"Authorization": f"Bearer {token.access}"}

    def outdated(self, response: httpx.Response) -> bool:
        """On a 401 the token ended early, by the server's clock. See `api.Login`."""
        if response.status_code != httpx.codes.UNAUTHORIZED:
            return False
        if self._token and response.request.headers.get("Authorization") == f"Bearer {self._token.access}":
            self._token = None
        return True

    async def _renew(self) -> _Token:
        client = await self._source.client()
        if self._refused and self._refused[0] == client:
            raise self._refused[1].again()
        call, asked_at = _token_request(client), wall_clock()
        try:
            response = await self._api.fetch(call)
        except NotFound as error:
            raise self._no_endpoint(error) from None
        except RequestFailed as error:
            if error.status not in (400, 401, 403) or error.detail.startswith(HTML_PAGE):
                raise
            refusal = error
        else:
            self._token = self._received(response, asked_at)
            return self._token
        raise self._refusal(client, refusal)

    def _received(self, response: httpx.Response, asked_at: float) -> _Token:
        try:
            answer = _TokenAnswer.model_validate(response.json())
        except (ValidationError, ValueError):
            answer = None
        # Outside of `except`: the answer may hold a token, and would be kept as a context.
        if answer is None:
            raise ServiceUnavailable(
                f"POST {self._api.base_url}: the token endpoint answered no token. Is this the site's token URL?",
                method="POST",
                status=response.status_code,
            )
        return _Token(answer.access_token.get_secret_value(), asked_at + answer.expires_in)

    def _refusal(self, client: ClientCredentials, error: RequestFailed) -> LoginRefused:
        held = f" ({client.where})" if client.where else ""
        refused = LoginRefused(
            f"{self._api.base_url} refused the client {client.client_id!r}{held}: {error.detail.rstrip('.')}. Check "
            "client id and secret; they are not tried again until they change.",
            method="POST",
            status=error.status,
            detail=error.detail,
        )
        self._refused = client, refused
        return refused.again()

    def _no_endpoint(self, error: RequestFailed) -> NotFound:
        return NotFound(
            f"There is no token endpoint at {self._api.base_url} ({error.detail}). Check the token URL of the site.",
            method="POST",
            status=error.status,
            detail=error.detail,
        )


def _token_request(client: ClientCredentials) -> Call:
    """RFC 6749, 4.4.2. Made here, so that no frame of an error's traceback has the secret in clear."""
    asked = {
        "grant_type": "client_credentials",
        "client_id": client.client_id,
        "client_secret": client.client_secret.get_secret_value(),
        **({"scope": client.scope} if client.scope else {}),
    }
    return Call(
        "POST",
        "",
        content=urlencode(asked).encode(),
        headers={"Content-Type": "application/x-www-form-urlencoded"},
        hide=[asked["client_secret"]],
    )
