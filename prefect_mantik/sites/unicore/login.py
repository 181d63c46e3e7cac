"""The login at a UNICORE site, from whatever a block says of it."""

from __future__ import annotations

from prefect_mantik.credentials import MantikConnection, UnicoreCredentials
from prefect_mantik.documents import reference
from prefect_mantik.environment import unicore_login
from prefect_mantik.errors import ConfigurationError, NotFound
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
    try:
        found = await connection.credentials.get_client().connection(connection.id)
    except NotFound as error:
        raise ConfigurationError(
            f"The Connection ID in {name} is none of {connection.credentials.username!r}'s ({error.detail}): copy it "
            "from Settings > Connections in Mantik."
        ) from None
    provider = found.connection_provider
    if provider.lower() != PROVIDER.lower():
        raise ConfigurationError(f"The Connection in {name} is for {provider or 'no provider'}, not for {PROVIDER}.")
    if found.login_name and found.password:
        return Password(found.login_name, found.password)
    if found.token:
        return Token(found.token, found.login_name or name)
    raise ConfigurationError(f"The Connection in {name} holds neither user name and password nor a token.")
