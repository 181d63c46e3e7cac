"""Getting code from a git server, with the `git` program and nothing of the user's own git configuration.

The user's and the machine's git configuration are left out (`insteadOf`, filters, hooks, credential helpers), so that
every machine gets the same files. What a network needs comes from the environment: `https_proxy`, `GIT_SSL_CAINFO`,
`GIT_SSH_COMMAND`, the ssh agent. Needs git 2.32 or newer.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr

from prefect_mantik.environment import check_url, read_variables
from prefect_mantik.errors import ConfigurationError, MantikError, ServiceUnavailable
from prefect_mantik.log import run_logger, without_tokens
from prefect_mantik.runs import GitCode

TIME_LIMIT = 300.0
"""Seconds for all that git does."""

_TOKEN_USER = "oauth2"  # GitLab wants this one  # noqa: S105
_HTTP_FORM = (
    "https://<host>/<path>.git without a user name, password or token: the token of a private repository is given apart"
)
_SSH = re.compile(r"(?:ssh://(?:\w[\w.-]*@)?[\w\[][\w.:\]-]*/|\w[\w.-]*@\w[\w.-]*:(?![:/]{2}|-))[^\x00-\x20\x7f?#]+")
_FILE = re.compile(r"file:///[^\x00-\x1f\x7f?#]+")
_REF = re.compile(r"(?![-/.])(?!.*(?:\.\.|@\{))[^\x00-\x20\x7f~^:?*\[\\]+")
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_EVERYTHING = ("+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")
_NOT_SO_SHALLOW = re.compile(r"not our ref|unadvertised|shallow|couldn't find remote ref|rejected")

# Other variables of git's (GIT_DIR in a hook, GIT_TRACE, GIT_CONFIG_*) would aim it elsewhere or make it talk.
_KEPT_VARIABLES = {
    *("GIT_EXEC_PATH", "GIT_SSH", "GIT_SSH_COMMAND", "GIT_SSH_VARIANT", "GIT_PROXY_SSL_CAINFO"),
    *("GIT_SSL_CAINFO", "GIT_SSL_CAPATH", "GIT_SSL_CERT", "GIT_SSL_KEY"),
}
_DROPPED_VARIABLES = {"SSH_ASKPASS", "LANGUAGE"}
_VARIABLES = {
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_LFS_SKIP_SMUDGE": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",  # its words are searched
    "SSH_ASKPASS_REQUIRE": "never",
}
_CONFIG = {
    "core.attributesFile": os.devnull,
    "gc.auto": "0",  # or it goes on in the background, in a directory that is about to be removed
    "maintenance.auto": "false",
    "submodule.recurse": "false",
}

_FAULTS_OF_THE_CALLER = (
    (
        r"returned error: 30\d|from redirection",
        "The server sends elsewhere, and a token is not taken along: give the URL that it sends to (GitLab: the one "
        "that ends in .git).",
    ),
    (
        r"could not read (Username|Password)|Authentication failed|returned error: 40[13]|Access denied",
        "It wants a login, or another one: give a token that is valid and may read this repository.",
    ),
    (
        r"Permission denied|Host key verification failed",
        "ssh did not get in: check `ssh -T <user>@<host>` on this machine, without a passphrase prompt.",
    ),
    (
        r"not found|does not exist|does not appear to be a git repository|returned error: 404",
        "There is no such repository, or it is private and needs a token: check the URL.",
    ),
)


async def check_out(code: GitCode, target: Path, *, token: SecretStr | None = None, time_limit: float) -> str:
    """Fetch one version of a repository and write its files, without submodules and with LFS files as pointers.

    Args:
        code: Where and which. A branch wins over a tag of the same name.
        target: A directory to be made.
        token: For an https URL: sent to that host and port only, and not along a redirect. Unused for others.
        time_limit: Seconds for all of it.

    Returns:
        The commit, in full.

    Raises:
        ConfigurationError: URL or ref cannot be used, or do not exist, or a login is missing; or there is no git.
        ServiceUnavailable: The server could not be reached, failed, or took too long.
    """
    git = _Git.at(code, target, token)
    try:
        return await asyncio.wait_for(git.check_out(code.ref), time_limit)
    except asyncio.TimeoutError:
        raise ServiceUnavailable(
            f"git did not get {code.ref} of {git.url} within {time_limit:g} s and was stopped. Is the repository very "
            "large, or the server slow? Try again, or give a CodeDirectory that you have fetched yourself.",
            method="git fetch",
            sent=False,
        ) from None


def _checked_url(url: str) -> tuple[str, str]:
    """The protocol and the URL as it is used. Messages never show a URL that was refused: it may hold a password."""
    if _SSH.fullmatch(url):
        return "ssh", url
    if _FILE.fullmatch(url):
        return "file", url
    try:
        url = check_url(url, form=_HTTP_FORM)
    except ValueError as error:
        more = " (git@<host>:<path> or ssh://git@<host>/<path> for ssh; a CodeDirectory for a directory)"
        raise ConfigurationError(f"The url of GitCode: {error}{more}") from None
    return urlsplit(url).scheme, url


def _checked_ref(ref: str) -> str:
    if not _REF.fullmatch(ref):
        raise ConfigurationError(f"The ref of GitCode, {ref!r}, is no name of a branch or tag and no commit.")
    return ref


@dataclass(frozen=True)
class _Done:
    failed: bool
    output: str
    errors: str


@dataclass(frozen=True)
class _Git:
    """Git commands in one directory, for one server."""

    url: str
    target: Path
    variables: Mapping[str, str] = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)

    @classmethod
    def at(cls, code: GitCode, target: Path, token: SecretStr | None) -> _Git:
        protocol, url = _checked_url(code.url)
        _checked_ref(code.ref)
        secret = token.get_secret_value() if token and protocol in ("http", "https") else ""
        if not secret:
            return cls(url, target, _variables(protocol, _CONFIG), ())
        if not re.fullmatch(r"[\x21-\x7e]+", secret):
            raise ConfigurationError("The token of the code repository holds a space or another odd character.")
        login = base64.b64encode(f"{_TOKEN_USER}:{secret}".encode()).decode()
        origin = f"{protocol}://{urlsplit(url).netloc}/"
        # git sends the header to wherever the first answer redirected it, hence no redirects
        config = {f"http.{origin}.extraHeader": f"Authorization: Basic {login}", "http.followRedirects": "false"}
        return cls(url, target, _variables(protocol, _CONFIG | config), (login, secret))

    async def check_out(self, ref: str) -> str:
        await asyncio.to_thread(self.target.mkdir)
        await self._must("init", "--quiet", "--template=")
        wanted = ref.lower()
        commit = await (self._fetch_commit(wanted) if _COMMIT.fullmatch(wanted) else self._fetch_name(ref))
        await self._must("checkout", "--quiet", "--force", "--detach", commit)
        if (self.target / ".gitmodules").exists():
            run_logger().warning("%s has submodules, which are not fetched: their directories stay empty.", self.url)
        return commit

    async def _fetch_name(self, ref: str) -> str:
        names = (f"refs/heads/{ref}", f"refs/tags/{ref}", ref)
        there = await self._names("--", self.url, *names)
        name = next((name for name in names if name in there), None)
        if name is None:
            raise await self._no_such(ref)
        done = await self._fetch("--depth=1", what=(name,))
        if done.failed and _NOT_SO_SHALLOW.search(done.errors):
            done = await self._fetch(what=(name,))
        if done.failed:
            raise self._error(done)
        return await self._commit("FETCH_HEAD") or _raise(ConfigurationError(f"{ref} of {self.url} names no commit."))

    async def _fetch_commit(self, commit: str) -> str:
        done = await self._fetch("--depth=1", what=(commit,))
        if done.failed and _NOT_SO_SHALLOW.search(done.errors):
            done = await self._fetch(what=_EVERYTHING)
        if done.failed:
            raise self._error(done)
        return await self._commit(commit) or _raise(await self._no_such(commit))

    async def _fetch(self, *options: str, what: tuple[str, ...]) -> _Done:
        return await self._run(
            "fetch", "--quiet", "--no-tags", "--no-recurse-submodules", *options, "--", self.url, *what
        )

    async def _commit(self, name: str) -> str | None:
        done = await self._run("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
        return None if done.failed else done.output.strip()

    async def _names(self, *arguments: str) -> set[str]:
        output = await self._must("ls-remote", "--quiet", *arguments)
        return {line.partition("\t")[2] for line in output.splitlines()}

    async def _no_such(self, ref: str) -> ConfigurationError:
        branches = sorted(name.removeprefix("refs/heads/") for name in await self._names("--heads", "--", self.url))
        there = (
            f" Branches there: {', '.join(branches[:10])}{', ...' if len(branches) > 10 else ''}." if branches else ""
        )
        short = " A commit is given with all of its 40 digits." if re.fullmatch(r"[0-9a-f]{7,39}", ref) else ""
        return ConfigurationError(f"{self.url} has no branch, tag or commit {ref}.{there}{short} Was it pushed?")

    async def _must(self, *arguments: str) -> str:
        done = await self._run(*arguments)
        if done.failed:
            raise self._error(done)
        return done.output

    async def _run(self, *arguments: str) -> _Done:
        try:
            process = await asyncio.create_subprocess_exec(
                "git",
                *arguments,
                cwd=self.target,
                env=self.variables,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,  # a group that can be killed, and no terminal to ask at
            )
        except OSError as error:
            raise ConfigurationError(
                f"GitCode needs the program git, which cannot be started here ({error.strerror}): install it."
            ) from None
        try:
            output, errors = await process.communicate()
        except BaseException:
            await _kill(process)
            raise
        return _Done(process.returncode != 0, output.decode(errors="replace"), errors.decode(errors="replace"))

    def _error(self, done: _Done) -> MantikError:
        words = self._scrubbed(done.errors).strip()
        for pattern, advice in _FAULTS_OF_THE_CALLER:
            if re.search(pattern, words):
                return ConfigurationError(f"git cannot get the code from {self.url}. {advice} git says: {words}")
        return ServiceUnavailable(
            f"git could not get the code from {self.url}; try again later. git says: {words}",
            method="git fetch",
            detail=words,
            sent=False,
        )

    def _scrubbed(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return without_tokens(re.sub(r"(//)[^/\s@]+@", r"\1***@", text))[:2000]


def _raise(error: MantikError) -> str:
    raise error


def _variables(protocol: str, config: Mapping[str, str]) -> dict[str, str]:
    """The environment of git: config in it is seen by no other process, and written nowhere."""
    own = {
        name: value
        for name, value in read_variables().items()
        if (not name.startswith("GIT_") or name in _KEPT_VARIABLES) and name not in _DROPPED_VARIABLES
    }
    if "GIT_SSH" not in own:
        own.setdefault("GIT_SSH_COMMAND", "ssh -o BatchMode=yes")
    given = {"GIT_ALLOW_PROTOCOL": protocol, "GIT_CONFIG_COUNT": str(len(config))}
    for number, (key, value) in enumerate(config.items()):
        given |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return own | _VARIABLES | given


async def _kill(process: asyncio.subprocess.Process) -> None:
    """End git and all that it started, and wait until the last of them let go of the directory."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(process.communicate(), 5)
