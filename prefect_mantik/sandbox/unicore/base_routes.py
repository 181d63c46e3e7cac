"""The base resource, tokens, and what a site says of itself."""

from __future__ import annotations

import time
from typing import Any

from starlette.responses import PlainTextResponse, Response

from prefect_mantik.sandbox.unicore.replies import UnicoreError, iso_time, link, listing, properties_reply
from prefect_mantik.sandbox.unicore.resources import partitions
from prefect_mantik.sandbox.unicore.service import FACTORY, Call

_ROOTS = (
    "factories",
    "sites",
    "jobs",
    "reservations",
    "storages",
    "storagefactories",
    "transfers",
    "client-server-transfers",
    "tasks",
)
VERSION = "11.0.0"


async def base(call: Call) -> Response:
    """Describe the caller and the server."""
    at = call.at
    server = {
        "siteName": at.name,
        "version": VERSION,
        "upSince": iso_time(at.since),
        "currentTime": iso_time(time.time()),
        "jobSubmission": {
            "enabled": not at.site.maintenance,
            "message": at.closed() if at.site.maintenance else "",
        },
        "externalConnections": {f"TSI {at.site.name}-login": "OK"},
        "credential": {
            "dn": at.logins.server_dn,
            "issuer": at.logins.server_dn,
            "expires": iso_time(at.identities.expires),
        },
        "trustedCAs": [at.logins.server_dn],
        "trustedSAMLIssuers": [],
    }
    links = {name: link(f"{call.base}/{name}") for name in _ROOTS}
    return properties_reply(call.request, {"client": call.caller.describe(), "server": server, "_links": links})


async def token(call: Call) -> Response:
    """Issue a token."""
    query = call.request.query_params
    _check_plain(call)
    given = query.get("lifetime")
    try:
        lifetime = None if given is None else int(given)
    except ValueError:
        cause = f'java.lang.NumberFormatException: For input string: "{given}"'
        raise UnicoreError(500, f"Error creating token: {cause}") from None
    issued = call.at.logins.issue_token(
        call.caller,
        lifetime=lifetime,
        renewable=query.get("renewable") == "true",
        limited=query.get("limited") == "true",
    )
    return PlainTextResponse(issued)


async def certificate(call: Call) -> Response:
    """Give the server's certificate."""
    _check_plain(call)
    return PlainTextResponse(call.at.certificate)


async def factories(call: Call) -> Response:
    """List the one target system factory."""
    return listing(call.request, f"{call.base}/factories", "factories", [f"{call.base}/factories/{FACTORY}"])


async def factory(call: Call) -> Response:
    """Describe what the site offers."""
    if call.request.path_params["factoryId"] != FACTORY:
        raise UnicoreError(404)
    offered = {
        name: {resource: f"{low}-{high}" for resource, (low, high) in ranges.items()}
        for name, ranges in partitions(call.at.site.slots).items()
    }
    own = f"{call.base}/factories/{FACTORY}"
    links = {"self": link(own), "sites": link(f"{call.base}/sites"), "applications": link(f"{own}/applications")}
    return properties_reply(call.request, _compute(call, own) | {"resources": offered, "_links": links})


async def sites(call: Call) -> Response:
    """List the caller's target systems: none before the first job, as for anybody new."""
    known = call.caller.login and call.at.books.listed(call.caller.login)
    urls = [f"{call.base}/sites/{call.at.target_system(call.caller)}"] if known else []
    return listing(call.request, f"{call.base}/sites", "sites", urls)


async def site(call: Call) -> Response:
    """Describe a target system."""
    own = _target_system(call)
    links = {"self": link(own), "jobs": link(f"{own}/jobs"), "applications": link(f"{own}/applications")}
    jobs = call.at.books.listed(call.caller.login)
    content = _compute(call, own) | {"numberOfJobs": str(len(jobs)), "_links": links, "umask": "077"}
    return properties_reply(call.request, content)


async def site_jobs(call: Call) -> Response:
    """List the jobs of a target system."""
    own = _target_system(call)
    urls = [f"{call.base}/jobs/{entry.id}" for entry in call.at.books.listed(call.caller.login)]
    return listing(call.request, f"{own}/jobs", "jobs", urls)


async def nothing(call: Call) -> Response:
    """List what the sandbox has none of."""
    name = call.request.url.path.rstrip("/").rpartition("/")[2]
    return listing(call.request, f"{call.base}/{name}", name, [])


def _check_plain(call: Call) -> None:
    accept = call.request.headers.get("accept", "*/*")
    if "text/plain" not in accept and "*/*" not in accept:
        raise UnicoreError(406)


def _target_system(call: Call) -> str:
    if call.request.path_params["siteId"] != call.at.target_system(call.caller):
        raise UnicoreError(404)
    return f"{call.base}/sites/{call.at.target_system(call.caller)}"


def _compute(call: Call, own: str) -> dict[str, Any]:
    return {
        "owner": call.at.logins.server_dn,
        "siteName": call.at.name,
        "supportsReservation": "false",
        "remainingComputeTime": {},
        "otherInfo": {},
        "applications": ["Date---v1.0", "Bash shell---v1.0"],
        "acl": [],
        "tags": [],
    }
