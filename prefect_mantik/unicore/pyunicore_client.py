"""pyunicore's client, for what a person wants to do by hand: with a verified certificate and our credentials."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_mantik.environment import check_url
from prefect_mantik.errors import ConfigurationError
from prefect_mantik.loop import VERIFIED, Tls, call, tls_context

if TYPE_CHECKING:
    from pyunicore.client import Client

    from prefect_mantik.unicore.login import Credential


def pyunicore_client(credential: Credential, api_url: str, tls: Tls = VERIFIED) -> Client:
    """Make pyunicore's synchronous client for a site.

    Args:
        credential: What proves who we are.
        api_url: The site's REST API.
        tls: How the site's certificate is verified.

    Raises:
        ConfigurationError: The URL is none.
        pyunicore.credentials.AuthenticationFailedException: The site does not know us.
    """
    from pyunicore.client import Client, Transport
    from pyunicore.credentials import BasicToken, BearerToken

    try:
        url = check_url(api_url, form="https://<gateway>/<SITE>/rest/core")
    except ValueError as error:
        raise ConfigurationError(f"The URL of the UNICORE site: {error}") from None
    kind, _, value = call(credential.authorization).partition(" ")
    made = BasicToken(value) if kind == "Basic" else BearerToken(value)
    return Client(Transport(made, verify=tls_context(tls)), url)
