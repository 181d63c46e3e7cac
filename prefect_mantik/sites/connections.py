"""The secrets that the platform keeps for a site: fetched when they are needed, held in memory only."""

from __future__ import annotations

from prefect_mantik.credentials import MantikConnection
from prefect_mantik.documents import reference
from prefect_mantik.errors import ConfigurationError, NotFound
from prefect_mantik.platform.schemas import ConnectionAnswer


async def connection_answer(connection: MantikConnection, provider: str) -> ConnectionAnswer:
    """Fetch a Connection.

    Args:
        connection: Which one.
        provider: What it must hold credentials for.

    Raises:
        ConfigurationError: It is not there, or for something else.
    """
    name = reference(connection) or "the MantikConnection"
    try:
        found = await connection.credentials.get_client().connection(connection.id)
    except NotFound as error:
        raise ConfigurationError(
            f"The Connection ID in {name} is none of {connection.credentials.username!r}'s ({error.detail}): copy it "
            "from Settings > Connections in Mantik."
        ) from None
    told = found.connection_provider
    if told.lower() != provider.lower():
        raise ConfigurationError(f"The Connection in {name} is for {told or 'no provider'}, not for {provider}.")
    return found
