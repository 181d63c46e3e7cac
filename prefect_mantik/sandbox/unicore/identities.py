"""Who may use the UNICORE sites: people, their passwords and tokens, and the local accounts they stand for."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import secrets
import time
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

from prefect_mantik.sandbox.unicore.replies import UnicoreError

GROUPS = ("hpc", "sandbox-budget")
TOKEN_LIFETIME = 300
# As much as the JWT library of the real server forgives.
LEEWAY = 60.0
_HEADER = {"alg": "RS256"}


@dataclass
class Person:
    """Somebody with an account at the sites.

    Attributes:
        name: The user name that is good at every site.
        password: Its password.
        logins: The local account of each site.
    """

    name: str
    password: str = field(default_factory=lambda: secrets.token_urlsafe(18), repr=False)
    logins: dict[str, str] = field(default_factory=dict)

    @property
    def dn(self) -> str:
        """The distinguished name, which the sites know the person by."""
        return f"CN={self.name}, O=Sandbox"

    @property
    def owner(self) -> str:
        """The same, as it stands in the properties of resources."""
        return self.dn.replace(", ", ",")


@dataclass(frozen=True)
class Caller:
    """Who a request comes from.

    Attributes:
        person: None stands for nobody in particular.
        login: The local account; empty for a caller who is not entitled to use the site.
        method: How they proved who they are.
        group: The group chosen.
        supplementary: Further groups chosen.
        preferences: What was asked for with the user preferences.
        renewable: Whether their token may be exchanged for another.
    """

    person: Person | None = None
    login: str = ""
    method: str = ""
    group: str = GROUPS[0]
    supplementary: tuple[str, ...] = ()
    preferences: tuple[tuple[str, str], ...] = ()
    renewable: bool = True

    @property
    def dn(self) -> str:
        """The distinguished name."""
        return self.person.dn if self.person else "CN=ANONYMOUS,O=UNKNOWN,OU=UNKNOWN"

    @property
    def owner(self) -> str:
        """The distinguished name as it stands in the properties of resources."""
        return self.person.owner if self.person else self.dn

    def describe(self) -> dict[str, Any]:
        """Describe the caller as the base resource does."""
        if not self.login:
            method = {"authenticationMethod": self.method} if self.method else {}
            return {"role": {"selected": "anonymous"}, "dn": self.dn, "xlogin": {}, **method}
        xlogin: dict[str, Any] = {
            "UID": self.login,
            "availableUIDs": [self.login],
            "group": self.group,
            "availableGroups": list(GROUPS),
        }
        if self.supplementary:
            xlogin["selectedSupplementaryGroups"] = list(self.supplementary)
        return {
            "role": {"selected": "user", "availableRoles": ["user"]},
            "dn": self.dn,
            "xlogin": xlogin,
            "authenticationMethod": self.method,
        }


class Identities:
    """All people, and the tokens of the provider that they have in common."""

    def __init__(self, people: list[Person]) -> None:
        self.people = {person.name: person for person in people}
        self._oidc: dict[str, tuple[Person, float]] = {}
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.expires = time.time() + 365 * 86400

    def issue_oidc(self, name: str, lifetime: float) -> str:
        """Give out an access token of the OpenID provider.

        Args:
            name: The person.
            lifetime: Seconds it lives.
        """
        token = secrets.token_urlsafe(32)
        self._oidc[token] = (self.people[name], time.time() + lifetime)
        return token

    def of_oidc(self, token: str) -> Person | None:
        """Give the person whose access token this is."""
        person, expires = self._oidc.get(token, (None, 0.0))
        return person if expires > time.time() else None

    def sign(self, claims: dict[str, Any]) -> str:
        """Make a JWT."""
        signed = ".".join(_encode(json.dumps(part).encode()) for part in (_HEADER, claims))
        return f"{signed}.{_encode(self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"

    def verified(self, token: str) -> dict[str, Any] | None:
        """Give the claims of a delegation token, or None for what is none.

        Raises:
            UnicoreError: It was forged or has expired.
        """
        try:
            _, body, _ = token.split(".")
            claims: Any = json.loads(_decode(body))
        except ValueError:
            return None
        if not isinstance(claims, dict) or claims.get("etd") != "true":
            return None
        signed, _, signature = token.rpartition(".")
        try:
            public = self._key.public_key()
            public.verify(_decode(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        except (InvalidSignature, ValueError):
            raise UnicoreError(403) from None
        if float(claims["exp"]) + LEEWAY < time.time():
            raise UnicoreError(403)
        return claims

    def certificate(self, name: str) -> str:
        """Give the certificate of a site, in PEM.

        Args:
            name: Its common name.
        """
        subject = x509.Name(
            [x509.NameAttribute(NameOID.COMMON_NAME, name), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Sandbox")]
        )
        now = datetime.now(timezone.utc)
        built = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(datetime.fromtimestamp(self.expires, timezone.utc))
            .sign(self._key, hashes.SHA256())
        )
        return built.public_bytes(serialization.Encoding.PEM).decode()


def basic_credentials(text: str) -> tuple[str, str] | None:
    """Read what follows `Basic` in an Authorization header."""
    try:
        name, found, password = base64.b64decode(text, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return (name, password) if found else None


def same(one: str, other: str) -> bool:
    """Compare secrets."""
    return hmac.compare_digest(one.encode(), other.encode())


def with_preferences(caller: Caller, header: str) -> Caller:
    """Apply user preferences.

    Args:
        caller: Whose.
        header: The X-UNICORE-User-Preferences header, e.g. `uid:me,group:proj`.

    Raises:
        UnicoreError: The header cannot be read, or asks for what the caller does not have.
    """
    preferences = dict(caller.preferences)
    for item in header.split(","):
        key, found, value = item.strip().partition(":")
        if not found or not value or ":" in value:
            raise UnicoreError(403)
        name = _PREFERENCES.get(key.lower())
        if name is not None:
            preferences[name] = value
    supplementary = tuple(filter(None, preferences.get("supgids", "").split("+")))
    group = preferences.get("group", caller.group)
    wrong_account = preferences.get("xlogin", caller.login) != caller.login
    if caller.login and (wrong_account or not {group, *supplementary} <= set(GROUPS)):
        raise UnicoreError(403)
    if preferences.get("role", "user") not in ("user", "anonymous"):
        raise UnicoreError(403)
    return replace(caller, group=group, supplementary=supplementary, preferences=tuple(preferences.items()))


_PREFERENCES = {
    "xlogin": "xlogin",
    "uid": "xlogin",
    "group": "group",
    "pgid": "group",
    "project": "group",
    "role": "role",
    "supplementarygroups": "supgids",
    "supgids": "supgids",
}


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
