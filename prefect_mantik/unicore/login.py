"""Who calls a UNICORE server: credentials, and the session that a verified login opens.

A server answers everybody. Whom it does not know (no credentials, an opaque token that ended) is `anonymous` and sees
an empty list of jobs, which must never be taken for "there is no job". So each session is opened by asking who we are,
and every call then names a session in which we are somebody: the server either knows the session or answers 432.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import time as wall_clock
from typing import Protocol

import httpx
from pydantic import SecretStr, ValidationError

from prefect_mantik.api import Call, JsonApi
from prefect_mantik.errors import ConfigurationError, LoginRefused, NotFound, RequestFailed, ServiceUnavailable
from prefect_mantik.log import run_logger
from prefect_mantik.loop import HideHeader, SingleFlight
from prefect_mantik.unicore.schemas import SiteProperties

SESSION = "X-UNICORE-SecuritySession"
PREFERENCES = "X-UNICORE-User-Preferences"

SESSION_UNKNOWN = 432

_LOOKS, _PAUSE = 4, 0.25

TOKEN_LIFETIME = 24 * 3600
"""Seconds that a renewable token is asked for. It is renewed after three quarters of what the server gives."""

RENEW_AGAIN = 60.0
"""Seconds after which a renewal is tried again that did not come about."""


class Credential(Protocol):
    """What proves who we are. Hashable: who has the same shares one client."""

    @property
    def username(self) -> str:
        """Whose it is, for messages."""
        ...

    async def authorization(self) -> str:
        """The header `Authorization`."""
        ...


@dataclass(frozen=True)
class Password:
    """User name and password; `where` says what holds them, for messages."""

    username: str
    password: SecretStr
    where: str = field(default="", compare=False)

    async def authorization(self) -> str:
        """See `Credential`."""
        pair = f"{self.username}:{self.password.get_secret_value()}"
        return f"Basic {base64.b64encode(pair.encode()).decode()}"


@dataclass(frozen=True)
class Token:
    """A bearer token: of the site's identity provider, or UNICORE's own."""

    token: SecretStr
    username: str = "the token"

    async def authorization(self) -> str:
        """See `Credential`."""
        return f"Bearer {_one_token(self.token.get_secret_value(), 'The token')}"


@dataclass(frozen=True)
class TokenFile:
    """A file with a bearer token, which somebody keeps fresh: it is read anew for each login."""

    path: str

    @property
    def username(self) -> str:
        """See `Credential`."""
        return f"the token in {self.path}"

    async def authorization(self) -> str:
        """See `Credential`."""
        text = ""
        for _ in range(_LOOKS):
            try:
                text = (await asyncio.to_thread(_text_of, self.path)).strip()
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "not a text"
                raise ConfigurationError(f"The token file {self.path} cannot be read here: {reason}.") from None
            if text:
                break
            await asyncio.sleep(_PAUSE)  # it may just be being written
        return f"Bearer {_one_token(text, f'The token file {self.path}')}"


@dataclass(frozen=True)
class Kept:
    """A credential that somebody keeps for us: fetched for each login, held in memory only.

    Attributes:
        where: What to call it in messages.
        identity: Who has the same here shares one client.
        resolve: Fetches it.
    """

    where: str
    identity: Hashable = field(repr=False)
    resolve: Callable[[], Awaitable[Credential]] = field(compare=False, repr=False)

    @property
    def username(self) -> str:
        """See `Credential`."""
        return self.where

    async def authorization(self) -> str:
        """See `Credential`."""
        return await (await self.resolve()).authorization()


def _one_token(text: str, what: str) -> str:
    """A token as it is, or what is wrong with it, without showing it."""
    token = text.strip()
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise ConfigurationError(f"{what} must hold one token, on one line, and nothing else.")
    return token


logging.getLogger("httpcore.http11").addFilter(HideHeader(SESSION))


def _text_of(path: str) -> str:
    return Path(path).expanduser().read_text()


@dataclass
class _Session:
    id: str | None = field(repr=False)
    who: SiteProperties


class UnicoreLogin:
    """Opens sessions as one account at one site.

    A refused login is tried once: later calls get the same error without a request, until the credentials change.

    Args:
        api: The site, called as nobody.
        credential: What proves who we are.
        preferences: Which of the account's uids, groups and roles to use.
        renewable: Get a renewable token with the credential, and renew that from then on.
    """

    def __init__(
        self, api: JsonApi, credential: Credential, preferences: Mapping[str, str], *, renewable: bool = False
    ) -> None:
        self._api, self._credential, self._renewable = api, credential, renewable
        self._preferences = {PREFERENCES: ",".join(f"{k}:{v}" for k, v in preferences.items())} if preferences else {}
        self._session: _Session | None = None
        self._opening, self._renewing = SingleFlight(), SingleFlight()
        self._refused: tuple[str, LoginRefused] | None = None
        self._token: str | None = None
        self._renew_at = 0.0

    async def headers(self) -> dict[str, str]:
        """Name a session in which we are somebody. See `api.Login`."""
        session = self._session
        if session is None:
            session = await self._opening.run(self._open)
        elif self._token and wall_clock() >= self._renew_at:
            await self._renew_in_time()
        if session.id is None:  # a server without sessions: each call may find us unknown
            self._session = None
            return {"Authorization": await self._authorization(), **self._preferences}
        return {SESSION: session.id, **self._preferences}

    def outdated(self, response: httpx.Response) -> bool:
        """On a 432 the session ended. See `api.Login`."""
        if response.status_code != SESSION_UNKNOWN:
            return False
        if self._session and response.request.headers.get(SESSION) == self._session.id:
            self._session = None
        return True

    async def who(self) -> SiteProperties:
        """Ask the site who we are, in a new session."""
        self._session = None
        return (await self._opening.run(self._open)).who

    async def _open(self) -> _Session:
        if self._token and wall_clock() < self._renew_at:
            try:
                return await self._known(f"Bearer {self._token}")
            except LoginRefused:  # the server forgot it before its time
                self._token, self._refused = None, None
        if not self._renewable:
            return await self._known(await self._credential.authorization())
        await self._renewing.run(self._renew)
        try:
            return await self._known(f"Bearer {self._token}")
        except LoginRefused as error:  # a server gives a token even to those whom it does not know
            self._token, self._refused = None, (await self._credential.authorization(), error)
            raise error.again() from None

    async def _known(self, authorization: str) -> _Session:
        """Open a session in which we are somebody."""
        response = await self._ask("", {"fields": "client,server"}, authorization)
        try:
            who = SiteProperties.model_validate(response.json())
        except (ValidationError, ValueError):
            raise ServiceUnavailable(
                f"{self._api.base_url} does not answer as UNICORE does. Its REST API is at "
                "https://<gateway>/<SITE>/rest/core."
            ) from None
        if who.is_anonymous:
            raise self._refusal(authorization, "the site does not know this user, or has no account for it")
        self._session = _Session(response.headers.get(SESSION), who)
        return self._session

    async def _authorization(self) -> str:
        return f"Bearer {self._token}" if self._token else await self._credential.authorization()

    async def _renew_in_time(self) -> None:
        """Renew the token while the session lives: what it was got with may be good once only. A help, not a need."""
        try:
            await self._renewing.run(self._renew)
        except (RequestFailed, ConfigurationError) as error:
            self._renew_at = wall_clock() + RENEW_AGAIN
            run_logger().warning("The token for %s was not renewed. %s", self._api.base_url, error)

    async def _renew(self) -> None:
        """Get a renewable token; by the one we have, or where that has ended by the credential."""
        if self._token:
            try:
                await self._get_token(f"Bearer {self._token}")
            except LoginRefused:
                self._token, self._refused = None, None
                run_logger().info("The token for %s ended: logging in anew.", self._api.base_url)
            else:
                return
        await self._get_token(await self._credential.authorization())

    async def _get_token(self, authorization: str) -> None:
        asked = {"lifetime": str(TOKEN_LIFETIME), "renewable": "true"}
        self._token = (await self._ask("/token", asked, authorization, accept="text/plain")).text.strip()
        left = _seconds_left(self._token)
        self._renew_at = wall_clock() + (TOKEN_LIFETIME if left is None else left) * 0.75

    async def _ask(
        self, path: str, params: dict[str, str], authorization: str, accept: str = "application/json"
    ) -> httpx.Response:
        if self._refused and self._refused[0] == authorization:
            raise self._refused[1].again()
        call = Call(
            "GET",
            path,
            params=params,
            headers={"Accept": accept, "Authorization": authorization, **self._preferences},
            hide=[authorization, authorization.partition(" ")[2]],
        )
        try:
            return await self._api.fetch(call)
        except RequestFailed as error:
            if error.status == httpx.codes.NOT_FOUND:
                raise _no_site(self._api.base_url, error) from None
            if error.status not in (401, 403) and not isinstance(error, LoginRefused):
                raise
            words = error.detail
        raise self._refusal(authorization, words)

    def _refusal(self, authorization: str, words: str) -> LoginRefused:
        left = _seconds_left(authorization.partition(" ")[2])
        hints = [f"Its token ended {-left:.0f} s ago. "] if left is not None and left < 0 else []
        if self._preferences:
            hints.append(f"Or the account may not use the preferences {self._preferences[PREFERENCES]}. ")
        error = LoginRefused(
            f"{self._api.base_url} refused the login of {self._credential.username!r}"
            f"{_held(self._credential)}: {words.rstrip('.')}. "
            f"{''.join(hints)}Check the credentials; they are not tried again until they change.",
            method="GET",
            path="/rest/core",
            status=403,
            detail=words,
        )
        self._refused = authorization, error
        return error.again()


def _no_site(url: str, error: RequestFailed) -> NotFound:
    return NotFound(
        f"There is no UNICORE site at {url} ({error.detail}). A site's API URL is https://<gateway>/<SITE>/rest/core: "
        "check the host and the name of the site.",
        method=error.method,
        path=error.path,
        status=error.status,
        detail=error.detail,
    )


def _held(credential: Credential) -> str:
    where = getattr(credential, "where", "")
    return f" ({where})" if where and where != credential.username else ""


def _seconds_left(token: str) -> float | None:
    """How long a JWT lives yet, by its claim `exp` and our clock; None for a token that does not tell."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return float(claims["exp"]) - wall_clock()
    except (IndexError, KeyError, ValueError, TypeError):
        return None
