"""Blocks as code: what a file says is saved, or nothing is, with one error that says what is wrong."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefect_mantik import FirecrestSite, MantikConnection, MantikCredentials, MantikSite, TrainingJob
from prefect_mantik.block_files import asave_blocks, read_block_file
from prefect_mantik.documents import aload_block, reference
from prefect_mantik.errors import BlockInvalid, ConfigurationError, EnvironmentInvalid, MantikError
from prefect_mantik.loop import call

SANDBOX_FILE = Path(__file__).parents[1] / "blocks" / "sandbox.yaml"
PASSWORD = "canary-Pw-f11e5"
CLIENT_SECRET = "canary-Secret-c1"
IDS = [f"5ec4e7aa-0000-4000-8000-{number:012d}" for number in range(2)]
AN_ID = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"
VARIABLES = {
    "MANTIK_USERNAME": "alice",
    "MANTIK_PASSWORD": PASSWORD,
    "MANTIK_API_URL": "http://127.0.0.1:7100",
    "MLFLOW_TRACKING_URI": "http://127.0.0.1:7100/tracking/",
    "MANTIK_PROJECT_ID": AN_ID,
    "MANTIK_EXPERIMENT_REPOSITORY_ID": AN_ID,
    "MANTIK_CODE_REPOSITORY_ID": AN_ID,
    "MANTIK_COMPUTE_BUDGET_ACCOUNT": "budget",
    "MANTIK_CONNECTION_ID_ALDER": IDS[0],
    "MANTIK_UNICORE_USERNAME": "alice-at-hpc",
    "MANTIK_UNICORE_PASSWORD": "another-Pw-1",
    "MANTIK_FIRECREST_CLIENT_ID": "alice-client",
    "MANTIK_FIRECREST_CLIENT_SECRET": "another-Secret-2",
    "MANTIK_SANDBOX_ALDER_URL": "http://127.0.0.1:7100/alder/rest/core",
    "MANTIK_SANDBOX_BIRCH_URL": "http://127.0.0.1:7100/birch/rest/core",
    "MANTIK_SANDBOX_CEDAR_URL": "http://127.0.0.1:7100/cedar",
    "MANTIK_SANDBOX_CEDAR_TOKEN_URL": "http://127.0.0.1:7100/cedar/token",
    "MANTIK_SANDBOX_CEDAR_ROOT": "/scratch/alice",
}
SAVED = [
    "mantik-credentials/sandbox",
    "mantik-project/sandbox",
    "mantik-connection/alder",
    "mantik-site/alder",
    "training-job/train-alder",
    "unicore-credentials/sandbox",
    "unicore-site/birch",
    "training-job/train-birch",
    "firecrest-credentials/sandbox",
    "firecrest-site/cedar",
    "training-job/train-cedar",
]


def a_file(folder: Path, text: str) -> Path:
    path = folder / "blocks.yaml"
    path.write_text(textwrap.dedent(text))
    return path


def save(path: Path, variables: dict[str, str] = VARIABLES) -> list[str]:
    return call(asave_blocks, read_block_file(path), variables)


# --- The sandbox's file ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved_twice(prefect_server: Any) -> list[list[str]]:
    """What two saves answered; the second one of the first blocks, with another Connection ID for alder."""
    changed = {**VARIABLES, "MANTIK_CONNECTION_ID_ALDER": IDS[1]}
    return [save(SANDBOX_FILE), call(asave_blocks, read_block_file(SANDBOX_FILE)[:3], changed)]


def test_a_file_creates_and_then_updates_its_blocks(saved_twice: list[list[str]], prefect_server: Any) -> None:
    assert saved_twice == [SAVED, SAVED[:3]]
    assert set(SAVED) <= prefect_server.documents()
    assert str(call(aload_block, MantikConnection, "alder").id) == IDS[1]
    assert call(aload_block, FirecrestSite, "cedar").root == VARIABLES["MANTIK_SANDBOX_CEDAR_ROOT"]


REFERENCES = {
    "mantik-connection/alder": {"credentials": "mantik-credentials/sandbox"},
    "mantik-site/alder": {"connection": "mantik-connection/alder"},
    "mantik-project/sandbox": {"credentials": "mantik-credentials/sandbox"},
    "training-job/train-alder": {"project": "mantik-project/sandbox", "site": "mantik-site/alder"},
    "unicore-site/birch": {"login": "unicore-credentials/sandbox"},
    "training-job/train-birch": {"project": "mantik-project/sandbox", "site": "unicore-site/birch"},
    "firecrest-site/cedar": {"login": "firecrest-credentials/sandbox"},
    "training-job/train-cedar": {"project": "mantik-project/sandbox", "site": "firecrest-site/cedar"},
}


@pytest.mark.parametrize("saved", REFERENCES)
def test_parts_stay_references(saved_twice: list[list[str]], prefect_server: Any, saved: str) -> None:
    document = prefect_server.document(saved)
    parts = {field: part["block_document"] for field, part in document["block_document_references"].items()}
    named = {field: f"{part['block_type']['slug']}/{part['name']}" for field, part in parts.items()}
    assert named == REFERENCES[saved]
    shown = json.dumps(document)
    assert not [secret for secret in (PASSWORD, CLIENT_SECRET, *IDS) if secret in shown]


def test_no_block_holds_a_copy_of_another_ones_secret(saved_twice: list[list[str]], prefect_server: Any) -> None:
    document = prefect_server.document("mantik-credentials/sandbox")
    try:
        prefect_server.request("PATCH", f"/block_documents/{document['id']}", {"data": {"password": "changed"}})
        job = call(aload_block, TrainingJob, "train-alder")
        holders = [job.project.credentials, job.site.connection.credentials]
        assert [holder.password.get_secret_value() for holder in holders] == ["changed", "changed"]
    finally:
        prefect_server.request("PATCH", f"/block_documents/{document['id']}", {"data": {"password": PASSWORD}})


def test_what_was_saved_can_be_submitted(saved_twice: list[list[str]]) -> None:
    job = call(aload_block, TrainingJob, "train-cedar")
    assert job.spec().parameters == {"learning-rate": 0.001}
    assert job.spec().backend_config["Firecrest"] == {
        "ApiUrl": VARIABLES["MANTIK_SANDBOX_CEDAR_URL"],
        "TokenUrl": VARIABLES["MANTIK_SANDBOX_CEDAR_TOKEN_URL"],
        "Machine": "cedar",
    }
    site = job.site.open(job.project)
    assert (site.kind, site.name) == ("firecrest", "cedar")


def test_saving_again_takes_away_what_the_file_no_longer_says(prefect_server: Any, tmp_path: Path) -> None:
    login = "type: mantik-credentials, name: shrinks, username: alice, password: {env: MANTIK_PASSWORD}"
    for more, endpoints, self_hosted in (
        (
            "self_hosted: true, endpoints: {runs: GET /a, run_logs: GET /b}",
            {"runs": "GET /a", "run_logs": "GET /b"},
            True,
        ),
        ("endpoints: {runs: GET /c}", {"runs": "GET /c"}, False),
        ("endpoints: {}", {}, False),
    ):
        save(a_file(tmp_path, f"blocks: [{{{login}, {more}}}]\n"))
        loaded = call(aload_block, MantikCredentials, "shrinks")
        assert (loaded.endpoints, loaded.self_hosted) == (endpoints, self_hosted)


def test_saving_again_repairs_what_the_ui_lost(prefect_server: Any, tmp_path: Path) -> None:
    text = """
        blocks:
          - {type: mantik-credentials, name: mended, username: alice, password: {env: MANTIK_PASSWORD}}
          - type: mantik-connection
            name: mended
            connection_id: {env: MANTIK_CONNECTION_ID_ALDER}
            credentials: {block: mantik-credentials/mended}
    """
    save(a_file(tmp_path, text))
    document = prefect_server.document("mantik-connection/mended")
    lost = {**document["data"], "credentials": {"username": "alice", "password": "********"}}
    edited = {"data": lost, "merge_existing_data": False}
    prefect_server.request("PATCH", f"/block_documents/{document['id']}", edited)
    with pytest.raises(BlockInvalid, match="asterisks"):
        call(aload_block, MantikConnection, "mended")
    save(a_file(tmp_path, text))
    connection = call(aload_block, MantikConnection, "mended")
    assert connection.credentials.password.get_secret_value() == PASSWORD
    assert reference(connection.credentials) == "mantik-credentials/mended"


def test_a_block_of_the_server_can_be_a_part(saved_twice: list[list[str]], tmp_path: Path) -> None:
    path = a_file(
        tmp_path,
        """
        blocks:
          - type: mantik-site
            name: larger
            connection: {block: mantik-connection/alder}
            backend_config: {UnicoreApiUrl: {env: MANTIK_SANDBOX_BIRCH_URL}, Resources: {Queue: large}}
        """,
    )
    assert save(path) == ["mantik-site/larger"]
    assert reference(call(aload_block, MantikSite, "larger").connection) == "mantik-connection/alder"


# --- The files to copy ----------------------------------------------------------------------------------------------

TO_COPY = {
    "platform.yaml": ("training-job/train-juwels", "mantik"),
    "unicore.yaml": ("training-job/train-juwels-direct", "unicore"),
    "firecrest.yaml": ("training-job/train-clariden-direct", "firecrest"),
}
FOR_A_COPY = {
    **VARIABLES,
    "MANTIK_CONNECTION_ID": IDS[0],
}


def test_each_file_has_a_test() -> None:
    assert {path.name for path in SANDBOX_FILE.parent.iterdir()} == {SANDBOX_FILE.name, *TO_COPY}


@pytest.fixture
def saved_copy(prefect_server: Any, request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """What the file of a test saved, until the test is over."""
    before = prefect_server.documents()
    saved = save(SANDBOX_FILE.parent / request.getfixturevalue("file"), FOR_A_COPY)
    yield saved
    for one in sorted(prefect_server.documents() - before):
        prefect_server.request("DELETE", f"/block_documents/{prefect_server.document(one)['id']}")


@pytest.mark.parametrize("file", TO_COPY)
def test_a_file_to_copy_gives_a_job_that_can_be_submitted(
    saved_copy: list[str], prefect_server: Any, file: str
) -> None:
    name, kind = TO_COPY[file]
    assert saved_copy[-1] == name
    job = call(aload_block, TrainingJob, name.partition("/")[2])
    assert job.spec().parameters == {"epochs": 10}
    site = job.site.open(job.project)
    assert (site.kind, site.reference) == (kind, saved_copy[-2])
    for saved in saved_copy:
        shown = json.dumps(prefect_server.document(saved))
        assert not [secret for secret in (PASSWORD, CLIENT_SECRET, IDS[0]) if secret in shown]


# --- What is refused ------------------------------------------------------------------------------------------------

GOOD = "{type: mantik-credentials, name: refused-good, username: alice, password: {env: MANTIK_PASSWORD}}"

UNREADABLE: dict[str, tuple[str, str]] = {
    "not YAML": ("blocks: [", "is not valid YAML"),
    "empty": ("", "has no list `blocks`"),
    "a list": ("- a\n", "has no list `blocks`"),
    "no blocks": ("blocks: []\n", "has no list `blocks`"),
    "blocks by name": ("blocks: {a: b}\n", "has no list `blocks`"),
    "not a block": (f"blocks: [{GOOD}, mantik-site]\n", "block 2: .*dictionary"),
    "no type": ("blocks: [{name: x}]\n", "block 1: type: Field required"),
    "no name": ("blocks: [{type: mantik-site}]\n", "block 1: name: Field required"),
    "bad name": ("blocks: [{type: mantik-site, name: My Site}]\n", "block 1: name: "),
    "empty name": ("blocks: [{type: mantik-site, name: ''}]\n", "block 1: name: "),
    "a name with a line end": ('blocks: [{type: mantik-site, name: "a\\n"}]\n', "block 1: name: "),
    "a name that is a number": ("blocks: [{type: mantik-site, name: 7}]\n", "block 1: name: "),
    "unknown type": (
        "blocks: [{type: mantik-sight, name: x}]\n",
        "mantik-sight/x: there is no block type 'mantik-sight'.*mantik-site",
    ),
    "unknown fields": (
        "blocks: [{type: mantik-credentials, name: x, user: a, passwd: b}]\n",
        "mantik-credentials/x: unknown field passwd, user; its fields are username, password",
    ),
    "the same block twice": (f"blocks: [{GOOD}, {GOOD}]\n", "mantik-credentials/refused-good.*twice"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, case: str) -> None:
    text, message = UNREADABLE[case]
    with pytest.raises(ConfigurationError, match=message) as raised:
        read_block_file(a_file(tmp_path, text))
    assert "blocks.yaml" in str(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.yaml cannot be read: No such file"):
        read_block_file(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
        read_block_file(tmp_path)


def test_bytes_that_are_not_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "blocks.yaml").write_bytes(b"blocks: \xff\xfe\n")
    with pytest.raises(ConfigurationError, match="is not valid YAML"):
        read_block_file(tmp_path / "blocks.yaml")


def test_an_error_in_the_yaml_names_the_place_and_shows_no_line_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is not valid YAML") as raised:
        read_block_file(a_file(tmp_path, f"blocks:\n  - password: '{PASSWORD}\n"))
    assert "line 2" in str(raised.value)
    assert PASSWORD not in str(raised.value)


CONNECTION = "type: mantik-connection, name: refused, connection_id: {env: ID}"
LOGIN = "type: mantik-credentials, name: refused, username: alice"
PROJECT = "type: mantik-project, name: refused, credentials: {block: mantik-credentials/refused-good}"

REFUSED: dict[str, tuple[str, type[MantikError], list[str]]] = {
    "missing variables": (
        f"{{{LOGIN}, password: {{env: NOT_SET}}}}, {{{PROJECT}, project_id: {{env: NOR_THIS}}}}",
        EnvironmentInvalid,
        ["NOT_SET is not set", "NOR_THIS is not set"],
    ),
    "a bad UUID in a variable": (
        f"{{{CONNECTION}, credentials: {{block: mantik-credentials/refused-good}}}}",
        BlockInvalid,
        ["mantik-connection/refused: ", "connection_id: ", "UUID", "Nothing was saved"],
    ),
    "bad UUIDs in a project": (
        f"{{{PROJECT}, project_id: {{env: ID}}, experiment_repository_id: {{env: ID}}}}",
        BlockInvalid,
        ["project_id: ", "experiment_repository_id: ", "code_repository_id: "],
    ),
    "a bad URL": (
        f"{{{LOGIN}, password: {{env: MANTIK_PASSWORD}}, api_url: {{env: ID}}}}",
        BlockInvalid,
        ["mantik-credentials/refused: ", "api_url: "],
    ),
    "no password": (f"{{{LOGIN}}}", BlockInvalid, ["password: Field required"]),
    "a masked password": (f"{{{LOGIN}, password: {{env: MASKED}}}}", BlockInvalid, ["password: is only asterisks"]),
    "a secret in the file": (
        f"{{{LOGIN}, password: in-clear}}",
        ConfigurationError,
        ["password is a secret: write {env"],
    ),
    "a bad backend config": (
        f"{{{CONNECTION}, credentials: {{block: mantik-credentials/refused-good}}, connection_id: {{env: AN_ID}}}},"
        "{type: mantik-site, name: refused, connection: {block: mantik-connection/refused},"
        " backend_config: {Resources: {}}}",
        BlockInvalid,
        ["mantik-site/refused: ", "backend_config: "],
    ),
    "a part of another type": (
        f"{{{CONNECTION}, credentials: {{block: mantik-project/sandbox}}}}",
        BlockInvalid,
        ["credentials: "],
    ),
    "a part that is nowhere": (
        f"{{{CONNECTION}, credentials: {{block: mantik-credentials/nowhere}}}}",
        BlockInvalid,
        ["no saved block mantik-credentials/nowhere"],
    ),
    "a part that comes later in the file": (
        f"{{{PROJECT.replace('refused-good', 'later')}}}, {{{LOGIN.replace('refused', 'later')}, password: x}}",
        ConfigurationError,
        ["mantik-credentials/later"],
    ),
    "a part without a name": (
        f"{{{CONNECTION}, credentials: {{block: mantik-credentials}}}}",
        ConfigurationError,
        ["'mantik-credentials' names no block"],
    ),
    "a part of an unknown type": (
        f"{{{CONNECTION}, credentials: {{block: s3-bucket/x}}}}",
        ConfigurationError,
        ["'s3-bucket/x' names no block"],
    ),
}
BAD_VALUE = "canary-no-uuid-77"


@pytest.fixture
def nothing_is_saved(saved_twice: list[list[str]], prefect_server: Any) -> Iterator[None]:
    before = prefect_server.documents()
    yield
    assert prefect_server.documents() == before


@pytest.mark.usefixtures("nothing_is_saved")
@pytest.mark.parametrize("case", REFUSED)
def test_one_wrong_block_and_nothing_is_saved(tmp_path: Path, case: str) -> None:
    entries, kind, parts = REFUSED[case]
    path = a_file(tmp_path, f"blocks: [{GOOD}, {entries}]\n")
    with pytest.raises(kind) as raised:
        save(path, {**VARIABLES, "ID": BAD_VALUE, "AN_ID": AN_ID, "MASKED": "****"})
    text = str(raised.value)
    assert [part for part in parts if part not in text] == []
    assert not [secret for secret in (PASSWORD, BAD_VALUE) if secret in text]


def test_all_missing_variables_are_listed(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentInvalid) as raised:
        save(SANDBOX_FILE, {"MANTIK_PASSWORD": PASSWORD})
    assert [finding.split()[0] for finding in raised.value.findings] == sorted(set(VARIABLES) - {"MANTIK_PASSWORD"})
    assert PASSWORD not in str(raised.value)
