"""What reading a log costs its site: one request when nothing is new, two when something is."""

from __future__ import annotations

import pytest

from prefect_mantik.loop import acall
from prefect_mantik.runs import RunHandle
from prefect_mantik.sites.base import Capability, Site
from tests.contract.conftest import PlatformRoad, Road
from tests.contract.counting import requests_sent
from tests.sandbox_jobs import new_key


async def requests_of(site: Site, handle: RunHandle, *arguments: int) -> int:
    with requests_sent() as sent:
        await acall(site.read_log, handle, *arguments)
    return len(sent)


async def test_one_request_when_nothing_is_new_and_two_when_something_is(road: Road) -> None:
    if Capability.LOGS not in road.claims:
        pytest.skip("the road shows no logs")
    handle = await road.submit(new_key(), road.spec("chatter", lines=2000))
    await road.until_ended(handle)
    site = road.open()
    await acall(site.poll, [handle])
    text, end = await acall(site.read_log, handle)
    through_the_platform = isinstance(road, PlatformRoad) and not road.ask_site  # it has no path for a part of a log
    assert await requests_of(site, handle, end) == 1
    assert await requests_of(site, handle, end + 1000) == 1
    assert await requests_of(site, handle, 0) == (1 if through_the_platform else 2)
    assert await requests_of(site, handle, end - 100) == (1 if through_the_platform else 2)
    assert await requests_of(site, handle, -100_000, 50_000) == (1 if through_the_platform else 2)
    assert len(text) == end > 100_000


async def test_a_log_that_ends_before_the_offset_tells_its_end(road: Road) -> None:
    if Capability.LOGS not in road.claims:
        pytest.skip("the road shows no logs")
    handle = await road.submit(new_key(), road.spec("fail"))
    await road.until_ended(handle)
    site = road.open()
    text, end = await acall(site.read_log, handle)
    assert await acall(site.read_log, handle, end + 5) == (b"", end)
    part, following = await acall(site.read_log, handle, 0, 10)
    assert len(part) == following >= 10
    assert text.startswith(part)
