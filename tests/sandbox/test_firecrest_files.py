"""Files at the FirecREST site: the operations that the server runs as commands while the caller waits."""

from __future__ import annotations

import hashlib
import io
import tarfile
import time
from pathlib import Path
from typing import Any

import firecrest
import httpx
import pytest
from firecrest.v2 import AsyncFirecrest

from .box import Box

SITE, SYSTEM = "cedar", "cedar"
OPS = f"/filesystem/{SYSTEM}/ops"
TOO_LATE = "Command execution timeout limit exceeded."
FAILED = "Remote process failed with exit status:"
LIMIT = 5242880


class Token:
    """The login of pyfirecrest with a token that is there already."""

    def __init__(self, token: str) -> None:
        self.token = token

    def get_access_token(self) -> str:
        return self.token


class Fire:
    """FirecREST's API as a user of the site sees it: over plain HTTP and with pyfirecrest."""

    def __init__(self, box: Box, login: str = "sandbox-at-cedar") -> None:
        self.box = box
        self.control = box.control
        self.login = login
        self.url = box.env["MANTIK_SANDBOX_CEDAR_URL"]
        self.token = box.control.firecrest_token(login, 3600)
        self.client = AsyncFirecrest(self.url, Token(self.token))
        headers = {"Authorization": f"Bearer {self.token}"}
        self.http = httpx.Client(base_url=self.url, timeout=30, trust_env=False, headers=headers)
        self.home, self.scratch = (f"{each['path']}/{login}" for each in self._file_systems())

    def _file_systems(self) -> list[dict[str, Any]]:
        return self.http.get("/status/systems").json()["systems"][0]["fileSystems"]

    def get(self, operation: str, path: str, **query: Any) -> httpx.Response:
        return self.http.get(f"{OPS}/{operation}", params={"path": path, **query})

    def post(self, operation: str, **fields: Any) -> httpx.Response:
        return self.http.post(f"{OPS}/{operation}", json=fields)

    def put(self, operation: str, **fields: Any) -> httpx.Response:
        return self.http.put(f"{OPS}/{operation}", json=fields)

    def rm(self, path: str) -> httpx.Response:
        return self.http.delete(f"{OPS}/rm", params={"path": path})

    def upload(self, directory: str, name: str, content: bytes) -> httpx.Response:
        return self.http.post(f"{OPS}/upload", params={"path": directory}, files={"file": (name, content)})

    def stored(self, directory: str, name: str, content: bytes) -> str:
        answer = self.upload(directory, name, content)
        assert (answer.status_code, answer.content) == (204, b""), answer.text
        return f"{directory}/{name}"

    def output(self, operation: str, path: str, **query: Any) -> Any:
        answer = self.get(operation, path, **query)
        assert answer.status_code == 200, answer.text
        return answer.json()["output"]


def refused(answer: httpx.Response, status: int, message: str) -> None:
    """Check an answer that is a refusal."""
    content = answer.json()
    assert (answer.status_code, content["message"]) == (status, message)
    assert content.keys() == {"errorType", "message", "causedBy", "data", "user"}
    assert (content["errorType"], content["causedBy"], content["data"]) == ("error", None, None)
    assert content["user"] == answer.headers["f7t-authusername"] == "sandbox-at-cedar"


@pytest.fixture
def fire(box):
    box.control.switch(firecrest_command_timeout=0.2)
    fire = Fire(box)
    yield fire
    fire.http.close()
    box.control.change_site(SITE, quota_full=False)
    box.control.switch(firecrest_command_timeout=5)


@pytest.fixture
def work(fire, request):
    """A new directory of the user's."""
    path = f"{fire.home}/{abs(hash(request.node.name))}-{time.time_ns()}"
    assert fire.post("mkdir", sourcePath=path).status_code == 201
    yield path
    fire.rm(path)


@pytest.fixture
def other(fire):
    """The home directory of somebody else, with a file."""
    with_own = Fire(fire.box, "sandbox-2-at-cedar")
    with_own.stored(with_own.home, ".bashrc", b"x")
    with_own.http.close()
    return with_own.home


