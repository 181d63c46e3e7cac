"""Imports every block class: Prefect's collection entry point, so that `Block.load("<slug>/<name>")` knows them all."""

from prefect_mantik.credentials import (
    FirecrestCredentials,
    MantikConnection,
    MantikCredentials,
    MantikProject,
    UnicoreCredentials,
)
from prefect_mantik.jobs import TrainingJob
from prefect_mantik.sites.firecrest.block import FirecrestSite
from prefect_mantik.sites.mantik.block import MantikSite
from prefect_mantik.sites.unicore.block import UnicoreSite

__all__ = [
    "FirecrestCredentials",
    "FirecrestSite",
    "MantikConnection",
    "MantikCredentials",
    "MantikProject",
    "MantikSite",
    "TrainingJob",
    "UnicoreCredentials",
    "UnicoreSite",
]
