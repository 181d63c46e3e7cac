"""`prefect-mantik doctor`: what it says of saved accounts and sites, and how it ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import PrefectClient
from typer.testing import CliRunner, Result

from prefect_mantik import doctor as doctor_module
from prefect_mantik.block_files import asave_blocks, read_block_file
from prefect_mantik.cli import app
from prefect_mantik.loop import call
from prefect_mantik.sandbox.process import SandboxProcess
from tests.conftest import PrefectServer
from tests.sandbox_jobs import mantik_site

BLOCKS = Path(__file__).parents[1] / "blocks" / "sandbox.yaml"
OURS = "doctor-"
CEDAR = "firecrest-site/doctor-cedar"
SUBJECTS = [
    "this machine",
    "mantik-credentials/doctor-sandbox",
    "mantik-site/doctor-alder",
    "unicore-site/doctor-birch",
    CEDAR,
]
WRONG_PASSWORD = "canary-Pw-d0c"
NO_CONNECTION = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"
WIDTH = 80

WITH_A_WRONG_PASSWORD = """
blocks:
  - {type: unicore-credentials, name: doctor-wrong, username: {env: MANTIK_UNICORE_USERNAME}, password: {env: WRONG}}
  - type: unicore-site
    name: doctor-elm
    api_url: {env: MANTIK_SANDBOX_BIRCH_URL}
    login: {block: unicore-credentials/doctor-wrong}
    backend_config: {Resources: {Queue: batch, Runtime: 10m}}
"""


def sites_with_names_of_our_own(text: str) -> str:
    """The blocks of a file without its projects and jobs, which are not looked at."""
    document = yaml.safe_load(text)
    document["blocks"] = [e for e in document["blocks"] if e["type"] not in ("mantik-project", "training-job")]
    for entry in document["blocks"]:
        entry["name"] = OURS + entry["name"]
        for name, value in entry.items():
            if isinstance(value, dict) and set(value) == {"block"}:
                entry[name] = {"block": value["block"].replace("/", f"/{OURS}")}
    return yaml.safe_dump(document, sort_keys=False)


def ours(server: PrefectServer) -> set[str]:
    return {reference for reference in server.documents() if reference.partition("/")[2].startswith(OURS)}


def delete(server: PrefectServer, references: Iterable[str]) -> None:
    for reference in references:
        server.request("DELETE", f"/block_documents/{server.document(reference)['id']}")


def save_text(text: str, directory: Path, variables: Mapping[str, str]) -> None:
    path = directory / "blocks.yaml"
    path.write_text(text)
    call(asave_blocks, read_block_file(path), variables)


@pytest.fixture(scope="module")
def all_saved(
    prefect_server: PrefectServer, mantik_sandbox: SandboxProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """The accounts and sites of blocks/sandbox.yaml: saving them takes seconds."""
    text = sites_with_names_of_our_own(BLOCKS.read_text())
    save_text(text, tmp_path_factory.mktemp("doctor"), mantik_sandbox.env)
    yield
    delete(prefect_server, ours(prefect_server))


@pytest.fixture
def saved_sites(all_saved: None, prefect_server: PrefectServer) -> Iterator[None]:
    """The accounts and sites of blocks/sandbox.yaml; what a test saves beside them does not outlive it."""
    before = ours(prefect_server)
    yield
    delete(prefect_server, ours(prefect_server) - before)


@pytest.fixture
def doctor(
    prefect_server: PrefectServer, mantik_sandbox: SandboxProcess, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Run the command in a terminal of 80 columns. Its Prefect server has our blocks only: other tests' lead nowhere.

    Whatever is said, there is no secret in it.
    """
    listed = PrefectClient.read_block_documents_by_type

    async def listed_ours(*given: Any, **named: Any) -> list[Any]:
        return [found for found in await listed(*given, **named) if (found.name or "").startswith(OURS)]

    monkeypatch.setattr(PrefectClient, "read_block_documents_by_type", listed_ours)
    monkeypatch.setenv("COLUMNS", str(WIDTH))

    def run(*arguments: str) -> Result:
        done = CliRunner().invoke(app, ["doctor", *arguments])
        assert_no_secret(done.output, mantik_sandbox)
        assert "Traceback" not in done.output
        return done

    return run


def assert_no_secret(text: str, sandbox: SandboxProcess) -> None:
    secret = re.compile("PASSWORD|TOKEN$|CONNECTION_ID|SECRET|LOGIN")
    known = {value for name, value in sandbox.env.items() if secret.search(name)} | {WRONG_PASSWORD}
    assert len(known) >= 6
    assert [value for value in known if value in text] == []
    assert re.findall(r"eyJ\w+|Basic \w+|Bearer \w+", text) == []


