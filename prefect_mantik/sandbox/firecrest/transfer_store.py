"""A small object store for large files, with signed URLs as S3 has them."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from pathlib import Path
from urllib.parse import quote, urlencode, urljoin
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from prefect_mantik.sandbox.scheduler import Site

PREFIX = "/firecrest-store"
MAX_PART_SIZE = 16777216
# All parts but the last are at least this large.
MIN_PART_SIZE = 5242880
LIFETIME = 604800

_SECRET = secrets.token_bytes(32)
_SIGNATURE = "X-Amz-Signature"
_XML = "application/xml"


class Refused(Exception):
    """A refusal in S3's words."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class ObjectStore:
    """The store of a site."""

    def __init__(self, site: Site) -> None:
        self._url = urljoin(site.url, PREFIX)
        self._directory = site.directory / "store"

    def begin(self, bucket: str, name: str) -> tuple[str, str]:
        """Begin an upload, and give the object's key and the upload's id.

        Args:
            bucket: The bucket.
            name: The file's name.
        """
        key, upload = f"{bucket}/{uuid4()}/{quote(name)}", secrets.token_urlsafe(36).replace("-", "w")
        self._parts(upload).mkdir(parents=True)
        return key, upload

    def part_urls(self, key: str, upload: str, size: int) -> list[str]:
        """Give the URLs to which the parts are sent.

        Args:
            key: The object's key.
            upload: The upload's id.
            size: The file's size.
        """
        count = -(-size // MAX_PART_SIZE)
        return [self._signed("PUT", key, uploadId=upload, partNumber=str(number + 1)) for number in range(count)]

    def complete_url(self, key: str, upload: str) -> str:
        """Give the URL that ends an upload."""
        return self._signed("POST", key, uploadId=upload)

    def url(self, key: str) -> str:
        """Give the URL of an object."""
        return self._signed("GET", key)

    async def answer(self, request: Request) -> Response:
        """Answer a request of somebody who was given a URL."""
        try:
            return await self._answer(request)
        except Refused as refused:
            text = f"<Error><Code>{refused.code}</Code><Message>{refused}</Message></Error>"
            return Response(f'<?xml version="1.0" encoding="UTF-8"?>\n{text}', refused.status, media_type=_XML)

    async def _answer(self, request: Request) -> Response:
        key = quote(request.path_params["key"])
        query = dict(request.query_params)
        method = "GET" if request.method == "HEAD" else request.method
        given = query.pop(_SIGNATURE, "")
        if not hmac.compare_digest(given.encode(), self._signature(method, key, query).encode()):
            raise Refused(403, "AccessDenied", "Access Denied.")
        if time.time() > int(query["X-Amz-Date"]) + LIFETIME:
            raise Refused(403, "AccessDenied", "Request has expired")
        if method == "GET":
            return self._give(key)
        parts = self._parts(query["uploadId"])
        if not parts.is_dir():
            raise Refused(404, "NoSuchUpload", "The specified multipart upload does not exist.")
        if method == "PUT":
            return await self._take(request, parts / query["partNumber"])
        return self._complete(key, parts, (await request.body()).decode(errors="replace"))

    def _give(self, key: str) -> Response:
        path = self._object(key)
        if not path.is_file():
            raise Refused(404, "NoSuchKey", "The specified key does not exist.")
        return FileResponse(path, media_type="binary/octet-stream")

    async def _take(self, request: Request, path: Path) -> Response:
        digest = hashlib.md5(usedforsecurity=False)
        with path.open("wb") as file:
            async for chunk in request.stream():
                digest.update(chunk)
                file.write(chunk)
        path.with_suffix(".etag").write_text(digest.hexdigest())
        return Response(headers={"ETag": f'"{digest.hexdigest()}"'})

    def _complete(self, key: str, parts: Path, document: str) -> Response:
        wanted = []
        for part in re.findall(r"<Part>(.*?)</Part>", document, re.DOTALL):
            number = re.search(r"<PartNumber>\s*(\d+)\s*</PartNumber>", part)
            tag = re.search(r"<ETag>(.*?)</ETag>", part, re.DOTALL)
            if number is None or tag is None:
                raise Refused(400, "MalformedXML", "The XML you provided was not well-formed")
            wanted.append((parts / number[1], tag[1].replace("&quot;", "").strip().strip('"')))
        if not wanted:
            raise Refused(400, "MalformedXML", "The XML you provided was not well-formed")
        for path, tag_text in wanted:
            if not path.is_file() or path.with_suffix(".etag").read_text() != tag_text:
                raise Refused(400, "InvalidPart", "One or more of the specified parts could not be found.")
        if any(path.stat().st_size < MIN_PART_SIZE for path, _ in wanted[:-1]):
            raise Refused(400, "EntityTooSmall", "Your proposed upload is smaller than the minimum allowed size")
        target = self._object(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            for path, _ in wanted:
                file.write(path.read_bytes())
        for path in parts.iterdir():
            path.unlink()
        parts.rmdir()
        tag_text = hashlib.md5("".join(tag for _, tag in wanted).encode(), usedforsecurity=False).hexdigest()
        result = f'<Key>{key}</Key><ETag>"{tag_text}-{len(wanted)}"</ETag>'
        return Response(f"<CompleteMultipartUploadResult>{result}</CompleteMultipartUploadResult>", media_type=_XML)

    def _signed(self, method: str, key: str, **query: str) -> str:
        query |= {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": "storage_access_key/us-east-1/s3/aws4_request",
            "X-Amz-Date": str(int(time.time())),
            "X-Amz-Expires": str(LIFETIME),
            "X-Amz-SignedHeaders": "host",
        }
        return f"{self._url}/{key}?{urlencode(query | {_SIGNATURE: self._signature(method, key, query)})}"

    def _signature(self, method: str, key: str, query: dict[str, str]) -> str:
        text = "\n".join([method, key, *(f"{name}={value}" for name, value in sorted(query.items()))])
        return hmac.new(_SECRET, text.encode(), hashlib.sha256).hexdigest()

    def _object(self, key: str) -> Path:
        # A key is somebody's text: as a hash it is a file's name whatever is in it.
        return self._directory / "objects" / hashlib.sha256(key.encode()).hexdigest()

    def _parts(self, upload: str) -> Path:
        return self._directory / "uploads" / upload


def store_routes(site: Site) -> list[Route]:
    """Give the endpoints of a site's store; who has a signed URL needs nothing else.

    Args:
        site: The site.
    """
    return [Route(f"{PREFIX}/{{key:path}}", ObjectStore(site).answer, methods=["GET", "PUT", "POST"])]
