"""The access tokens of the FirecREST site, and the server that gives them out."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
import time
from typing import Any
from urllib.parse import parse_qsl, unquote_plus

from starlette.requests import Request
from starlette.responses import Response

from prefect_mantik.sandbox.firecrest.replies import FirecrestError, json_reply
from prefect_mantik.sandbox.scheduler import Site
from prefect_mantik.sandbox.settings import Switches

# What the server wants to have left of a token, so that it lasts as long as the work.
NEEDED = 30.0


class Tokens:
    """Gives out tokens to the clients of a site and knows them again."""

    def __init__(self, site: Site, switches: Switches, issuer: str) -> None:
        self._site = site
        self._switches = switches
        self._issuer = issuer
        self._key = secrets.token_bytes(32)
        self._key_id = secrets.token_urlsafe(16)
        self._valid_from = 0.0

    def issue(self, client: str, lifetime: float) -> str:
        """Make a token.

        Args:
            client: The client's id, which is the site's user name too.
            lifetime: Seconds it lives.
        """
        now = time.time()
        claims = {
            "exp": now + lifetime,
            "iat": now,
            "jti": secrets.token_hex(16),
            "iss": self._issuer,
            "typ": "Bearer",
            "azp": client,
            "scope": "profile email",
            "preferred_username": client,
        }
        header = {"alg": "HS256", "typ": "JWT", "kid": self._key_id}
        signed = ".".join(_encode(json.dumps(part).encode()) for part in (header, claims))
        return f"{signed}.{_encode(self._signature(signed))}"

    def expire(self) -> None:
        """Make every token given out so far an expired one."""
        self._valid_from = time.time()

    def login(self, authorization: str | None) -> str:
        """Give the user whom a request comes from.

        Args:
            authorization: The request's Authorization header.

        Raises:
            FirecrestError: With status 401.
        """
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            error = FirecrestError(401, "Not authenticated")
            error.headers["www-authenticate"] = "Bearer"
            raise error
        try:
            return str(self._claims(token)["preferred_username"])
        except FirecrestError as refusal:
            # So the server does, to the harm of those who log what they are answered.
            refusal.headers["auth-token"] = token.encode("ascii", "replace").decode()
            raise

    def client_of(self, authorization: str) -> str:
        """Name the client that a token or a name with its secret says it is of, whether or not it is good."""
        if (basic := _basic(authorization)) is not None:
            return basic[0]
        try:
            return str(json.loads(_decode(authorization.partition(" ")[2].split(".")[1]))["preferred_username"])
        except (ValueError, LookupError, TypeError):
            return "anonymous"

    async def grant(self, request: Request) -> Response:
        """Answer a request for a token by the client credentials."""
        form = dict(parse_qsl((await request.body()).decode(errors="replace"), keep_blank_values=True))
        kind = request.headers.get("content-type", "")
        if not kind.startswith("application/x-www-form-urlencoded") or "grant_type" not in form:
            return _refuse(400, "invalid_request", "Missing form parameter: grant_type")
        if form["grant_type"] != "client_credentials":
            return _refuse(400, "unsupported_grant_type", "Unsupported grant_type")
        client, secret = _basic(request.headers.get("authorization")) or (
            form.get("client_id"),
            form.get("client_secret"),
        )
        if client is None:
            return _refuse(401, "invalid_client", "Invalid client or Invalid client credentials")
        request.scope["sandbox.account"] = client
        known = self._site.passwords.get(client)
        if known is None:
            return _refuse(401, "invalid_client", "Invalid client or Invalid client credentials")
        if self._site.refuse_logins or not hmac.compare_digest(known.encode(), (secret or "").encode()):
            return _refuse(401, "unauthorized_client", "Invalid client or Invalid client credentials")
        lifetime = self._switches.firecrest_token_lifetime
        content = {
            "access_token": self.issue(client, lifetime),
            "expires_in": int(lifetime),
            "refresh_expires_in": 0,
            "token_type": "Bearer",
            "not-before-policy": 0,
            "scope": "profile email",
        }
        reply = json_reply(content)
        reply.headers["cache-control"] = "no-store"
        return reply

    def _claims(self, token: str) -> dict[str, Any]:
        signed, _, signature = token.rpartition(".")
        try:
            header, claims = (json.loads(_decode(part)) for part in signed.split("."))
            foreign = header.get("kid") != self._key_id
            forged = not hmac.compare_digest(_decode(signature), self._signature(signed))
            expires, issued = float(claims["exp"]), float(claims["iat"])
        except (ValueError, LookupError, TypeError, AttributeError):
            raise FirecrestError(401, "Access token is invalid.") from None
        if foreign:
            raise FirecrestError(401, "Token's public key not found.")
        if forged:
            raise FirecrestError(401, "Access token is invalid.")
        left = expires - time.time()
        if left <= 0 or issued <= self._valid_from:
            raise FirecrestError(401, "Access token expired")
        if left < NEEDED:
            raise FirecrestError(401, "Access token expires too soon (less than 30s remaining).")
        return dict(claims)

    def _signature(self, text: str) -> bytes:
        return hmac.new(self._key, text.encode(), hashlib.sha256).digest()


def _refuse(status: int, error: str, description: str) -> Response:
    return json_reply({"error": error, "error_description": description}, status)


def _basic(authorization: str | None) -> tuple[str, str] | None:
    scheme, _, text = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, _, secret = base64.b64decode(text, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return unquote_plus(name), unquote_plus(secret)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
