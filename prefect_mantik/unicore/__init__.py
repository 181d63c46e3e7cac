"""UNICORE's REST API, spoken as one account at one site."""

from prefect_mantik.unicore.client import UnicoreClient, unicore_client
from prefect_mantik.unicore.login import Credential, Kept, Password, Token, TokenFile
from prefect_mantik.unicore.schemas import FileProperties, JobProperties, SiteProperties

__all__ = [
    "Credential",
    "FileProperties",
    "JobProperties",
    "Kept",
    "Password",
    "SiteProperties",
    "Token",
    "TokenFile",
    "UnicoreClient",
    "unicore_client",
]
