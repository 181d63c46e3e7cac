"""FirecREST's REST API (version 2), spoken as one account at one system."""

from prefect_mantik.firecrest.client import FirecrestClient, firecrest_client
from prefect_mantik.firecrest.login import ClientCredentials, ClientSource, KeptClient
from prefect_mantik.firecrest.schemas import FileEntry, Job, System

__all__ = [
    "ClientCredentials",
    "ClientSource",
    "FileEntry",
    "FirecrestClient",
    "Job",
    "KeptClient",
    "System",
    "firecrest_client",
]
