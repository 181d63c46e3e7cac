"""A real UNICORE/X server on this machine, from Maven Central, with its embedded TSI: jobs are plain processes here.

It is REST only: no Gateway, no Registry, no batch system. Everything it writes is below the directory it is given.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import os
import re
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from string import Template
from types import MappingProxyType, TracebackType

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, pkcs12
from cryptography.x509.oid import NameOID

HERE = Path(__file__).parent
BUILD = HERE.parents[2] / "build" / "unicore"
JAVA_AT_LEAST = 17
RESOLVE_TIMEOUT = 600
QUESTION_TIMEOUT = 60
START_TIMEOUT = 120
STOP_TIMEOUT = 20
LOG_TAIL = 4000
STARTED = "***** Server started. *****"
# User name to role. The site knows "user", "admin" and "banned"; "" can log in and is nobody there.
USERS: Mapping[str, str] = MappingProxyType(
    {"demouser": "user", "otheruser": "user", "boss": "admin", "banned": "banned", "stranger": ""},
)


class UnicoreDidNotStart(Exception):
    """The server ended, or did not answer in time. The message has the end of its log."""


@dataclass
class RealUnicore:
    """A running server.

    Attributes:
        url: The API's root, `https://localhost:<port>/rest/core`.
        ca_file: The server's own certificate, for `localhost` and `127.0.0.1`.
        users: User name to password.
        directory: What it was started in: `jobs/`, `work/`, `data/`, `server.log`.
        process: The Java process, first of its process group; its jobs are in that group too.
    """

    url: str
    ca_file: Path
    users: dict[str, str] = field(repr=False)
    directory: Path
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        """What the server printed so far."""
        return (self.directory / "server.log").read_text(errors="replace")

    def client(self, user: str = "demouser") -> httpx.Client:
        """A client that trusts the server's certificate and logs in as `user`."""
        return httpx.Client(
            auth=(user, self.users[user]),
            verify=ssl.create_default_context(cafile=str(self.ca_file)),
            headers={"Accept": "application/json"},
            timeout=QUESTION_TIMEOUT,
        )

    def stop(self) -> None:
        """End the server and every job that it still runs."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_TIMEOUT)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_TIMEOUT)

    def __enter__(self) -> RealUnicore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def missing() -> str | None:
    """Why no server can be had here, or None. Asks Maven Central only where the jars are not there yet."""
    java = shutil.which("java")
    if java is None:
        return "no java"
    told = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=QUESTION_TIMEOUT, check=False)
    version = re.search(r'version "(\d+)', told.stderr)
    if version is None or int(version[1]) < JAVA_AT_LEAST:
        return f"java is older than {JAVA_AT_LEAST}"
    if _resolved():
        return None
    if shutil.which("mvn") is None:
        return "no mvn"
    try:
        resolve()
    except subprocess.SubprocessError as error:
        return f"Maven Central did not give what pom.xml asks for: {error}"
    return None


def resolve() -> Path:
    """The directory with the server's jars: fetched once for each state of `pom.xml`.

    Raises:
        subprocess.SubprocessError: Maven failed or took too long; `build/unicore/maven.log` says why.
    """
    libraries = BUILD / "lib"
    if _resolved():
        return libraries
    shutil.rmtree(libraries, ignore_errors=True)
    BUILD.mkdir(parents=True, exist_ok=True)
    command = ["mvn", "--batch-mode", "--no-transfer-progress", "--file", str(HERE / "pom.xml")]
    with (BUILD / "maven.log").open("wb") as log:
        subprocess.run(
            [*command, "dependency:copy-dependencies", f"-DoutputDirectory={libraries}"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=RESOLVE_TIMEOUT,
            check=True,
        )
    _stamp().write_text(_recipe())
    return libraries


def start(
    directory: Path,
    *,
    site: str = "REAL",
    users: Mapping[str, str] = USERS,
    session_lifetime: int = 28800,
    settings: Mapping[str, str] | None = None,
) -> RealUnicore:
    """Start a server in an empty directory and wait until it answers.

    Args:
        directory: Where its configuration, state, jobs and log go.
        site: The name it gives itself.
        users: User name to role.
        session_lifetime: Seconds until a security session is forgotten.
        settings: More lines for the server's configuration; they win.

    Raises:
        UnicoreDidNotStart: With the end of the server's log.
    """
    libraries = resolve()
    directory = directory.resolve()
    port = _free_port()
    passwords = {user: secrets.token_urlsafe(12) for user in users}
    _write_credential(directory, keystore_password := secrets.token_hex(12))
    _write_users(directory, users, passwords)
    values = {
        "site": site,
        "port": str(port),
        "directory": str(directory),
        "keystore_password": keystore_password,
        "session_lifetime": str(session_lifetime),
    }
    _write_configuration(directory, values, settings or {})
    server = RealUnicore(
        url=f"https://localhost:{port}/rest/core",
        ca_file=directory / "server.pem",
        users=passwords,
        directory=directory,
        process=_launch(directory, libraries),
    )
    try:
        _wait(server)
    except BaseException:
        server.stop()
        raise
    return server


def _recipe() -> str:
    return hashlib.sha256((HERE / "pom.xml").read_bytes()).hexdigest()


def _stamp() -> Path:
    return BUILD / "lib" / ".resolved"


def _resolved() -> bool:
    return _stamp().is_file() and _stamp().read_text() == _recipe()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _write_credential(directory: Path, password: str) -> None:
    """A self-signed certificate for this machine, which is its own authority, and its key."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, "localhost"), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test")],
    )
    here = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName(here), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    (directory / "server.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    store = pkcs12.serialize_key_and_certificates(
        b"server", key, certificate, None, BestAvailableEncryption(password.encode())
    )
    (directory / "server.p12").write_bytes(store)


