"""From a handle back to its site and its tracking server, in this process or any other."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from prefect_mantik.credentials import MantikProject
from prefect_mantik.documents import aload_block
from prefect_mantik.errors import NotSupported
from prefect_mantik.log import run_logger
from prefect_mantik.loop import per_process
from prefect_mantik.runs import RunHandle
from prefect_mantik.sites.base import Site
from prefect_mantik.sites.firecrest.block import FirecrestSite
from prefect_mantik.sites.mantik.block import MantikSite
from prefect_mantik.sites.unicore.block import UnicoreSite

if TYPE_CHECKING:
    from prefect_mantik.tracking import TrackingClient

AnySite: TypeAlias = MantikSite | UnicoreSite | FirecrestSite
"""Any site block: the union of the concrete ones, never a base class (Prefect would load the base class)."""

SITE_BLOCKS: dict[str, type[AnySite]] = {
    block.get_block_type_slug(): block for block in (MantikSite, UnicoreSite, FirecrestSite)
}


@per_process
def _made_in_code() -> dict[RunHandle, tuple[Site, TrackingClient]]:
    return {}


def remember(handle: RunHandle, site: Site, project: MantikProject) -> None:
    """Keep, in this process, how to reach a run whose site or account is not saved as a block; say so once a run."""
    if handle.site and handle.account:
        return
    if handle not in _made_in_code():
        run_logger().warning(
            "%s can be reached from this process only: its %s is not a saved block. After a crash nobody finds it. "
            'To change that, save the block (block.save("<name>")) and submit with the saved one.',
            handle.describe(),
            "account" if handle.site else "site",
        )
    _made_in_code()[handle] = site, project.credentials.tracking_client()


async def open_site(reference: str) -> Site:
    """Open a saved site by its reference, `<block type slug>/<document name>`.

    Raises:
        BlockInvalid: There is no such block, or it is damaged.
        NotSupported: The reference is of a kind that this version does not know.
    """
    slug, _, name = reference.partition("/")
    if slug not in SITE_BLOCKS:
        raise NotSupported(f"{reference}: this version of prefect-mantik knows the sites {', '.join(SITE_BLOCKS)}.")
    return (await aload_block(SITE_BLOCKS[slug], name)).open()


async def site_of(handle: RunHandle) -> Site:
    """The site of a run, opened with the credentials that are saved now."""
    if handle in _made_in_code():
        return _made_in_code()[handle][0]
    if handle.site is None:
        raise _unreachable(handle, "site")
    return await open_site(handle.site)


async def tracking_of(handle: RunHandle) -> TrackingClient:
    """The tracking server of a run, as the account that submitted it."""
    if handle in _made_in_code():
        return _made_in_code()[handle][1]
    from prefect_mantik.sites import mlflow_runs

    found = await mlflow_runs.tracking_of(handle, None)
    if found is None:
        raise _unreachable(handle, "account")
    return found


def _unreachable(handle: RunHandle, what: str) -> NotSupported:
    return NotSupported(
        f"{handle.describe()} was submitted by another process with a {what} that is not a saved block: it cannot be "
        f"reached from here. Save the {what}'s block, and submit with that."
    )