def assert_fits(output: str) -> None:
    """No line is too long, unless it is a single word."""
    too_long = [line for line in output.splitlines() if len(line) > WIDTH]
    assert [line for line in too_long if len(line.split()) > 1] == []


def shown(output: str, subject: str) -> str:
    """What stands below a subject, on one line."""
    below = output.split(f"{subject}\n")[1]
    return " ".join(re.split(r"^\S", below, maxsplit=1, flags=re.MULTILINE)[0].split())


def subjects(output: str) -> list[str]:
    return [line for line in output.splitlines() if not line.startswith(" ")]


def failing(output: str) -> list[str]:
    return [subject for subject in subjects(output) if "FAIL" in shown(output, subject)]


# --- All well -------------------------------------------------------------------------------------------------------


def test_every_account_and_site_is_listed_with_what_it_can_do(saved_sites: None, doctor: Callable[..., Result]) -> None:
    done = doctor()
    assert (done.exit_code, subjects(done.output), failing(done.output)) == (0, SUBJECTS, [])
    assert_fits(done.output)
    account, alder, birch, cedar = (shown(done.output, subject) for subject in SUBJECTS[1:])
    assert account.startswith("ok log in to the platform: as ")
    assert re.search(r"ok reach the tracking server: \d+ experiments$", account)
    assert "ok get the Connection" in alder
    assert alder.endswith("can: cancel, fresh state, logs")
    assert "ok submit a job that never starts, and write into its directory" in birch
    assert "ok write below " in cedar
    for direct in (birch, cedar):
        assert direct.endswith("can: cancel, files, fresh state, logs")


def test_the_platform_alone_is_not_proven_to_do_more_than_to_take_runs(
    saved_sites: None, doctor: Callable[..., Result], mantik_sandbox: SandboxProcess
) -> None:
    mantik_site(mantik_sandbox, "cedar", ask_site=False).save(f"{OURS}lone")
    done = doctor()
    assert (done.exit_code, failing(done.output)) == (0, [])
    said = shown(done.output, f"mantik-site/{OURS}lone")
    assert "ok get the Connection" in said
    assert "can:" not in said


def test_json_says_the_same(saved_sites: None, doctor: Callable[..., Result]) -> None:
    done = doctor("--json")
    told = json.loads(done.stdout)
    assert done.exit_code == 0
    assert [item["subject"] for item in told] == SUBJECTS
    assert {name for item in told for name in item} == {"subject", "findings", "can"}
    findings = [finding for item in told for finding in item["findings"]]
    assert {name for finding in findings for name in finding} == {"what", "ok", "message"}
    assert {finding["ok"] for finding in findings} == {True}
    assert told[-1]["can"] == ["cancel", "files", "fresh state", "logs"]


def test_a_check_leaves_nothing_at_the_site(
    saved_sites: None, doctor: Callable[..., Result], mantik_sandbox: SandboxProcess
) -> None:
    root = Path(mantik_sandbox.env["MANTIK_SANDBOX_CEDAR_ROOT"])
    before = [job["id"] for job in mantik_sandbox.control.jobs(live=True)]
    assert doctor().exit_code == 0
    assert [job["id"] for job in mantik_sandbox.control.jobs(live=True)] == before
    assert root.is_dir()
    assert list(root.glob("mantik-check*")) == []


@pytest.fixture
def nothing_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.OURS", "nobodys-")


def test_nothing_saved_is_said(nothing_saved: None, doctor: Callable[..., Result]) -> None:
    done = doctor()
    assert (done.exit_code, subjects(done.output)[0]) == (0, "this machine")
    assert "No account or site is saved yet: `prefect-mantik blocks save FILE` saves some." in done.output
    assert_fits(done.output)
    assert [item["subject"] for item in json.loads(doctor("--json").stdout)] == ["this machine"]