def test_mkdir(fire, work, other):
    made = fire.post("mkdir", sourcePath=f"{work}/a").json()["output"]
    assert made.keys() == {"name", "type", "linkTarget", "user", "group", "permissions", "lastModified", "size"}
    assert (made["name"], made["type"], made["permissions"], made["user"]) == (
        f"{work}/a",
        "d",
        "rwxr-xr-x",
        fire.login,
    )
    start = f"{FAILED}1 and error message:mkdir: cannot create directory"
    refused(fire.post("mkdir", sourcePath=f"{work}/a"), 400, f"{start} '{work}/a': File exists")
    refused(fire.post("mkdir", source_path=f"{work}/b/c"), 404, f"{start} '{work}/b/c': No such file or directory")
    for _ in range(2):
        assert fire.post("mkdir", path=f"{work}/b/c", parent=True).status_code == 201
    refused(fire.post("mkdir", sourcePath=f"{other}/x"), 403, f"{start} '{other}/x': Permission denied")
    fire.stored(work, "file", b"x")
    refused(fire.post("mkdir", sourcePath=f"{work}/file/x"), 500, f"{start} '{work}/file/x': Not a directory")
    refused(fire.post("mkdir", sourcePath=f"{work}/file", parent=True), 400, f"{start} '{work}/file': File exists")


async def test_listing(fire, work):
    for name, content in (("b.txt", b"12"), ("sp ace ü 'q'.bin", b"1"), (".hidden", b"x")):
        fire.stored(work, name, content)
    await fire.client.mkdir(SYSTEM, f"{work}/a/c", create_parents=True)
    listed = await fire.client.list_files(SYSTEM, work)
    # The quotes went to the shell, and what is not ASCII is written as `ls` writes it.
    assert [file["name"] for file in listed] == ["a", "b.txt", r"sp ace \303\274 q.bin"]
    assert [file["type"] for file in listed] == ["d", "-", "-"]
    assert (listed[1]["size"], listed[1]["permissions"], listed[1]["linkTarget"]) == ("2", "rw-r--r--", None)
    time.strptime(listed[1]["lastModified"], "%Y-%m-%dT%H:%M:%S")
    everything = await fire.client.list_files(SYSTEM, work, show_hidden=True, recursive=True, numeric_uid=True)
    assert [file["name"] for file in everything] == [".hidden", "a", "b.txt", r"sp ace \303\274 q.bin", "a/c"]
    assert {file["user"] for file in everything} == {"2001"}
    one = await fire.client.list_files(SYSTEM, f"{work}/b.txt")
    assert [file["name"] for file in one] == [f"{work}/b.txt"]


def test_paths_that_are_refused(fire, work, other):
    no_match = "does not match any of the defined filesystem paths for the requested system (cedar)."
    refused(fire.get("ls", "/etc"), 400, f"The provided path (/etc) {no_match}")
    refused(fire.get("ls", "home"), 400, "The provided path (home) is not an absolute path.")
    up = "/.." * work.count("/")
    refused(fire.get("ls", f"{work}{up}/etc"), 400, f"The provided path (/etc) {no_match}")
    cannot = f"{FAILED}2 and error message:ls: cannot"
    refused(fire.get("ls", f"{work}/zzz"), 404, f"{cannot} access '{work}/zzz': No such file or directory")
    refused(fire.get("ls", other), 403, f"{cannot} open directory '{other}': Permission denied")
    refused(
        fire.get("stat", f"{other}/.bashrc"),
        403,
        f"{FAILED}1 and error message:stat: cannot statx '{other}/.bashrc': Permission denied",
    )
    homes = fire.output("ls", str(Path(other).parent))
    assert {"sandbox-at-cedar", "sandbox-2-at-cedar"} <= {home["name"] for home in homes}
    fire.post("symlink", sourcePath=other, linkPath=f"{work}/way")
    assert fire.get("view", f"{work}/way/.bashrc").status_code == 403


async def test_stat(fire, work):
    path = fire.stored(work, "file", b"12345")
    status = await fire.client.stat(SYSTEM, path)
    assert status.keys() == {"mode", "ino", "dev", "nlink", "uid", "gid", "size", "atime", "ctime", "mtime"}
    assert {type(value) for value in status.values()} == {int}
    assert (status["mode"], status["size"], status["uid"], status["nlink"]) == (0o100644, 5, 2001, 1)
    missing = f"{FAILED}1 and error message:stat: cannot statx '{work}/zzz': No such file or directory"
    refused(fire.get("stat", f"{work}/zzz"), 404, missing)


