"""`prefect-mantik doctor`: logs in wherever a saved block leads to, and says what works and what to do if not."""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from pydantic import BaseModel, ConfigDict

from prefect_mantik.api import impatient
from prefect_mantik.credentials import MantikCredentials
from prefect_mantik.documents import aload_block
from prefect_mantik.environment import read_variables
from prefect_mantik.errors import MantikError
from prefect_mantik.foreign_credentials import foreign_tracking_credentials
from prefect_mantik.sites.base import Finding
from prefect_mantik.sites.opening import SITE_BLOCKS, open_site

T = TypeVar("T")

_TOGETHER = 8
_PAGE = 100
_PATIENCE = 15.0
"""Seconds for one call, with its repeats."""

_TIMEOUT = 120.0
"""Seconds for all that is tried at one site."""


class Examined(BaseModel):
    """One thing that was looked at.

    Attributes:
        subject: A block's reference, or "this machine".
        findings: What was tried there.
        can: What else the road to a site can do.
    """

    model_config = ConfigDict(frozen=True)

    subject: str
    findings: list[Finding]
    can: list[str] = []

    @property
    def ok(self) -> bool:
        """Whether everything works."""
        return all(finding.ok for finding in self.findings)


async def examine(report: Callable[[Examined], None] = lambda _: None) -> list[Examined]:
    """Look at the environment, at every saved account and at every saved site.

    Args:
        report: Told of each, in order, as soon as it is known.
    """
    accounts = await _saved(MantikCredentials.get_block_type_slug())
    sites = [reference for slug in SITE_BLOCKS for reference in await _saved(slug)]
    turn = asyncio.Semaphore(_TOGETHER)

    async def in_turn(reference: str) -> Examined:
        async with turn:
            return await (_examine_account(reference) if reference in accounts else _examine_site(reference))

    found = [_examine_environment()]
    report(found[0])
    with impatient(_PATIENCE):
        under_way = [asyncio.ensure_future(in_turn(reference)) for reference in (*accounts, *sites)]
    for task in under_way:
        found.append(await task)
        report(found[-1])
    return found


async def _saved(slug: str) -> list[str]:
    found: list[str] = []
    async with get_client() as client:
        while True:
            try:
                page = await client.read_block_documents_by_type(
                    slug, offset=len(found), limit=_PAGE, include_secrets=False
                )
            except PrefectHTTPStatusError as error:
                if error.response.status_code != httpx.codes.NOT_FOUND:
                    raise
                return []  # no block of this type was ever saved
            fresh = [name for document in page if (name := f"{slug}/{document.name}") not in found]
            found += fresh
            if len(page) < _PAGE or not fresh:  # Prefect's own server gives all at once, whatever the page
                return sorted(found)


def _examine_environment() -> Examined:
    foreign = foreign_tracking_credentials(read_variables())
    message = f"{', '.join(foreign)} would win over the token in your own MLflow code, not in ours" if foreign else ""
    return Examined(
        subject="this machine", findings=[Finding(what="look for other MLflow credentials", ok=True, message=message)]
    )


async def _examine_account(reference: str) -> Examined:
    findings = []
    try:
        account = await aload_block(MantikCredentials, reference)
        login = await _timed(account.get_client().tokens.login())
        findings.append(Finding(what="log in to the platform", ok=True, message=f"as {login.username}"))
        experiments = await _timed(account.tracking_client().experiment_ids())
        findings.append(Finding(what="reach the tracking server", ok=True, message=f"{len(experiments)} experiments"))
    except (MantikError, TimeoutError, asyncio.TimeoutError) as error:
        what = "reach the tracking server" if findings else "log in to the platform"
        findings.append(Finding(what=what, ok=False, message=_said(error)))
    return Examined(subject=reference, findings=findings)


async def _examine_site(reference: str) -> Examined:
    try:
        site = await open_site(reference)
        findings = await _timed(site.check())
    except (MantikError, TimeoutError, asyncio.TimeoutError) as error:
        return Examined(subject=reference, findings=[Finding(what="open the site", ok=False, message=_said(error))])
    works = all(finding.ok for finding in findings)
    can = sorted(item.value for item in site.capabilities) if works else []
    return Examined(subject=reference, findings=findings, can=can)


async def _timed(step: Awaitable[T]) -> T:
    return await asyncio.wait_for(step, _TIMEOUT)


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, MantikError) else f"no answer within {_TIMEOUT:.0f} s"


def lines(examined: Iterable[Examined], width: int = 80) -> list[str]:
    """The report for a terminal.

    Args:
        examined: What was found.
        width: Columns of the terminal.
    """
    shown = []
    for item in examined:
        shown.append(item.subject)
        for finding in item.findings:
            detail = f": {finding.message}" if finding.message else ""
            shown += _wrapped(f"  {'ok  ' if finding.ok else 'FAIL'}  {finding.what}{detail}", width)
        if item.can:
            shown += _wrapped(f"        can: {', '.join(item.can)}", width)
    return shown


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=" " * 10, break_long_words=False, break_on_hyphens=False)
