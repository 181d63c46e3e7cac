"""Users, their passwords and tokens, and the connections that the platform keeps for them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any
from uuid import UUID, uuid4

from prefect_mantik.sandbox.errors import ApiError
from prefect_mantik.sandbox.settings import Switches

_HEADER = {"alg": "HS256", "typ": "JWT"}


@dataclass
class Connection:
    """Credentials for a site that the platform keeps."""

    name: str
    provider: str
    login: str
    password: str = field(repr=False)
    id: UUID = field(default_factory=uuid4)


@dataclass
class User:
    """One account of the platform."""

    name: str
    password: str = field(default_factory=lambda: secrets.token_urlsafe(18), repr=False)
    id: UUID = field(default_factory=uuid4)
    connections: dict[UUID, Connection] = field(default_factory=dict)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Accounts:
    """All users; issues and checks tokens."""

    def __init__(self, users: list[User], switches: Switches, issuer: str) -> None:
        self.users = {user.name: user for user in users}
        self._switches = switches
        self._issuer = issuer
        self._client_id = secrets.token_hex(13)
        self._key = secrets.token_bytes(32)
        self._live: set[str] = set()
        self._refresh: dict[str, tuple[User, float]] = {}

    def login(self, username: str, password: str) -> dict[str, str]:
        """Answer a user name and password with a pair of tokens."""
        user = self.users.get(username)
        if user is None:
            raise ApiError(401, "User does not exist.")
        if not hmac.compare_digest(user.password.encode(), password.encode()):
            raise ApiError(401, "Incorrect username or password.")
        refresh_token = secrets.token_urlsafe(48)
        self._refresh[refresh_token] = (user, time.monotonic() + self._switches.refresh_lifetime)
        return self._issue(user) | {"RefreshToken": refresh_token}

    def refresh(self, username: str, refresh_token: str) -> dict[str, str]:
        """Answer a refresh token with a new access token."""
        user, expires = self._refresh.get(refresh_token, (None, 0.0))
        if user is None or user.name != username:
            raise ApiError(401, "Refresh token is invalid")
        if expires < time.monotonic():
            raise ApiError(401, "Refresh token has expired")
        return self._issue(user)

    def authenticate(self, authorization: str | None) -> User:
        """Give the user an `Authorization` header stands for, or refuse with 401."""
        token = bearer_token(authorization)
        try:
            head, body, signature = token.split(".")
            signed = hmac.compare_digest(_decode(signature), self._sign(f"{head}.{body}"))
            claims: dict[str, Any] = json.loads(_decode(body)) if signed else {}
        except ValueError:  # also what bad base64, bad UTF-8 and bad JSON raise
            claims = {}
        if not claims:
            raise ApiError(401, "Invalid signature")
        if claims["exp"] <= time.time() or claims["jti"] not in self._live:
            raise ApiError(401, "Token expired")
        return self.users[claims["username"]]

    def account_of(self, scope: Mapping[str, Any]) -> str:
        """Name whose request this is, as far as its token tells; for the counts only.

        Args:
            scope: The ASGI scope of the request.
        """
        header = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"), None)
        try:
            return self.authenticate(header).name
        except ApiError:
            return "anonymous"

    def expire_access_tokens(self) -> None:
        """Make every access token given out so far an expired one."""
        self._live.clear()

    def revoke_refresh_tokens(self) -> None:
        """Make every refresh token given out so far an invalid one."""
        self._refresh.clear()

    def connection(self, user: User, connection_id: UUID) -> Connection:
        """Give a connection to its owner and to nobody else."""
        if connection_id in user.connections:
            return user.connections[connection_id]
        if any(connection_id in other.connections for other in self.users.values()):
            raise ApiError(403, f"Connection {connection_id} belongs to another user")
        raise ApiError(404, f"Connection {connection_id} not found")

    def _issue(self, user: User) -> dict[str, str]:
        now = int(time.time())
        lifetime = self._switches.token_lifetime
        # Whole seconds, as everywhere, unless a test asks for a part of one.
        expires = now + int(lifetime) if lifetime == int(lifetime) else time.time() + lifetime
        token_id = str(uuid4())
        claims = {
            "sub": str(user.id),
            "iss": self._issuer,
            "client_id": self._client_id,
            "origin_jti": str(uuid4()),
            "event_id": str(uuid4()),
            "token_use": "access",
            "scope": "aws.cognito.signin.user.admin",
            "auth_time": now,
            "exp": expires,
            "iat": now,
            "jti": token_id,
            "username": user.name,
        }
        signed = ".".join(_encode(json.dumps(part).encode()) for part in (_HEADER, claims))
        self._live.add(token_id)
        expires_at = datetime.fromtimestamp(expires, timezone.utc).isoformat()
        return {"AccessToken": f"{signed}.{_encode(self._sign(signed))}", "ExpiresAt": expires_at}

    def _sign(self, signed: str) -> bytes:
        return hmac.digest(self._key, signed.encode(), hashlib.sha256)


def bearer_token(authorization: str | None) -> str:
    """Take the token out of an `Authorization` header."""
    if authorization is None:
        raise ApiError(401, "'Authorization' header missing")
    if not authorization.strip():
        raise ApiError(401, "Empty token in 'Authorization' header")
    scheme, _, token = authorization.strip().partition(" ")
    if scheme.lower() != "bearer":
        raise ApiError(401, "Request missing 'Authorization' header or incorrect scheme used ('Bearer' required)")
    if not token.strip():
        raise ApiError(401, "Token missing in 'Authorization' header")
    return token.strip()
