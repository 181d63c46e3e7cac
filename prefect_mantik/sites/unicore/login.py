"""The login at a UNICORE site, from whatever a block says of it."""

from __future__ import annotations

from prefect_mantik.credentials import MantikConnection, UnicoreCredentials
from prefect_mantik.documents import reference
from prefect_mantik.environment import unicore_login
from prefect_mantik.errors import ConfigurationError
from prefect_mantik.sites.connections import connection_answer
from prefect_mantik.unicore import Credential, Kept, Password, Token

PROVIDER = "UNICORE"


def credential_of(login: UnicoreCredentials | MantikConnection | None) -> Credential:
    """What proves who we are at a site.

    Args:
        login: Credentials; or a Connection, which is fetched for each login and held in memory only; or None, for the
            variables MANTIK_UNICORE_USERNAME and MANTIK_UNICORE_PASSWORD.

    Raises:
        EnvironmentInvalid: The variables are needed and missing.
    """
    if login is None:
        return Password(*unicore_login())
    if isinstance(login, MantikConnection):
        name = reference(login) or "the MantikConnection"
        return Kept(f"Connection {name}", (login.credentials.get_client(), login.id), lambda: _fetched(login))
    return login.credential()


async def _fetched(connection: MantikConnection) -> Credential:
    name = reference(connection) or "the MantikConnection"
    found = await connection_answer(connection, PROVIDER)
    if found.login_name and found.password:
        return Password(found.login_name, found.password)
    if found.token:
        return Token(found.token, found.login_name or name)
    raise ConfigurationError(f"The Connection in {name} holds neither user name and password nor a token.")
