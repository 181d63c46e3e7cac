"""The login at a FirecREST site, from whatever a block says of it."""

from __future__ import annotations

from prefect_mantik.credentials import FirecrestCredentials, MantikConnection
from prefect_mantik.documents import reference
from prefect_mantik.environment import firecrest_login
from prefect_mantik.errors import ConfigurationError
from prefect_mantik.firecrest import ClientCredentials, ClientSource, KeptClient
from prefect_mantik.sites.connections import connection_answer

PROVIDER = "FirecREST"


def client_of(login: FirecrestCredentials | MantikConnection | None) -> ClientSource:
    """What proves who we are at a site.

    Args:
        login: Credentials; or a Connection, which is fetched for each token and held in memory only; or None, for the
            variables MANTIK_FIRECREST_CLIENT_ID and MANTIK_FIRECREST_CLIENT_SECRET.

    Raises:
        EnvironmentInvalid: The variables are needed and missing.
    """
    if login is None:
        return ClientCredentials(*firecrest_login())
    if isinstance(login, MantikConnection):
        name = reference(login) or "the MantikConnection"
        identity = login.credentials.get_client(), login.id
        return KeptClient(f"Connection {name}", identity, lambda: _fetched(login))
    return login.credential()


async def _fetched(connection: MantikConnection) -> ClientCredentials:
    name = reference(connection) or "the MantikConnection"
    found = await connection_answer(connection, PROVIDER)
    if found.login_name and found.password:
        return ClientCredentials(found.login_name, found.password, f"Connection {name}")
    raise ConfigurationError(
        f"The Connection in {name} does not hold client id and secret (as user name and password of the Connection)."
    )