async def test_head_and_tail(fire, work):
    path = fire.stored(work, "t.txt", "".join(f"line {n} é\n" for n in range(100)).encode())

    def part(operation: str, **query: Any) -> tuple[str, str, int, int]:
        found = fire.output(operation, path, **query)
        return found["content"], found["contentType"], found["startPosition"], found["endPosition"]

    first = "".join(f"line {n} é\n" for n in range(10))
    assert part("head") == (first, "lines", 0, 10)
    assert part("head", bytes=7) == ("line 0 ", "bytes", 0, 7)
    assert part("head", bytes=8)[0] == "line 0 �"
    assert part("head", lines=98, skipTrailing=True) == ("line 0 é\nline 1 é\n", "lines", 0, -98)
    last = "line 98 é\nline 99 é\n"
    assert part("tail", lines=2) == (last, "lines", -2, -1)
    assert part("tail", lines=99, skipHeading=True) == (last, "lines", 99, -1)
    assert part("tail", bytes=4) == (" é\n", "bytes", -4, -1)
    assert part("tail")[1:] == ("lines", 10, -1)
    assert (await fire.client.head(SYSTEM, path, num_lines=1))["content"] == "line 0 é\n"
    refused(fire.get("head", path, bytes=1, lines=1), 400, "Only one of `bytes` or `lines` can be specified.")
    missing = f"{FAILED}1 and error message:head: cannot open '{work}/zzz' for reading: No such file or directory"
    refused(fire.get("head", f"{work}/zzz"), 404, missing)
    refused(fire.get("tail", work), 500, f"{FAILED}1 and error message:tail: error reading '{work}': Is a directory")


async def test_view(fire, work):
    text = fire.stored(work, "t.txt", b"0123456789" * 3)
    assert await fire.client.view(SYSTEM, text) == "0123456789" * 3
    assert fire.output("view", text, size=4, offset=12) == "2345"
    assert fire.output("view", fire.stored(work, "binary", b"a\xff\xfeb\x00")) == "a��b\x00"
    missing = f"{FAILED}1 and error message:dd: failed to open '{work}/zzz': No such file or directory"
    refused(fire.get("view", f"{work}/zzz"), 404, missing)
    for query in ({"size": 0}, {"size": LIMIT + 1}, {"offset": -1}):
        assert fire.get("view", text, **query).status_code == 400


def test_large_files_come_too_late(fire, work):
    Path(work, "big").write_bytes(b"x" * (LIMIT + 1))
    for operation in ("view", "download"):
        begun = time.monotonic()
        refused(fire.get(operation, f"{work}/big"), 408, TOO_LATE)
        assert time.monotonic() - begun > 0.2
    assert fire.output("view", f"{work}/big", size=10, offset=LIMIT) == "x"
    digest = hashlib.sha256(b"x" * (LIMIT + 1)).hexdigest()
    assert fire.output("checksum", f"{work}/big") == {"algorithm": "SHA256", "checksum": digest}
    Path(work, "fits").write_bytes(b"x" * LIMIT)
    assert len(fire.output("view", f"{work}/fits")) == len(fire.get("download", f"{work}/fits").content) == LIMIT


async def test_kinds(fire, work):
    kinds = {"data": b"\x01\xff", "empty": None, "ASCII text": b"abc\n", "Unicode text, UTF-8 text": "é".encode()}
    for number, (kind, content) in enumerate(kinds.items()):
        if content is None:
            fire.upload(work, str(number), b"")
        else:
            fire.stored(work, str(number), content)
        assert await fire.client.file_type(SYSTEM, f"{work}/{number}") == kind
    assert await fire.client.file_type(SYSTEM, work) == "directory"
    assert "No such file or directory" in await fire.client.file_type(SYSTEM, f"{work}/zzz")


