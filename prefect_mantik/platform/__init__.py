"""The Mantik platform's REST API."""

from prefect_mantik.platform.client import PlatformClient, platform_client
from prefect_mantik.platform.tokens import LastingToken, PlatformTokens
from prefect_mantik.results import LoginInfo

__all__ = ["LastingToken", "LoginInfo", "PlatformClient", "PlatformTokens", "platform_client"]
