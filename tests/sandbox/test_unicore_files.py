import base64
import http.client
import time
from urllib.parse import quote

import httpx
import pytest

from .rest import OCTETS, UPLOAD


@pytest.fixture
def files(rest):
    """The files of a job that waits for them."""
    return rest.ready(rest.submit(haveClientStageIn="true"))


@pytest.fixture
def put(rest):
    def put(url, content):
        answer = rest.http.put(url, content=content, headers=UPLOAD)
        assert (answer.status_code, answer.content) == (204, b""), answer.text
        return url

    return put


def read(rest, url, **headers):
    return rest.http.get(url, headers={**OCTETS, **headers})


def test_storage(rest, files):
    storage = rest.get(files.removesuffix("/files"))
    assert (storage["resourceStatus"], storage["description"]) == ("READY", "Job workspace")
    assert storage["mountPoint"].endswith("/")
    assert storage["freeSpace"] > 0
    assert storage["_links"]["files"]["href"] == files
    assert "transfers" not in storage["_links"]
    assert rest.get(storage["_links"]["job"]["href"])["status"] == "READY"


def test_list_of_storages(rest, files):
    shared = [f"{rest.url}/storages/HOME", f"{rest.url}/storages/SCRATCH"]
    assert rest.get("/storages")["storages"] == shared
    everything = rest.get("/storages", filter="all")["storages"]
    assert everything[:2] == shared
    assert files.removesuffix("/files") in everything


def test_home_and_scratch(rest, put):
    put(f"{rest.url}/storages/HOME/files/data/x.txt", b"home")
    put(f"{rest.url}/storages/SCRATCH/files/y.txt", b"scratch")
    assert rest.run("cat $HOME/data/x.txt $SCRATCH/y.txt")["stdout"] == "homescratch"
    assert "job" not in rest.get("/storages/HOME")["_links"]
    assert rest.http.delete("/storages/HOME").status_code == 403


def test_stat_and_listing(rest, files, put):
    url = put(f"{files}/d/e/data.txt", b"0123456789")
    answer = rest.http.get(url)
    assert answer.headers["accept-ranges"] == "bytes"
    properties = answer.json()
    assert (properties["isDirectory"], properties["size"], properties["metadata"]) == (False, 10, {})
    assert (properties["owner"], properties["permissions"]) == ("sandbox-at-alder", "rw-r-----")
    assert properties["lastAccessed"].endswith("+0000")
    assert properties["_links"]["parentStorage"]["href"] == files.removesuffix("/files")
    assert rest.get(files)["content"].keys() == {"/d/"}
    assert rest.get(f"{files}/")["content"].keys() == {"/d/"}
    for spelling in ("d", "d/"):
        listed = rest.get(f"{files}/{spelling}")
        assert listed["content"].keys() == {"/d/e/"}
        assert listed["content"]["/d/e/"]["isDirectory"] is True
    put(f"{files}/d/e/other.txt", b"")
    page = rest.get(f"{files}/d/e", offset="1", num="1")
    assert page["content"].keys() == {"/d/e/other.txt"}
    assert page["_links"]["next"]["href"].endswith("?offset=2&num=1")


@pytest.mark.parametrize(
    ("header", "status", "content"),
    [
        ("bytes=2-4", 206, b"234"),
        ("bytes=5-", 206, b"56789"),
        ("bytes=-3", 206, b"789"),
        ("bytes=0-99", 206, b"0123456789"),
        ("bytes=9-", 206, b"9"),
        ("bytes=0-0", 206, b"0"),
        ("bytes=4-2", 416, b"cannot be parsed"),
        ("bytes=abc", 416, b"NumberFormatException"),
        ("bytes=0-1,4-5", 416, b"NumberFormatException"),
        ("bytes=-100", 416, b"IllegalArgumentException"),
        ("lines=1-2", 416, b"cannot be parsed"),
    ],
)
def test_ranges(rest, files, put, header, status, content):
    url = put(f"{files}/data", b"0123456789")
    answer = read(rest, url, Range=header)
    assert answer.status_code == status
    assert (answer.content == content) if status == 206 else (content in answer.content)
    assert "content-range" not in answer.headers


def test_whole_files(rest, files, put):
    big = bytes(range(256)) * 4096 * 8
    answer = read(rest, put(f"{files}/big", big))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/octet-stream")
    assert answer.content == big
    assert read(rest, put(f"{files}/big", b"short")).content == b"short"
    assert read(rest, put(f"{files}/empty", b"")).content == b""
    assert read(rest, f"{files}/empty", Range="bytes=0-").status_code == 206
    chunked = put(f"{files}/chunked", iter([b"ab", b"cd"]))
    assert read(rest, chunked).content == b"abcd"


def test_content_type_is_needed(rest, files):
    assert rest.http.put(f"{files}/x", content=b"x").status_code == 415
    assert rest.http.put(f"{files}/x", content=b"x", headers={"Content-Type": "text/plain"}).status_code == 204


def test_past_the_end(rest, files, put):
    url = put(f"{files}/data", b"0123456789")
    rest.control.switch(unicore_past_end=2)
    for offset in (10, 20):
        with pytest.raises(httpx.ReadTimeout):
            rest.http.get(url, headers={**OCTETS, "Range": f"bytes={offset}-"}, timeout=0.5)
    rest.control.switch(unicore_past_end=0)
    assert read(rest, url, Range="bytes=10-").content == b""