async def test_upload_and_download(fire, work, tmp_path):
    source, target = tmp_path / "small.bin", tmp_path / "back.bin"
    source.write_bytes(bytes(range(256)) * 200)
    for _ in range(2):  # without a word about the one that was there
        await fire.client.upload(SYSTEM, source, work, "small.bin")
    await fire.client.download(SYSTEM, f"{work}/small.bin", target)
    assert target.read_bytes() == source.read_bytes()
    for name in ("sp ace", "üñï", "dol$HOME", "a+b", "per%20cent", "line\\n"):
        fire.stored(work, name, name.encode())
        assert fire.get("download", f"{work}/{name}").content == name.encode()
    with pytest.raises(FileNotFoundError):
        await fire.client.download(SYSTEM, f"{work}/zzz", target)


def test_uploads_that_go_astray(fire, work, other):
    fire.post("mkdir", sourcePath=f"{work}/a")
    fire.stored(work, "a/inner.bin", b"inner")
    assert Path(work, "a", "inner.bin").read_bytes() == b"inner"
    missing = f"{FAILED}1 and error message:bash: line 1: {work}/nodir/x: No such file or directory"
    refused(fire.upload(f"{work}/nodir", "x", b"x"), 404, missing)
    refused(
        fire.upload(other, "x", b"x"), 403, f"{FAILED}1 and error message:bash: line 1: {other}/x: Permission denied"
    )
    refused(fire.upload(work, "big", b"x" * (LIMIT + 1)), 413, "File to upload is too large.")
    fire.stored(work, "fits", b"x" * LIMIT)
    answer = fire.upload(work, "odd'quote", b"x")
    assert (answer.status_code, "unexpected EOF" in answer.text) == (500, True)
    answer = fire.http.post(f"{OPS}/upload", params={"path": work}, json={})
    assert answer.json()["data"] == {"fields": [{"location": "body", "name": "file", "message": "Field required"}]}
    assert (answer.status_code, answer.json()["errorType"]) == (400, "validation")


def test_empty_upload_comes_too_late_and_yet_arrives(fire, work):
    begun = time.monotonic()
    refused(fire.upload(work, "empty", b""), 408, TOO_LATE)
    assert time.monotonic() - begun > 0.2
    assert fire.output("stat", f"{work}/empty")["size"] == 0
    assert fire.get("download", f"{work}/empty").content == b""


def test_download_of_a_directory(fire, work):
    refused(fire.get("download", work), 500, f"{FAILED}1 and error message:base64: read error: Is a directory")


async def test_modes_and_owners(fire, work):
    path = fire.stored(work, "file", b"x")
    changed = await fire.client.chmod(SYSTEM, path, "640")
    assert (changed["name"], changed["permissions"]) == (path, "rw-r-----")
    fire.stored(work, "file", b"y")
    assert fire.output("ls", path)[0]["permissions"] == "rw-r-----"
    assert fire.put("chmod", sourcePath=path, mode="rw").status_code == 500
    not_permitted = f"{FAILED}1 and error message:chown: changing ownership of '{path}': Operation not permitted"
    refused(fire.put("chown", path=path, owner="sandbox-2-at-cedar", group="sandbox-2-at-cedar"), 403, not_permitted)
    assert (await fire.client.chown(SYSTEM, path, owner=fire.login, group=fire.login))["user"] == fire.login
    assert fire.put("chown", path=path, owner="zzz").status_code == 400


async def test_symlinks(fire, work):
    path, link = fire.stored(work, "file", b"12345"), f"{work}/link"
    made = (await fire.client.symlink(SYSTEM, path, link))["output"]
    assert (made["name"], made["type"], made["linkTarget"]) == (link, "l", path)
    assert fire.output("stat", link)["size"] == len(path)
    assert fire.output("stat", link, dereference=True)["size"] == 5
    assert fire.output("ls", work, dereference=True)[1]["type"] == "-"
    exists = f"{FAILED}1 and error message:ln: failed to create symbolic link '{link}': File exists"
    refused(fire.post("symlink", sourcePath=path, linkPath=link), 400, exists)


