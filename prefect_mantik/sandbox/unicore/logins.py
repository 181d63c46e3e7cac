"""Authentication at one UNICORE site, and its security sessions."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from starlette.datastructures import Headers
from starlette.requests import Request

from prefect_mantik.sandbox.scheduler import Site
from prefect_mantik.sandbox.settings import Switches
from prefect_mantik.sandbox.unicore.identities import (
    TOKEN_LIFETIME,
    Caller,
    Identities,
    Person,
    basic_credentials,
    same,
    with_preferences,
)
from prefect_mantik.sandbox.unicore.replies import UnicoreError

SESSION_HEADER = "X-UNICORE-SecuritySession"
LIFETIME_HEADER = "X-UNICORE-SecuritySession-Lifetime"
PREFERENCES_HEADER = "X-UNICORE-User-Preferences"
_MOST_SESSIONS = 10_000


@dataclass
class Session:
    """A security session: whoever names it is the caller."""

    id: str
    caller: Caller
    expires: float

    def headers(self) -> dict[str, str]:
        """Give the headers that tell of the session."""
        left = max(0, int((self.expires - time.time()) * 1000))
        return {SESSION_HEADER: self.id, LIFETIME_HEADER: str(left)}


class Logins:
    """Decides who a request comes from."""

    def __init__(self, site: Site, identities: Identities, switches: Switches) -> None:
        self.server_dn = f"CN={site.name.upper()},O=Sandbox"
        self._site = site
        self._identities = identities
        self._switches = switches
        self._sessions: dict[str, Session] = {}

    def session(self, request: Request) -> Session:
        """Give the session a request belongs to, or begin one.

        Raises:
            UnicoreError: 432 for an unknown session, 403 for bad credentials or preferences.
        """
        named = request.headers.get(SESSION_HEADER)
        if named is not None:
            session = self._sessions.get(named)
            if session is None or session.expires <= time.time():
                self._sessions.pop(named, None)
                raise UnicoreError(432)
            # Credentials that come with a session are not even looked at.
            request.scope["sandbox.account"] = session.caller.login or "anonymous"
        else:
            caller = self._authenticate(request.headers.get("authorization", ""))
            request.scope["sandbox.account"] = caller.login or "anonymous"
            if caller.method == "PASSWORD" and not self._switches.unicore_password_login and not _is_open(request):
                raise UnicoreError(403)
            session = Session(str(uuid4()), caller, time.time() + self._switches.unicore_session_lifetime)
        for header in request.headers.getlist(PREFERENCES_HEADER):
            session.caller = with_preferences(session.caller, header)
        self._sessions[session.id] = session
        while len(self._sessions) > _MOST_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        return session

    def expire_sessions(self) -> None:
        """Forget all sessions."""
        self._sessions.clear()

    def account_of(self, scope: Mapping[str, Any]) -> str:
        """Name the local account of a request, as far as its headers tell; for the counts only."""
        headers = Headers(scope=dict(scope))
        session = self._sessions.get(headers.get(SESSION_HEADER, ""))
        if session is not None:
            return session.caller.login or "anonymous"
        try:
            return self._authenticate(headers.get("authorization", "")).login or "anonymous"
        except UnicoreError:
            return "anonymous"

    def issue_token(self, caller: Caller, *, lifetime: int | None, renewable: bool, limited: bool) -> str:
        """Issue a token with which others may act for the caller.

        Args:
            caller: Whose.
            lifetime: Seconds it lives.
            renewable: Whether it may be used to get another one.
            limited: Whether it is good at this server only.
        """
        if not caller.renewable:
            cause = "Cannot create token when authenticating with a non-renewable token!"
            raise UnicoreError(500, f"Error creating token: eu.unicore.security.AuthenticationException: {cause}")
        now = int(time.time())
        claims = {
            "sub": caller.dn,
            **({"aud": self.server_dn} if limited else {}),
            "etd": "true",
            **({"renewable": "true"} if renewable else {}),
            "iss": self.server_dn,
            "exp": now + (TOKEN_LIFETIME if lifetime is None else lifetime),
            "iat": now,
        }
        return self._identities.sign(claims)

    def _authenticate(self, authorization: str) -> Caller:
        scheme, _, credentials = authorization.strip().partition(" ")
        if scheme.lower() == "basic":
            return self._by_password(credentials)
        if scheme.lower() == "bearer":
            return self._by_token(credentials.strip())
        return Caller()

    def _by_password(self, credentials: str) -> Caller:
        name, password = basic_credentials(credentials) or ("", "")
        person = self._identities.people.get(name)
        known = person.password if person else None
        if person is None:
            known = self._site.passwords.get(name)
            person = next((p for p in self._identities.people.values() if p.logins.get(self._site.name) == name), None)
        if self._site.refuse_logins or person is None or known is None or not same(known, password):
            raise UnicoreError(403)
        return self._caller(person, "PASSWORD")

    def _by_token(self, token: str) -> Caller:
        if self._site.refuse_logins:
            raise UnicoreError(403)
        claims = self._identities.verified(token)
        if claims is None:
            person = self._identities.of_oidc(token)
            if person is None:
                return Caller()  # what is no JWT, and nobody's, is left out of account: as if nothing had come
            return self._caller(person, "OAUTH")
        if claims.get("aud", self.server_dn) != self.server_dn:
            raise UnicoreError(403)
        renewable = claims.get("renewable") == "true"
        person = next((p for p in self._identities.people.values() if p.dn == claims["sub"]), None)
        return Caller(renewable=renewable) if person is None else self._caller(person, "ETD", renewable)

    def _caller(self, person: Person, method: str, renewable: bool = True) -> Caller:
        login = person.logins.get(self._site.name, "") if self._site.entitled else ""
        return Caller(person=person, login=login, method=method, renewable=renewable)


def _is_open(request: Request) -> bool:
    return request.url.path.rstrip("/").endswith(("/rest/core", "/rest/core/token"))