def _write_users(directory: Path, users: Mapping[str, str], passwords: Mapping[str, str]) -> None:
    """`users.txt`: who can log in, as which DN. `roles.json`: what a DN may do."""
    lines, roles = [], {}
    for user, role in users.items():
        dn, salt = f"CN={user}, O=Test", secrets.token_hex(16)
        digest = hashlib.md5((salt + passwords[user]).encode()).hexdigest()
        lines.append(f"{user}:{digest}:{salt}:{dn}\n")
        if role:
            roles[dn] = {"role": role, "xlogin": [user], "group": ["hpc"]}
    (directory / "users.txt").write_text("".join(lines))
    (directory / "roles.json").write_text(json.dumps(roles, indent=2))


def _write_configuration(directory: Path, values: Mapping[str, str], settings: Mapping[str, str]) -> None:
    for name in ("jobs", "work", "storages", "data"):
        (directory / name).mkdir()
    for name in ("idb.json", "log4j2.properties"):
        shutil.copy(HERE / "conf" / name, directory)
    lines = Template((HERE / "conf" / "unicorex.config").read_text()).substitute(values).splitlines()
    ours = [line for line in lines if line.partition("=")[0] not in settings]
    ours += [f"{name}={value}" for name, value in settings.items()]
    (directory / "unicorex.config").write_text("\n".join(ours) + "\n")


def _launch(directory: Path, libraries: Path) -> subprocess.Popen[bytes]:
    command = ["java", "-Xmx512m", f"-Dlog4j.configurationFile={directory / 'log4j2.properties'}"]
    with (directory / "server.log").open("wb") as log:
        return subprocess.Popen(
            [*command, "-cp", f"{libraries}/*", "eu.unicore.uas.UAS", "unicorex.config"],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait(server: RealUnicore) -> None:
    """Until it says that it is up, and answers: it answers before its job management is there."""
    name = next(iter(server.users))
    deadline = time.monotonic() + START_TIMEOUT
    with server.client(name) as client:
        while time.monotonic() < deadline:
            if server.process.poll() is not None:
                raise UnicoreDidNotStart(f"it ended with {server.process.returncode}:\n{server.log[-LOG_TAIL:]}")
            if STARTED in server.log:
                with contextlib.suppress(httpx.TransportError):
                    client.get(server.url)
                    return
            time.sleep(0.1)
    raise UnicoreDidNotStart(f"it did not answer within {START_TIMEOUT} s:\n{server.log[-LOG_TAIL:]}")