async def test_rm(fire, work, other):
    await fire.client.mkdir(SYSTEM, f"{work}/full/of", create_parents=True)
    fire.stored(work, "full/of/things", b"x")
    assert await fire.client.rm(SYSTEM, f"{work}/full") is None
    start = f"{FAILED}1 and error message:rm: cannot remove"
    refused(fire.rm(f"{work}/full"), 404, f"{start} '{work}/full': No such file or directory")
    refused(fire.rm(f"{other}/.bashrc"), 403, f"{start} '{other}/.bashrc': Permission denied")
    with pytest.raises(firecrest.UnexpectedStatusException):
        await fire.client.rm(SYSTEM, f"{work}/full")


def test_rm_of_a_path_with_a_quote(fire, work):
    for name in ("it", "s", "mine"):
        fire.stored(work, name, b"x")
    # The shell sees the words `.../it` and `s`, of which the second is where the command runs.
    answer = fire.rm(f"{work}/it' 's")
    assert (answer.status_code, "cannot remove 's'" in answer.text) == (403, True)
    assert [file["name"] for file in fire.output("ls", work)] == ["mine", "s"]
    assert fire.rm(f"{work}/it's").status_code == 500


@pytest.mark.parametrize("compression", ["none", "gzip", "bzip2", "xz"])
async def test_archives(fire, work, compression):
    await fire.client.mkdir(SYSTEM, f"{work}/in/sub", create_parents=True)
    await fire.client.mkdir(SYSTEM, f"{work}/out")
    fire.stored(work, "in/sub/a.txt", b"a")
    fire.stored(work, "in/b.bin", b"b")
    await fire.client.compress(SYSTEM, f"{work}/in", f"{work}/all.tar", compression=compression)
    await fire.client.extract(SYSTEM, f"{work}/all.tar", f"{work}/out", compression=compression)
    assert fire.output("view", f"{work}/out/in/sub/a.txt") == "a"
    await fire.client.compress(SYSTEM, f"{work}/in", f"{work}/some.tar.gz", match_pattern=r".*\.txt")
    with tarfile.open(fileobj=io.BytesIO(fire.get("download", f"{work}/some.tar.gz").content)) as packed:
        # The pattern looks at all there is beside the source too.
        assert packed.getnames() == ["./in/sub/a.txt", "./out/in/sub/a.txt"]


def test_archives_that_fail(fire, work, other):
    missing = fire.post("compress", source_path=f"{work}/zzz", target_path=f"{work}/x.tar.gz")
    start = f"{FAILED}2 and error message:tar"
    end = "No such file or directory\ntar: Exiting with failure status due to previous errors"
    refused(missing, 404, f"{start}: zzz: Cannot stat: {end}")
    assert fire.post("compress", source_path=work, target_path=f"{other}/x").status_code == 403
    assert fire.post("extract", source_path=f"{work}/zzz", target_path=work).status_code == 404
    text = fire.stored(work, "text", b"x")
    assert fire.post("extract", source_path=text, target_path=work).status_code == 500
    wrong = fire.post("compress", source_path=text, target_path=f"{work}/x", compression="zip").json()
    assert wrong["data"]["fields"][0]["message"] == "Input should be 'none', 'bzip2', 'gzip' or 'xz'"


def test_full_disk(fire, work):
    fire.control.change_site(SITE, quota_full=True)
    refused(fire.upload(work, "x", b"x"), 500, f"{FAILED}1 and error message:base64: write error: Disk quota exceeded")
    end = f"mkdir: cannot create directory '{work}/d': Disk quota exceeded"
    refused(fire.post("mkdir", sourcePath=f"{work}/d"), 500, f"{FAILED}1 and error message:{end}")


def test_malformed_requests(fire):
    def fields(answer: httpx.Response) -> Any:
        assert (answer.status_code, answer.json()["errorType"]) == (400, "validation")
        return answer.json()["data"]["fields"]

    assert fields(fire.http.get(f"{OPS}/ls")) == [{"location": "query", "name": "path", "message": "Field required"}]
    assert fields(fire.get("ls", fire.home, showHidden="maybe"))[0]["name"] == "showHidden"
    assert fields(fire.get("head", fire.home, lines="many"))[0]["name"] == "lines"
    assert fields(fire.post("mkdir"))[0]["name"] == "sourcePath"
    assert fields(fire.post("mkdir", sourcePath=1))[0]["message"] == "Input should be a valid string"
    assert fields(fire.http.post(f"{OPS}/mkdir", content=b"{"))[0]["message"] == "JSON decode error"