def test_a_server_that_never_saw_our_blocks_is_no_error(
    doctor: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server answers 404 for a block type that nobody registered: asked here under names that nobody has."""
    asked = PrefectClient.read_block_documents_by_type

    async def unregistered(client: PrefectClient, slug: str, *given: Any, **named: Any) -> list[Any]:
        return await asked(client, f"nobodys-{slug}", *given, **named)

    monkeypatch.setattr(PrefectClient, "read_block_documents_by_type", unregistered)
    done = doctor()
    assert (done.exit_code, subjects(done.output)[0]) == (0, "this machine")
    assert "No account or site is saved yet" in done.output


def test_more_blocks_than_a_page_holds(saved_sites: None, doctor: Callable[..., Result], monkeypatch: Any) -> None:
    """Prefect's own server gives all of a type at once, whatever page it is asked for."""
    monkeypatch.setattr("prefect_mantik.doctor._PAGE", 1)
    assert subjects(doctor().output) == SUBJECTS


def test_other_credentials_of_mlflow_are_named(doctor: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "somebody")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", WRONG_PASSWORD)
    done = doctor()
    assert done.exit_code == 0
    assert "MLFLOW_TRACKING_USERNAME" in shown(done.output, "this machine")
    assert_fits(done.output)


# --- What does not work ---------------------------------------------------------------------------------------------


def test_a_wrong_password_fails_its_site_only(
    saved_sites: None, doctor: Callable[..., Result], mantik_sandbox: SandboxProcess, tmp_path: Path
) -> None:
    save_text(WITH_A_WRONG_PASSWORD, tmp_path, {**mantik_sandbox.env, "WRONG": WRONG_PASSWORD})
    done = doctor()
    assert (done.exit_code, subjects(done.output)) == (1, [*SUBJECTS[:-1], "unicore-site/doctor-elm", CEDAR])
    assert failing(done.output) == ["unicore-site/doctor-elm"]
    said = shown(done.output, "unicore-site/doctor-elm")
    assert "FAIL log in: " in said
    assert "refused the login of " in said
    assert "Check the credentials; they are not tried again until they change." in said
    assert "submit a job" not in said  # nothing is tried as nobody
    assert_fits(done.output)
    told = {item["subject"]: item["findings"] for item in json.loads(doctor("--json").stdout)}
    assert [finding["ok"] for finding in told["unicore-site/doctor-elm"]] == [False]


@pytest.fixture
def maintenance(mantik_sandbox: SandboxProcess) -> Iterator[str]:
    """Birch takes no jobs; gives what it says."""
    message = "New chillers are put in: back on Monday at nine, ask help@birch.example for more (100 % sure)"
    mantik_sandbox.control.change_site("birch", maintenance=True, message=message)
    yield message
    mantik_sandbox.control.change_site("birch", maintenance=False, message="")


def test_a_site_in_maintenance_is_heard_in_its_own_words(
    saved_sites: None, maintenance: str, doctor: Callable[..., Result]
) -> None:
    done = doctor()
    assert done.exit_code == 1
    assert failing(done.output) == ["unicore-site/doctor-birch"]
    assert f"takes no jobs now: {maintenance}" in shown(done.output, "unicore-site/doctor-birch")
    assert_fits(done.output)


@pytest.fixture
def by_hand(saved_sites: None, prefect_server: PrefectServer) -> Callable[..., str]:
    """Save a changed copy of a document as the UI does, past all checks; gives its reference."""

    def save(model: str, **changes: Any) -> str:
        document = prefect_server.document(model, include_secrets=True)
        nested = {
            name: {"$ref": {"block_document_id": held["block_document"]["id"]}}
            for name, held in document["block_document_references"].items()
        }
        data = {**document["data"], **nested, **changes}
        made = {
            "name": f"{OURS}changed",
            "data": {name: value for name, value in data.items() if value is not None},
            "block_type_id": document["block_type_id"],
            "block_schema_id": document["block_schema_id"],
        }
        prefect_server.request("POST", "/block_documents/", made)
        return f"{model.partition('/')[0]}/{OURS}changed"

    return save


ASTERISKS = "********"
DAMAGES: dict[str, tuple[str, dict[str, Any], str]] = {
    "a field is gone": ("unicore-site/doctor-birch", {"api_url": None}, "api_url: Field required"),
    "the UI lost a nested password": (
        "unicore-site/doctor-birch",
        {"login": {"username": "alice", "password": ASTERISKS}},
        "login.password: is only asterisks",
    ),
    "the backend config is broken": (
        "unicore-site/doctor-birch",
        {"backend_config": {"Resources": {"Queue": "batch", "Wings": 2}}},
        "Wings",
    ),
    "the UI lost the account's password": (
        "mantik-credentials/doctor-sandbox",
        {"password": ASTERISKS},
        "password: is only asterisks",
    ),
    "the UI lost a Connection": ("mantik-site/doctor-alder", {"connection": None}, "connection: Field required"),
    "the UI lost a nested client secret": (
        CEDAR,
        {"login": {"client_id": "alice-client", "client_secret": ASTERISKS}},
        "login.client_secret: is only asterisks",
    ),
    "the working root holds a variable": (CEDAR, {"root": "$SCRATCH/mantik"}, "root: must be an absolute path"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_block_is_named_with_what_is_wrong(
    damage: str, by_hand: Callable[..., str], doctor: Callable[..., Result]
) -> None:
    model, changes, words = DAMAGES[damage]
    damaged = by_hand(model, **changes)
    done = doctor()
    assert (done.exit_code, failing(done.output)) == (1, [damaged])
    assert set(subjects(done.output)) == {*SUBJECTS, damaged}
    said = shown(done.output, damaged)
    assert f"The saved block {damaged} cannot be used: " in said
    assert words in said
    assert_fits(done.output)


def test_a_connection_that_is_nobodys_is_named(
    by_hand: Callable[..., str], doctor: Callable[..., Result], prefect_server: PrefectServer
) -> None:
    connection = by_hand("mantik-connection/doctor-alder", connection_id=NO_CONNECTION)
    document = prefect_server.document(connection)
    nested = {"$ref": {"block_document_id": document["id"]}}
    site = by_hand("mantik-site/doctor-alder", connection=nested, ask_site=False)
    done = doctor()
    assert (done.exit_code, failing(done.output)) == (1, [site])
    said = shown(done.output, site)
    assert "ok log in to the platform" in said
    assert f"FAIL get the Connection: the Connection ID in {connection} is none of " in said
    assert "copy it from Settings > Connections in Mantik" in said
    assert NO_CONNECTION not in done.output


@pytest.mark.parametrize(
    ("model", "url"),
    [("unicore-site/doctor-birch", "api_url"), (CEDAR, "api_url"), (CEDAR, "token_url")],
    ids=["UNICORE", "FirecREST", "FirecREST's token endpoint"],
)
def test_a_site_that_cannot_be_reached_says_so_in_the_words_of_the_call(
    by_hand: Callable[..., str], doctor: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, model: str, url: str
) -> None:
    monkeypatch.setattr(doctor_module, "_PATIENCE", 1.0)
    nowhere = "http://127.0.0.1:9/NOWHERE/rest/core"
    site = by_hand(model, **{url: nowhere})
    done = doctor()
    assert (done.exit_code, failing(done.output)) == (1, [site])
    said = shown(done.output, site)
    assert f"no connection to {nowhere}" in said
    assert said.startswith("FAIL log in")
    assert said.count("FAIL") == 1
    assert "Check the URL and the network." in said
    assert_fits(done.output)


# --- FirecREST ------------------------------------------------------------------------------------------------------


def found_at(done: Result, subject: str) -> dict[str, tuple[bool, str]]:
    """What `--json` says of a subject: how each step ended, in order."""
    [item] = [item for item in json.loads(done.stdout) if item["subject"] == subject]
    return {finding["what"]: (finding["ok"], finding["message"]) for finding in item["findings"]}


@pytest.fixture
def cedar(mantik_sandbox: SandboxProcess) -> Iterator[Callable[..., None]]:
    """Changes the site for one test."""
    yield partial(mantik_sandbox.control.change_site, "cedar")
    mantik_sandbox.control.change_site("cedar", entitled=True, unhealthy=False)


LOGIN, LIST, PARTITION = "log in, and find the system", "list our jobs", "find the partition"
SENT = "send what the backend config asks for"


def test_each_step_at_a_firecrest_site_is_told(
    by_hand: Callable[..., str], doctor: Callable[..., Result], mantik_sandbox: SandboxProcess
) -> None:
    env = mantik_sandbox.env
    write = f"write below {env['MANTIK_SANDBOX_CEDAR_ROOT']}"
    site = by_hand(CEDAR, account="sandbox-budget")
    done = doctor("--json")
    assert done.exit_code == 0
    found = found_at(done, site)
    assert list(found) == [LOGIN, LIST, PARTITION, SENT, write, "find the account"]
    assert {ok for ok, _ in found.values()} == {True}
    login, listed, *others = (message for _, message in found.values())
    assert login == f"as {env['MANTIK_FIRECREST_CLIENT_ID']}"
    assert re.fullmatch(r"\d+ in the last day", listed)
    assert others == ["batch", "", "", "sandbox-budget"]
    assert list(found_at(done, CEDAR)) == list(found)[:-1]  # its project says what is charged


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "system": ({"system": "daint"}, LOGIN, "has no system daint, only: cedar, cedar-rest"),
    "partition": (
        {"backend_config": {"Resources": {"Queue": "gpu"}}},
        PARTITION,
        "There is no partition gpu, only batch, devel.",
    ),
    "account": ({"account": "nobodys"}, "find the account", "There is no account nobodys for this user, only "),
    "root outside the file systems": ({"root": "/etc/mantik"}, "write below /etc/mantik", "is in none of the file"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_at_a_firecrest_site_is_named(
    wrong: str, by_hand: Callable[..., str], doctor: Callable[..., Result]
) -> None:
    changes, step, words = WRONG[wrong]
    site = by_hand(CEDAR, **changes)
    done = doctor("--json")
    found = found_at(done, site)
    assert done.exit_code == 1
    assert [what for what, (ok, _) in found.items() if not ok] == [step]
    assert words in found[step][1]
    assert (len(found) == 1) is (step == LOGIN)  # no step makes sense without the first
    assert all(ok for ok, _ in found_at(done, CEDAR).values())


def test_a_wrong_client_secret_is_tried_once(
    by_hand: Callable[..., str], doctor: Callable[..., Result], mantik_sandbox: SandboxProcess
) -> None:
    client = mantik_sandbox.env["MANTIK_FIRECREST_CLIENT_ID"]
    site = by_hand(CEDAR, login={"client_id": client, "client_secret": WRONG_PASSWORD})
    assert doctor().exit_code == 1
    mantik_sandbox.control.reset_requests()
    done = doctor()
    assert failing(done.output) == [site]
    said = shown(done.output, site)
    assert said.startswith(f"FAIL {LOGIN}: ")
    assert f"refused the client '{client}'" in said
    assert said.endswith("Check client id and secret; they are not tried again until they change.")
    assert mantik_sandbox.control.count(route="/firecrest-auth/token") == 0  # the good one has its token
    assert_fits(done.output)


def test_a_client_without_an_account_at_the_site(
    saved_sites: None, doctor: Callable[..., Result], cedar: Callable[..., None]
) -> None:
    cedar(entitled=False)
    done = doctor()
    assert (done.exit_code, failing(done.output)) == (1, [CEDAR])
    said = shown(done.output, CEDAR)
    assert said.startswith(f"FAIL {LOGIN}: ")
    assert "has no account at the site for 'sandbox-at-cedar'" in said
    assert LIST not in said
    assert_fits(done.output)


def test_an_unhealthy_site_says_so_within_the_patience(
    saved_sites: None, doctor: Callable[..., Result], cedar: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_module, "_PATIENCE", 2.0)
    cedar(unhealthy=True)
    began = time.monotonic()
    done = doctor()
    assert time.monotonic() - began < 30
    assert (done.exit_code, failing(done.output)) == (1, [CEDAR])
    said = shown(done.output, CEDAR)
    assert said.startswith(f"ok {LOGIN}: ")
    assert f"FAIL {LIST}: FirecREST calls the system unhealthy (scheduler: " in said
    assert "It asks again every minute or two." in said
    assert f"ok {PARTITION}: batch" in said
    assert "FAIL write below " in said
    assert_fits(done.output)


def test_a_system_without_sbatch_lines_says_what_cannot_be_sent(
    by_hand: Callable[..., str], doctor: Callable[..., Result]
) -> None:
    site = by_hand(CEDAR, system="cedar-rest")
    done = doctor()
    assert (done.exit_code, failing(done.output)) == (1, [site])
    said = shown(done.output, site)
    assert "it reads no #SBATCH lines: resources are the partition's defaults" in said
    assert f"FAIL {SENT}: " in said
    assert "Resources.Runtime cannot be sent" in said
    assert "#SBATCH" not in shown(done.output, CEDAR)


def test_a_system_without_sbatch_lines_takes_what_can_be_sent(
    by_hand: Callable[..., str], doctor: Callable[..., Result]
) -> None:
    site = by_hand(CEDAR, system="cedar-rest", backend_config={"Resources": {"Queue": "batch"}})
    done = doctor()
    assert (done.exit_code, failing(done.output)) == (0, [])
    assert f"ok {SENT}" in shown(done.output, site)
    assert_fits(done.output)


# --- As a process ---------------------------------------------------------------------------------------------------


def test_a_prefect_server_that_cannot_be_reached_is_one_line() -> None:
    command = [sys.executable, "-c", "from prefect_mantik.cli import app; app(prog_name='prefect-mantik')", "doctor"]
    nowhere = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    done = subprocess.run(command, env=nowhere, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"prefect-mantik: [^\n]*cannot be reached[^\n]*\n", done.stderr)
