"""Packing code, with real directories, real git repositories and a real git server."""

# ruff: noqa: ASYNC110, ASYNC221, ASYNC240 - the tests' own loop may block

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import hashlib
import http.server
import logging
import os
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from prefect_mantik import git, staging
from prefect_mantik.errors import ConfigurationError, ServiceUnavailable
from prefect_mantik.loop import acall
from prefect_mantik.runs import CodeDirectory, GitCode
from prefect_mantik.staging import StagedCode, stage

TOKEN = "glpat-Very_Secret-1234567890"
MLPROJECT = "name: test\nentry_points: {main: {command: python train.py}}\n"


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No proxy, and a place for temporary files that must be empty afterwards."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy") or name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    place = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    assert list(place.iterdir()) == []


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write(tmp_path / "project", {"MLproject": MLPROJECT, "train.py": "print(1)\n", "lib/model.py": "x = 1\n"})


def write(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def members(staged: StagedCode) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(staged.archive) as archive:
        return {member.name: member for member in archive}


async def packed(code: CodeDirectory | GitCode | Path, **options: Any) -> set[str]:
    """The files and links that are in the archive."""
    code = CodeDirectory(path=str(code)) if isinstance(code, Path) else code
    async with stage(code, **options) as staged:
        names = {name for name, member in members(staged).items() if not member.isdir()}
        assert staged.files == len(names)
        return names


async def refusal(code: CodeDirectory | GitCode | Path, **options: Any) -> str:
    with pytest.raises(ConfigurationError) as error:
        await packed(code, **options)
    return str(error.value)


# --- The archive ----------------------------------------------------------------------------------------------------


async def test_a_directory_becomes_an_archive(project: Path, surroundings: Path) -> None:
    (project / "run.sh").write_text("true")
    (project / "run.sh").chmod(0o4770)
    (project / "train.py").chmod(0o600)
    (project / "empty").mkdir(mode=0o700)
    async with stage(CodeDirectory(path=str(project))) as staged:
        assert staged.mlproject == MLPROJECT
        assert (staged.commit, staged.files) == (None, 4)
        assert staged.size == staged.archive.stat().st_size > 0
        assert [path.stat().st_mode & 0o777 for path in surroundings.iterdir()] == [0o700]
        found = members(staged)
    assert list(found) == ["MLproject", "empty", "lib", "lib/model.py", "run.sh", "train.py"]
    assert [oct(member.mode) for member in found.values()] == [
        oct(m) for m in (0o644, *[0o755] * 2, 0o644, 0o755, 0o644)
    ]
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in found.values()} == {(0, 0, "", "", 315_619_200)}


async def test_the_same_content_gives_the_same_bytes_in_any_process(project: Path, tmp_path: Path) -> None:
    program = (
        "import asyncio, hashlib, sys\n"
        "from prefect_mantik.staging import stage\nfrom prefect_mantik.runs import CodeDirectory\n"
        "async def main():\n"
        "    async with stage(CodeDirectory(path=sys.argv[1])) as staged:\n"
        "        print(hashlib.sha256(staged.archive.read_bytes()).hexdigest())\n"
        "asyncio.run(main())"
    )
    twin = tmp_path / "twin"
    for name in ("train.py", "lib/model.py", "MLproject"):  # made in another order, at another time
        write(twin, {name: (project / name).read_bytes()})
        os.utime(twin / name, (1, 1))
    async with stage(CodeDirectory(path=str(project))) as staged:
        here = hashlib.sha256(staged.archive.read_bytes()).hexdigest()
    there = subprocess.run([sys.executable, "-c", program, twin], capture_output=True, text=True, check=True)
    assert there.stdout.splitlines()[-1] == here
    write(twin, {"train.py": "print(2)\n"})
    async with stage(CodeDirectory(path=str(twin))) as other:
        assert hashlib.sha256(other.archive.read_bytes()).hexdigest() != here


async def test_odd_names_survive(project: Path, tmp_path: Path) -> None:
    names = ["a\nb", "-rf", "Übung ✓", "x" * 200, "deep/" * 40 + "file", os.fsdecode(b"latin-\xe9")]
    write(project, dict.fromkeys(names, "content"))
    async with stage(CodeDirectory(path=str(project))) as staged:
        subprocess.run(["tar", "-xzf", staged.archive, "-C", tmp_path / "."], check=True)  # the site's tar
    assert all((tmp_path / name).read_text() == "content" for name in names)