def test_what_is_not_there(rest, files, put):
    put(f"{files}/file", b"x")
    for name in ("nope", "file/below"):
        for headers in ({}, OCTETS):
            answer = rest.http.get(f"{files}/{name}", headers=headers)
            assert (answer.status_code, answer.content) == (404, b"")
    assert rest.http.put(f"{files}/nope", json={"permissions": "rwx------"}).status_code == 404
    missing = rest.http.delete(f"{files}/nope")
    assert (missing.status_code, "Could not delete" in missing.text) == (500, True)


def test_directories(rest, files, put):
    made = rest.http.post(f"{files}/new/sub dir", json={})
    assert (made.status_code, made.headers["Location"]) == (201, f"{files}/new/sub%20dir")
    assert rest.http.post(f"{files}/new/sub dir", json={}).status_code == 201
    assert rest.get(f"{files}/new/sub dir")["content"] == {}
    assert read(rest, f"{files}/new").status_code == 406
    onto = rest.http.put(f"{files}/new", content=b"x", headers=UPLOAD)
    assert (onto.status_code, "Is a directory" in onto.text) == (500, True)
    put(f"{files}/new/sub dir/file", b"x")
    assert rest.http.delete(f"{files}/new").status_code == 204
    assert rest.get(files)["content"] == {}


def test_permissions(rest, files, put):
    url = put(f"{files}/data", b"x")

    def change(**changes):
        answer = rest.http.put(url, json=changes)
        assert answer.status_code == 200
        return answer.json()

    assert change(permissions="rwxr-x---", group="hpc") == {"permissions": "OK", "group": "OK"}
    assert rest.get(url)["permissions"] == "rwxr-x---"
    assert change(permissions="600")["permissions"].startswith("FAILED: java.lang.IllegalArgumentException")
    assert change(unknown=1) == {}
    storage = files.removesuffix("/files")
    assert rest.http.put(storage, json={"umask": "0022"}).json() == {"umask": "OK"}
    assert rest.get(put(f"{files}/open", b""))["permissions"] == "rw-r--r--"
    assert rest.get(storage)["umask"] == "022"


def test_copy_and_rename(rest, files, put):
    put(f"{files}/one", b"1")
    actions = files.removesuffix("files") + "actions"

    def act(action, **body):
        return rest.http.post(f"{actions}/{action}", json=body)

    assert act("rename", **{"from": "one", "to": "/two"}).status_code == 204
    assert act("copy", **{"from": "/two", "to": "three"}).status_code == 204
    assert rest.get(files)["content"].keys() == {"/two", "/three"}
    assert (act("rename", **{"from": "x"}).status_code, act("rename", **{"from": "x"}).content) == (400, b"")
    for action in ("copy", "rename"):
        failed = act(action, **{"from": "nope", "to": "x"})
        assert failed.status_code == 500
        assert failed.json()["errorMessage"].startswith(f"Error handling action: '{action}'")
        assert act(action, **{"from": "two", "to": "../out"}).status_code == 500
    assert act("nonsense").status_code == 404


@pytest.mark.parametrize("name", ["with space", "ha#sh", "que?stion", "üñï", "a+b", 'q"uote', "dol$HOME", "star*"])
def test_names(rest, files, put, name):
    url = put(f"{files}/{quote(name)}", b"x")
    assert read(rest, url).content == b"x"
    assert rest.get(files)["content"].keys() == {f"/{name}"}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("..%2f..%2fetc%2fhostname", 400),
        ("%2e%2e/%2e%2e/x", 400),
        ("per%25cent", 400),
        ("back%5cslash", 400),
        ("/double", 400),
    ],
)
def test_paths_the_server_does_not_take(rest, files, path, status):
    for method in ("GET", "PUT", "DELETE"):
        answer = rest.http.request(method, f"{files}/{path}", headers=OCTETS | UPLOAD)
        assert (answer.status_code, answer.content) == (status, b"")


def test_paths_out_of_the_storage(rest, files):
    where = httpx.URL(files)
    login = base64.b64encode(":".join(rest.login).encode()).decode()
    headers = {"Authorization": f"Basic {login}", "Accept": "application/json", **UPLOAD}
    for method, status in (("GET", 404), ("PUT", 500)):
        connection = http.client.HTTPConnection(where.host, where.port)
        connection.request(method, f"{where.path}/../../../x", b"" if method == "PUT" else None, headers)
        assert connection.getresponse().status == status
        connection.close()


def test_transfers_are_not_there(rest, files):
    storage = files.removesuffix("/files")
    for name in ("transfers", "imports", "exports"):
        assert rest.http.post(f"{storage}/{name}", json={"file": "/x"}).status_code == 404


def test_following_a_growing_file(rest):
    job = rest.submit("for i in 1 2 3; do echo line $i; sleep 0.2; done")
    size, seen = 0, b""
    deadline = time.monotonic() + 20
    while rest.get(job)["status"] not in ("SUCCESSFUL", "FAILED") or size != len(seen):
        assert time.monotonic() < deadline
        answer = rest.http.get(f"{rest.files(job)}/stdout")
        if answer.status_code == 200 and answer.json()["size"] > len(seen):
            size = answer.json()["size"]
            seen += read(rest, f"{rest.files(job)}/stdout", Range=f"bytes={len(seen)}-{size - 1}").content
            size = len(seen)
    assert read(rest, f"{rest.files(job)}/stdout").content == b"line 1\nline 2\nline 3\n"
    assert seen.startswith(b"line 1\n")
