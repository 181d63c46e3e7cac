"""pyfirecrest's own client, for what a person wants to do by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_mantik.environment import check_url
from prefect_mantik.errors import ConfigurationError
from prefect_mantik.firecrest.login import MARGIN, ClientCredentials
from prefect_mantik.loop import VERIFIED, Tls, tls_context

if TYPE_CHECKING:
    from firecrest.v2 import Firecrest

TIMEOUT = 60.0
"""Seconds for one request; pyfirecrest by itself waits for ever."""


def pyfirecrest_client(credential: ClientCredentials, api_url: str, token_url: str, tls: Tls = VERIFIED) -> Firecrest:
    """Make pyfirecrest's synchronous client for a site.

    By itself its tokens are kept until 10 s before their end, and for 20 s before that the server refuses them.

    Args:
        credential: What proves who we are.
        api_url: FirecREST's API at the site.
        token_url: Where the site's identity provider gives tokens.
        tls: How the site's certificate is verified.

    Raises:
        ConfigurationError: A URL is none.
    """
    from firecrest import ClientCredentialsAuth
    from firecrest.v2 import Firecrest

    api_url = _url("FirecREST's API", api_url, "https://<host>/<platform>/firecrest/v2")
    token_url = _url(
        "the token endpoint", token_url, "https://<host>/auth/realms/<realm>/protocol/openid-connect/token"
    )
    secret = credential.client_secret.get_secret_value()
    login = ClientCredentialsAuth(credential.client_id, secret, token_url, min_token_validity=int(MARGIN))
    login.timeout = TIMEOUT
    client = Firecrest(api_url, authorization=login, verify=tls_context(tls))
    client.timeout = TIMEOUT
    return client


def _url(what: str, value: str, form: str) -> str:
    try:
        return check_url(value, form=form)
    except ValueError as error:
        raise ConfigurationError(f"The URL of {what}: {error}") from None