async def test_nothing_is_packed_that_tools_left_behind(project: Path) -> None:
    left = [".git/config", "a/__pycache__/x.pyc", ".venv/x", "mlruns/0/meta.yaml", "my-env/pyvenv.cfg", "my-env/bin/x"]
    write(project, dict.fromkeys(left, ""))
    (project / ".venv/python").symlink_to("/usr/bin/python3")
    write(project, {"mlruns.py": "", ".gitignore": "", "gitty/.gitkeep": ""})
    expected = {"MLproject", "train.py", "lib/model.py", "mlruns.py", ".gitignore", "gitty/.gitkeep"}
    assert await packed(project) == expected


async def test_files_with_secrets_are_left_out_and_named(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(project, dict.fromkeys([".env", "a/.env.local", "a/.ENV", ".envrc", ".ssh/id", ".mantik/tokens.json"], "S"))
    write(project, dict.fromkeys([".env.example", "environment.yml", "my.env"], "fine"))
    found = await packed(project)
    assert found == {"MLproject", "train.py", "lib/model.py", ".env.example", "environment.yml", "my.env"}
    [line] = [record.getMessage() for record in caplog.records if "hold secrets" in record.getMessage()]
    assert "Not sent, since they may hold secrets: .env, .envrc, .mantik, .ssh, a/.ENV, a/.env.local" in line


async def test_sockets_and_pipes_are_left_out_and_named(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(project)  # a socket's path is short
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        assert await packed(project) == {"MLproject", "train.py", "lib/model.py"}
    assert "Not sent, since they are sockets, pipes or devices: pipe, s" in caplog.text
    caplog.clear()
    await packed(project, exclude=["pipe", "s"])
    assert "Not sent" not in caplog.text


async def test_lfs_pointers_are_named(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(project, {"w.bin": "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"})
    assert "w.bin" in await packed(project)
    assert "git LFS left in place of the files: w.bin" in caplog.text


# --- Exclude --------------------------------------------------------------------------------------------------------

TREE = ("MLproject", "a.sif", "data/x.csv", "data/raw/y.csv", "lib/a.sif", "lib/data/z.csv", "lib/databank.py", "name")


@pytest.mark.parametrize(
    ("entry", "gone"),
    [
        ("*.sif", {"a.sif", "lib/a.sif"}),
        ("a.sif", {"a.sif", "lib/a.sif"}),
        ("data/", {"data/x.csv", "data/raw/y.csv", "lib/data/z.csv"}),
        ("raw/", {"data/raw/y.csv"}),
        ("data", set()),
        ("name/", set()),
        ("name", {"name"}),
        ("data/*.csv", {"data/x.csv"}),
        ("./data/x.csv", {"data/x.csv"}),
        ("/data/", {"data/x.csv", "data/raw/y.csv"}),
        ("data/raw/", {"data/raw/y.csv"}),
        ("lib/data/", {"lib/data/z.csv"}),
        ("**/*.csv", {"data/x.csv", "data/raw/y.csv", "lib/data/z.csv"}),
        ("data/**", {"data/x.csv", "data/raw/y.csv"}),
        ("dat*/", {"data/x.csv", "data/raw/y.csv", "lib/data/z.csv"}),
        ("A.SIF", set()),
        ("", set()),
    ],
)
async def test_exclude(tmp_path: Path, entry: str, gone: set[str]) -> None:
    write(tmp_path, dict.fromkeys(TREE, MLPROJECT))
    assert await packed(tmp_path, exclude=[entry]) == set(TREE) - gone
    assert await packed(tmp_path, exclude=entry) == set(TREE) - gone


async def test_exclude_names_links_too(project: Path) -> None:
    (project / "data").symlink_to("/scratch")
    (project / "here").symlink_to("/tmp")
    (project / "gone").symlink_to("/nowhere/at/all")
    assert await packed(project, exclude=["data", "here/", "gone"]) == {"MLproject", "train.py", "lib/model.py"}


@pytest.mark.parametrize("entry", ["MLproject", "*", "ML*", "**/MLproject"])
async def test_excluding_the_mlproject_is_an_error(project: Path, entry: str) -> None:
    message = await refusal(project, exclude=["*.sif", entry])
    assert f"names the MLproject file itself, without which nothing can run: make {entry} narrower" in message


# --- Links ----------------------------------------------------------------------------------------------------------


async def test_links_within_the_tree_stay_links(project: Path) -> None:
    (project / "lib/entry.py").symlink_to("../train.py")
    (project / "package").symlink_to("lib")
    (project / "broken").symlink_to("not/there")
    async with stage(CodeDirectory(path=str(project))) as staged:
        found = members(staged)
    assert {name: member.linkname for name, member in found.items() if member.issym()} == {
        "lib/entry.py": "../train.py",
        "package": "lib",
        "broken": "not/there",
    }
    assert "package/model.py" not in found


@pytest.mark.parametrize(
    "target",
    ["/etc/passwd", "../secret", "lib/../../secret", "../project/train.py", "lib/out", "lib/up/../secret", ".."],
)
async def test_links_that_lead_out_are_refused(project: Path, target: str) -> None:
    write(project.parent, {"secret": "S"})
    if target == "lib/up/../secret":  # lib/secret by name, ../secret really
        (project / "lib/up").symlink_to("..")
    if target == "lib/out":
        (project / "lib/out").symlink_to("../../secret")
    (project / "link").symlink_to(target)
    message = await refusal(project)
    assert "The symbolic link" in message
    assert "name the link in Exclude" in message


async def test_an_absolute_link_into_the_tree_is_refused(project: Path) -> None:
    (project / "link").symlink_to(project / "train.py")
    assert "only by a path of this machine" in await refusal(project)


async def test_a_loop_of_links_ends(project: Path) -> None:
    (project / "a").symlink_to("b")
    (project / "b").symlink_to("a")
    (project / "lib/up").symlink_to("..")
    assert {"a", "b", "lib/up"} < await packed(project)


# --- The MLproject --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["sub/dir/MLproject", "sub/dir", "sub/dir/", "./sub/dir/MLproject"])
async def test_the_directory_of_the_mlproject_is_packed(tmp_path: Path, path: str) -> None:
    write(tmp_path, {"MLproject": "other", "above.py": "", "sub/dir/MLproject": MLPROJECT, "sub/dir/lib/x.py": ""})
    async with stage(CodeDirectory(path=str(tmp_path)), mlproject_path=path) as staged:
        assert staged.mlproject == MLPROJECT
        assert set(members(staged)) == {"MLproject", "lib", "lib/x.py"}


@pytest.mark.parametrize("path", ["../other", "../other/MLproject", "lib/../../other", "/etc", "way-out"])
async def test_a_path_that_leaves_the_tree_is_refused(project: Path, path: str) -> None:
    write(project.parent / "other", {"MLproject": MLPROJECT})
    (project / "way-out").symlink_to("../other")
    assert "leads out of" in await refusal(project, mlproject_path=path)


async def test_a_missing_mlproject_is_an_error_that_helps(tmp_path: Path) -> None:
    write(tmp_path, {"train.py": "", "mlproject.yaml": "", "empty/sub/x": ""})
    message = await refusal(tmp_path)
    assert "There is no MLproject file MLproject in" in message
    assert f"In {tmp_path.name} there is: mlproject.yaml, empty, train.py." in message
    assert "In sub there is: x." in await refusal(tmp_path, mlproject_path="empty/sub/a/b/MLproject")
    assert "There is no MLproject file train.py" in await refusal(tmp_path, mlproject_path="train.py")
    assert "no directory" in await refusal(tmp_path / "nowhere")
    assert "no directory" in await refusal(tmp_path / "train.py")


async def test_what_cannot_be_read_is_an_error_that_says_which(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).endswith("model.py"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **options)

    real = os.open  # root, as whom the tests may run, can read everything
    monkeypatch.setattr(staging.os, "open", opened)
    assert "lib/model.py, cannot be packed: Permission denied" in await refusal(project)


async def test_a_binary_mlproject_is_refused(project: Path) -> None:
    (project / "MLproject").write_bytes(b"\xff\xfe")
    assert "MLproject is not UTF-8 text" in await refusal(project)


# --- Limits ---------------------------------------------------------------------------------------------------------


async def test_too_big_names_the_biggest(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "MAX_BYTES", 2 * 2**20)
    megabyte = os.urandom(2**20)
    write(
        project, {"top.bin": megabyte * 3, "lib/weights/w.pt": megabyte * 2, "data/a": megabyte, "data/b": megabyte * 3}
    )
    message = await refusal(project)
    assert "gets bigger than 2.0 MiB" in message
    assert "data/ (4.0 MiB), top.bin (3.0 MiB), lib/weights/w.pt (2.0 MiB)." in message
    assert "Exclude" in message
    assert "data/b" not in await packed(project, exclude=["data/", "weights/", "top.bin"])


async def test_long_packing_is_reported_and_the_loop_goes_on(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(staging, "_REPORT_AFTER", 0.01)
    caplog.set_level(logging.INFO)
    write(project, {"big": os.urandom(20 * 2**20)})
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    ticker = asyncio.ensure_future(tick())
    await packed(project)
    ticker.cancel()
    assert ticks > 10
    assert "so far" in caplog.text
    assert "Packed 4 files of" in caplog.text


async def test_cancelled_packing_stops_and_leaves_nothing(project: Path, surroundings: Path) -> None:
    write(project, {"big": os.urandom(150 * 2**20)})
    work = asyncio.ensure_future(packed(project))
    while not list(surroundings.glob("*/code.tar.gz")):
        await asyncio.sleep(0.01)
    began = time.monotonic()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert time.monotonic() - began < 1.5  # all of it takes 4
    assert list(surroundings.iterdir()) == []


async def test_an_error_of_the_user_of_the_archive_removes_it(project: Path, surroundings: Path) -> None:
    with pytest.raises(KeyError):
        async with stage(CodeDirectory(path=str(project))):
            raise KeyError
    assert list(surroundings.iterdir()) == []


# --- git ------------------------------------------------------------------------------------------------------------


class Repository:
    """A git repository with some commits, a branch and tags."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch=main")
        write(path, {"MLproject": MLPROJECT, "train.py": "first\r\n", "sub/MLproject": "sub", "sub/x.py": ""})
        self.first = self.commit("first")
        self.git("tag", "-a", "-m", "v1", "v1")
        self.git("checkout", "--quiet", "-b", "feature/x")
        write(path, {"train.py": "branch"})
        self.branch = self.commit("branch")
        self.git("checkout", "--quiet", "main")
        write(path, {"train.py": "second"})
        self.second = self.commit("second")
        self.git("update-server-info")

    def git(self, *arguments: str) -> str:
        identity = ("-c", "user.name=t", "-c", "user.email=t@localhost")
        done = subprocess.run(
            ["git", *identity, *arguments], cwd=self.path, check=True, capture_output=True, text=True, timeout=60
        )
        return done.stdout.strip()

    def commit(self, message: str) -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", message)
        return self.git("rev-parse", "HEAD")

    @property
    def url(self) -> str:
        return f"file://{self.path}"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return Repository(tmp_path_factory.mktemp("git") / "code.git")


class Server(http.server.ThreadingHTTPServer):
    """git's own http-backend behind a login; or a server that is broken in one of several ways."""

    daemon_threads = True

    def __init__(self, root: Path, *, mode: str = "smart", target: str = "") -> None:
        self.root, self.mode, self.target = root, mode, target
        self.headers: list[tuple[str, str | None]] = []
        self.release = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def url(self) -> str:
        return f"{self.origin}/code.git"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        login = self.headers.get("Authorization")
        self.server.headers.append((self.path, login))
        expected = "Basic " + base64.b64encode(f"oauth2:{TOKEN}".encode()).decode()
        mode = self.server.mode
        if mode == "hang":
            self.server.release.wait(60)
        elif mode == "redirect":
            self.answer(301, {"Location": self.server.target + self.path})
        elif mode == "broken":
            self.answer(503, {})
        elif mode == "private" and login != expected:
            self.answer(401, {"WWW-Authenticate": 'Basic realm="git"'})
        elif mode == "dumb":
            self.dumb()
        else:
            self.backend()

    do_POST = do_GET

    def answer(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def dumb(self) -> None:
        path = self.server.root / self.path.split("?")[0].removeprefix("/").replace("code.git", "code.git/.git", 1)
        self.answer(200, {"Content-Type": "text/plain"}, path.read_bytes()) if path.is_file() else self.answer(404, {})

    def backend(self) -> None:
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        environment = {
            **os.environ,
            "GIT_PROJECT_ROOT": str(self.server.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type") or "",
            "CONTENT_LENGTH": str(len(body)),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol") or "",
        }
        done = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True, check=True)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.answer(int(headers.pop("Status", "200").split()[0]), headers, content)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def serve(repository: Repository) -> Iterator[Any]:
    servers: list[Server] = []

    def start(mode: str = "smart", target: str = "") -> Server:
        servers.append(Server(repository.path.parent, mode=mode, target=target))
        return servers[-1]

    yield start
    for server in servers:
        server.release.set()
        server.shutdown()
        server.server_close()


async def text_of(code: GitCode, name: str = "train.py", **options: Any) -> tuple[str, str | None]:
    async with stage(code, **options) as staged:
        with tarfile.open(staged.archive) as archive:
            content = archive.extractfile(name)
            assert content is not None
            return content.read().decode(), staged.commit


@pytest.mark.parametrize("mode", ["file", "smart", "dumb"])
async def test_git_at_a_branch_a_tag_or_a_commit(repository: Repository, serve: Any, mode: str) -> None:
    url = repository.url if mode == "file" else serve(mode).url
    for ref, content, commit in (
        ("main", "second", repository.second),
        ("feature/x", "branch", repository.branch),
        ("refs/heads/feature/x", "branch", repository.branch),
        ("v1", "first\r\n", repository.first),
        (repository.first, "first\r\n", repository.first),
        (repository.second.upper(), "second", repository.second),
    ):
        assert await text_of(GitCode(url=url, ref=ref)) == (content, commit)


async def test_git_in_a_subfolder(repository: Repository) -> None:
    code = GitCode(url=repository.url, ref="main")
    assert await packed(code, mlproject_path="sub/MLproject") == {"MLproject", "x.py"}
    assert await packed(code, exclude=["sub/"]) == {"MLproject", "train.py"}


async def test_git_works_on_the_background_loop(repository: Repository) -> None:
    assert await acall(packed, GitCode(url=repository.url, ref="main"), exclude=["sub/"]) == {"MLproject", "train.py"}


async def test_a_branch_wins_over_a_tag(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "code")
    repository.git("tag", "feature/x", repository.first)
    assert await text_of(GitCode(url=repository.url, ref="feature/x")) == ("branch", repository.branch)


async def test_a_server_that_gives_no_bare_commits_is_asked_for_all(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "code")
    write(repository.path, {"train.py": "third"})
    repository.commit("third")
    for version in ("0", "2"):
        repository.git("config", "uploadpack.advertiseRefs", version)
        repository.git("config", "uploadpack.allowAnySHA1InWant", "false")
        assert await text_of(GitCode(url=repository.url, ref=repository.second)) == ("second", repository.second)


async def test_a_ref_that_is_not_there(repository: Repository) -> None:
    message = await refusal(GitCode(url=repository.url, ref="mian"))
    assert message.startswith(f"{repository.url} has no branch, tag or commit mian. Branches there: feature/x, main.")
    assert "all of its 40 digits" in await refusal(GitCode(url=repository.url, ref=repository.first[:8]))
    assert "has no branch, tag or commit 0000" in await refusal(GitCode(url=repository.url, ref="0" * 40))
    assert "heads" not in await refusal(GitCode(url=repository.url, ref="x"))  # `feature/x` ends in it


async def test_a_repository_that_is_not_there(repository: Repository, serve: Any) -> None:
    assert "no such repository" in await refusal(GitCode(url=f"{repository.url}-not", ref="main"))
    assert "no such repository" in await refusal(GitCode(url=f"{serve().origin}/not.git", ref="main"))


@pytest.mark.parametrize(
    "url",
    [
        *(
            "ext::sh -c touch% /tmp/owned",
            "--upload-pack=touch /tmp/owned",
            "-x@host:path",
            "git@-oProxy:x",
            "git@h:-x",
        ),
        *("git://host/x.git", "http://example.org/x.git", "ftp://host/x", "/srv/code.git", "code.git", "https://", ""),
        *("ssh://-oProxyCommand=x/y", "https://host/x.git?private_token=S3cret", "https://host/a b", "file://host/x"),
        *(
            "https://user:S3cret@host/x.git",
            "https://S3cret@host/x.git",
            "https://us:S3/cret@host/x",
            "ssh://a:S3cret@h/x",
        ),
        *("fd::17", "https::http://x", "git@host:/../x\n"),
    ],
)
async def test_urls_that_are_refused(url: str, surroundings: Path) -> None:
    message = await refusal(GitCode.model_construct(url=url, ref="main"))
    assert message.startswith("The url of GitCode: this URL cannot be used: ")
    assert "S3" not in message


@pytest.mark.parametrize(
    "url", ["git@host.org:group/code.git", "ssh://git@host.org:2222/group/code", "https://h.org/a.git"]
)
def test_urls_that_are_taken(url: str) -> None:
    assert git._checked_url(url)[1] == url


@pytest.mark.parametrize(
    "ref", ["-main", "--upload-pack=x", "a b", "a..b", "main:evil", "a^", "*", "+main", "a\n", ".x"]
)
async def test_refs_that_are_refused(repository: Repository, ref: str) -> None:
    message = await refusal(GitCode(url=repository.url, ref=ref))
    assert "is no name of a branch or tag" in message or (ref == "+main" and "has no branch" in message)


async def test_the_users_configuration_changes_nothing(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hooks = write(tmp_path / "hooks", {"post-checkout": f"#!/bin/sh\ntouch {tmp_path}/hooked\n"})
    (hooks / "post-checkout").chmod(0o755)
    write(
        tmp_path / "home",
        {
            ".gitconfig": f"[core]\nautocrlf = input\nhooksPath = {hooks}\nattributesFile = {tmp_path}/attributes\n"
            f'[url "https://nowhere.invalid/"]\ninsteadOf = {repository.url}\n'
            '[filter "evil"]\nsmudge = tr a-z A-Z\n[fetch]\nrecurseSubmodules = true\n[init]\ntemplateDir = /nowhere\n'
        },
    )
    write(tmp_path, {"attributes": "* filter=evil\n", "home/.config/git/attributes": "* text eol=crlf\n"})
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "not a number")
    monkeypatch.setenv("GIT_TRACE", "1")
    assert await text_of(GitCode(url=repository.url, ref="v1")) == ("first\r\n", repository.first)
    assert await text_of(GitCode(url=repository.url, ref="v1"), "MLproject") == (MLPROJECT, repository.first)
    assert not (tmp_path / "hooked").exists()


async def test_submodules_are_not_fetched_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    repository = Repository(tmp_path / "code")
    write(repository.path, {".gitmodules": '[submodule "x"]\npath = x\nurl = https://nowhere.invalid/x\n'})
    repository.git("update-index", "--add", "--cacheinfo", f"160000,{repository.first},x")
    repository.commit("submodule")
    assert "train.py" in await packed(GitCode(url=repository.url, ref="main"))
    assert "has submodules, which are not fetched" in caplog.text


async def test_env_files_and_links_of_a_repository(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "code")
    write(repository.path, {".env": "S"})
    repository.commit("secret")
    assert ".env" not in await packed(GitCode(url=repository.url, ref="main"))
    (repository.path / "link").symlink_to("/etc/passwd")
    repository.commit("link")
    assert "The symbolic link link of" in await refusal(GitCode(url=repository.url, ref="main"))


# --- git: tokens ----------------------------------------------------------------------------------------------------

SECRETS = (TOKEN, base64.b64encode(f"oauth2:{TOKEN}".encode()).decode())


async def test_a_private_repository(repository: Repository, serve: Any, surroundings: Path, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG)
    code = GitCode(url=serve("private").url, ref="main")
    async with stage(code, token=SecretStr(TOKEN)) as staged:
        assert staged.commit == repository.second
        assert not any(secret in repr(staged) for secret in SECRETS)
        left = [path.read_bytes() for path in surroundings.rglob("*") if path.is_file()]
    assert len(left) > 5
    assert not any(secret.encode() in content for content in left for secret in SECRETS)
    assert not any(secret in caplog.text for secret in SECRETS)
    assert not any(secret in value for value in os.environ.values() for secret in SECRETS)


async def test_a_login_that_is_missing_or_wrong(serve: Any) -> None:
    code = GitCode(url=serve("private").url, ref="main")
    for token in (None, SecretStr(""), SecretStr("wrong-token")):
        message = await asyncio.wait_for(refusal(code, token=token), 20)
        assert "It wants a login" in message
        assert "git says: fatal: " in message
        assert "wrong-token" not in message
    assert "odd character" in await refusal(code, token=SecretStr("a\nX-Header: b"))


async def test_git_does_not_repeat_the_token(tmp_path: Path) -> None:
    done = git._Done(True, "", f"remote: {TOKEN} and {SECRETS[1]} and https://oauth2:abc@host/x eyJhbG.eyJz.x refused")
    made = git._Git.at(GitCode(url="https://host/x", ref="main"), tmp_path, SecretStr(TOKEN))
    error = made._error(done)
    assert isinstance(error, ServiceUnavailable)
    assert "remote: *** and *** and https://***@host/x *** refused" in str(error)
    assert not any(secret in repr(made) + str(error) + error.detail for secret in SECRETS)


async def test_a_redirect_gets_no_token(serve: Any) -> None:
    other = serve()
    message = await refusal(GitCode(url=serve("redirect", other.origin).url, ref="main"), token=SecretStr(TOKEN))
    assert "give the URL that it sends to" in message
    assert other.headers == []


async def test_a_redirect_is_followed_without_a_token(repository: Repository, serve: Any) -> None:
    code = GitCode(url=serve("redirect", serve().origin).url, ref="main")
    assert await text_of(code) == ("second", repository.second)


async def test_a_redirect_to_another_protocol_is_not_followed(serve: Any) -> None:
    with pytest.raises(ServiceUnavailable, match=r"[Pp]rotocol .*https"):
        await packed(GitCode(url=serve("redirect", "https://127.0.0.1:1").url, ref="main"))


async def test_the_token_is_for_the_urls_origin_only() -> None:
    made = git._Git.at(GitCode(url="https://Host:8443/a/b.git", ref="x"), Path(), SecretStr(TOKEN))
    config = {v: made.variables[k.replace("KEY", "VALUE")] for k, v in made.variables.items() if "CONFIG_KEY" in k}
    assert config["http.https://host:8443/.extraHeader"] == f"Authorization: Basic {SECRETS[1]}"
    ssh = git._Git.at(GitCode(url="git@host:a/b.git", ref="x"), Path(), SecretStr(TOKEN))
    assert not any(secret in value for value in ssh.variables.values() for secret in SECRETS)


# --- git: servers that do not answer --------------------------------------------------------------------------------


def processes(text: str) -> dict[int, str]:
    """The command lines that hold a text, of all processes of this machine."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if text in line:
                found[int(path.parent.name)] = line
    return found


async def until(condition: Any) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
async def test_cancelling_ends_git_and_all_that_it_started(serve: Any, surroundings: Path) -> None:
    server = serve("hang")
    work = asyncio.ensure_future(packed(GitCode(url=server.url, ref="main"), token=SecretStr(TOKEN)))
    await until(lambda: server.headers)
    running = processes(server.url)
    assert len(running) >= 2  # git and git-remote-http
    assert not any(secret in line for line in running.values() for secret in SECRETS)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    await until(lambda: not processes(server.url))
    assert list(surroundings.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
async def test_a_server_that_never_answers(serve: Any) -> None:
    server = serve("hang")
    with pytest.raises(ServiceUnavailable, match=r"within 0\.5 s and was stopped"):
        await packed(GitCode(url=server.url, ref="main"), git_time_limit=0.5)
    await until(lambda: not processes(server.url))


async def test_a_server_that_cannot_be_reached_or_fails(serve: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}/code.git"
        for url in (closed, serve("broken").url):
            with pytest.raises(ServiceUnavailable, match="git says: fatal: unable to access") as error:
                await packed(GitCode(url=url, ref="main"))
            assert not error.value.sent


async def test_no_git(repository: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "GitCode needs the program git" in await refusal(GitCode(url=repository.url, ref="main"))


async def test_a_container_image_goes_beside_the_archive_whatever_exclude_says(project: Path) -> None:
    (project / "images").mkdir()
    (project / "images" / "train.sif").write_bytes(b"image")
    async with stage(CodeDirectory(path=str(project)), exclude=["*.sif"], image="./images/train.sif") as staged:
        assert staged.image is not None
        assert staged.image.read_bytes() == b"image"
        assert "images" in staged.top_level
        with tarfile.open(staged.archive) as tar:
            assert "images/train.sif" not in tar.getnames()


@pytest.mark.parametrize("image", ["nowhere.sif", "../outside.sif"])
async def test_a_container_image_that_is_not_there_is_named(project: Path, image: str) -> None:
    (project.parent / "outside.sif").write_bytes(b"image")
    with pytest.raises(ConfigurationError, match="Type: remote"):
        async with stage(CodeDirectory(path=str(project)), image=image):
            pass
