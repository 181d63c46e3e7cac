"""Bearer tokens of one platform account: made, refreshed in time, kept in memory only."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from time import time as wall_clock
from uuid import UUID

import httpx
from pydantic import SecretStr, ValidationError

from prefect_mantik.api import Call, JsonApi
from prefect_mantik.errors import LoginRefused, RequestFailed, ServiceUnavailable
from prefect_mantik.log import run_logger
from prefect_mantik.loop import SingleFlight
from prefect_mantik.platform.endpoints import Endpoint
from prefect_mantik.platform.schemas import TokenAnswer
from prefect_mantik.responses import HTML_PAGE, server_time
from prefect_mantik.results import LoginInfo

MAX_MARGIN = 60.0
"""A token is renewed this many seconds before it ends, or at about four fifths of its life if that is later."""

_WHOLE_SECOND = 1.0
"""A JWT ends at a whole second, whatever the answer beside it says."""

_REFUSALS = (400, 401, 403)
"""With words of the platform's own: a gateway's page says nothing of the password."""


@dataclass(frozen=True)
class LastingToken:
    """A token to hand on.

    Attributes:
        token: The token.
        expires_at: When it ends, by the server's clock.
        refresh_at: When to hand on a fresh one, by ours: in the middle of its life.
    """

    token: SecretStr
    expires_at: datetime
    refresh_at: float


@dataclass
class _Token:
    access: str = field(repr=False)
    refresh: str | None = field(repr=False)
    expires_at: datetime
    clock_ahead: float
    """Seconds by which the server's clock is ahead of ours."""
    lifetime: float

    @property
    def half_life(self) -> float:
        """When half of its life is over, by our clock."""
        return self.expires_at.timestamp() - self.clock_ahead - self.lifetime / 2

    @property
    def is_fresh(self) -> bool:
        """By the server's clock: ours may be wrong, and the wall clock goes on while a laptop sleeps."""
        margin = min(MAX_MARGIN, self.lifetime / 5 + _WHOLE_SECOND)
        return wall_clock() + self.clock_ahead < self.expires_at.timestamp() - margin


class PlatformTokens:
    """The token source of one account.

    One renewal is in flight at a time, whoever asks. A refresh token that ended falls back to user name and password.
    A refused password is tried once: later calls get the same error without a request, until other credentials
    (another object) come.

    Args:
        api: The platform, called without a token.
        password: Of the account `api.username`.
        create: Where tokens are made.
        refresh: Where they are refreshed.
    """

    def __init__(self, api: JsonApi, password: SecretStr, *, create: Endpoint, refresh: Endpoint) -> None:
        self._api, self._password = api, password
        self._create_endpoint, self._refresh_endpoint = create, refresh
        self._current: _Token | None = None
        self._refused: LoginRefused | None = None
        self._renewal = SingleFlight()

    async def token(self) -> str:
        """Return a valid access token.

        Raises:
            LoginRefused: The platform refused user name and password, now or before.
            ServiceUnavailable: It could not be asked.
        """
        return (await self._valid()).access

    async def lasting(self) -> LastingToken:
        """Return a token with at least half of its life before it. Errors as for `token`."""
        found = await self._valid()
        if found.half_life < wall_clock():
            found = await self._renewal.run(self._renew)
        return LastingToken(SecretStr(found.access), found.expires_at, found.half_life)

    def invalidate(self, token: str) -> None:
        """Take note that the server refused this token, whatever it says of its own life."""
        if self._current and self._current.access == token:
            self._current.lifetime = 0.0
            self._current.expires_at = datetime.fromtimestamp(0, self._current.expires_at.tzinfo)

    async def login(self) -> LoginInfo:
        """Say who is logged in, logging in if need be."""
        token = await self._valid()
        return LoginInfo(username=self._api.username, user_id=_subject(token.access), expires_at=token.expires_at)

    async def _valid(self) -> _Token:
        if self._refused:
            raise self._refused.again()
        if self._current and self._current.is_fresh:
            return self._current
        return await self._renewal.run(self._renew)

    async def _renew(self) -> _Token:
        refresh = self._current.refresh if self._current else None
        self._current = (await self._refresh(refresh) if refresh else None) or await self._create()
        return self._current

    async def _create(self) -> _Token:
        body = {"username": self._api.username, "password": self._password.get_secret_value()}
        try:
            return await self._ask(self._create_endpoint, body)
        except RequestFailed as error:
            if error.status not in _REFUSALS or error.detail.startswith(HTML_PAGE):
                raise
            self._refused = LoginRefused(
                f"The platform refused the login of {self._api.username!r} at {self._api.base_url}: "
                f"{error.detail.rstrip('.')}. "
                "Check user name and password; they are not tried again until they change.",
                method=error.method,
                path=error.path,
                status=error.status,
                detail=error.detail,
            )
            raise self._refused.again() from None

    async def _refresh(self, refresh_token: str) -> _Token | None:
        body = {"username": self._api.username, "refresh_token": refresh_token}
        try:
            token = await self._ask(self._refresh_endpoint, body)
        except ServiceUnavailable:
            raise
        except RequestFailed as error:
            run_logger().debug("The platform did not refresh a token (%s): logging in anew.", error.detail)
            return None
        token.refresh = token.refresh or refresh_token
        return token

    async def _ask(self, endpoint: Endpoint, body: dict[str, str]) -> _Token:
        hide = [value for name, value in body.items() if name != "username"]
        response = await self._api.fetch(Call(endpoint.method, endpoint.path, json=body, hide=hide))
        try:
            answer = TokenAnswer.model_validate(response.json())
        except (ValidationError, ValueError):
            # The answer may hold a token: not shown, not chained.
            raise ServiceUnavailable(
                f"{endpoint.method} {endpoint.path}: {self._api.name} at {self._api.base_url} answered no token. "
                "Is this the platform's API URL?",
                method=endpoint.method,
                path=endpoint.path,
                status=response.status_code,
            ) from None
        return _received(answer, response)


def _received(answer: TokenAnswer, response: httpx.Response) -> _Token:
    # The header Date drops the fraction: the server's clock may be almost a second further.
    now = server_time(response) + timedelta(seconds=1)
    return _Token(
        access=answer.access_token.get_secret_value(),
        refresh=answer.refresh_token.get_secret_value() if answer.refresh_token else None,
        expires_at=answer.expires_at,
        clock_ahead=now.timestamp() - wall_clock(),
        lifetime=max(0.0, (answer.expires_at - now).total_seconds()),
    )


def _subject(token: str) -> UUID | None:
    """The user's id: the claim `sub` of the token (a JWT, read and not verified: the server does that)."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return UUID(claims["sub"])
    except (IndexError, KeyError, ValueError, TypeError):
        return None
