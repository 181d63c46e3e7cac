"""The Mantik platform's REST API."""

from prefect_mantik.platform.client import PlatformClient, platform_client
from prefect_mantik.platform.tokens import LoginInfo, PlatformTokens

__all__ = ["LoginInfo", "PlatformClient", "PlatformTokens", "platform_client"]
