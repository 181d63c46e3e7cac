"""Blocks as users meet them: described, saved, loaded from any process, never leaking, and clear when damaged."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin
from uuid import UUID

import pytest
from prefect import flow, get_run_logger
from prefect.blocks.core import Block
from prefect.testing.standard_test_suites import BlockStandardTestSuite
from pydantic import ValidationError

from prefect_mantik import (
    FirecrestCredentials,
    FirecrestSite,
    MantikConnection,
    MantikCredentials,
    MantikProject,
    MantikSite,
    TrainingJob,
    UnicoreCredentials,
    UnicoreSite,
    _blocks,
)
from prefect_mantik.documents import aload_block, reference
from prefect_mantik.errors import BlockInvalid, EnvironmentInvalid

BLOCKS: list[type[Block]] = [getattr(_blocks, name) for name in _blocks.__all__]
FIELDS = [
    pytest.param(field, id=f"{block.__name__}.{name}") for block in BLOCKS for name, field in block.model_fields.items()
]

PASSWORD = "canary-Pw-7d1f0e"
CONNECTION_ID = "ca4a4700-1111-4222-8333-5eed5eed5eed"
SECRETS = (PASSWORD, CONNECTION_ID)
AN_ID = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"
NAME = "canary-holder"
CONFIG = {"UnicoreApiUrl": "https://unicore.example.org/SITE/rest/core", "Resources": {"Queue": "batch"}}
FIRECREST: dict[str, Any] = {
    "api_url": "https://api.example.org/hpc/firecrest/v2",
    "token_url": "https://auth.example.org/token",
    "system": "daint",
    "root": "/scratch/alice/mantik",
    "backend_config": {"Resources": {"Queue": "normal"}},
}

TREE = {
    "TrainingJob": ["MantikProject", "MantikSite"],
    "MantikSite": ["MantikConnection"],
    "MantikProject": ["MantikCredentials"],
    "MantikConnection": ["MantikCredentials"],
    "MantikCredentials": [],
    "UnicoreSite": ["UnicoreCredentials"],
    "UnicoreCredentials": [],
    "FirecrestSite": ["FirecrestCredentials"],
    "FirecrestCredentials": [],
}


def a_job() -> TrainingJob:
    credentials = MantikCredentials(username="alice", password=PASSWORD)
    return TrainingJob(
        project=MantikProject(
            credentials=credentials,
            project_id=AN_ID,
            experiment_repository_id=AN_ID,
            code_repository_id=AN_ID,
        ),
        site=MantikSite(
            connection=MantikConnection(connection_id=CONNECTION_ID, provider="UNICORE", credentials=credentials),
            backend_config=CONFIG,
        ),
        parameters={"epochs": 2},
    )


def parts(job: TrainingJob) -> list[Block]:
    """A job and all that is in it, parts first."""
    return [job.project.credentials, job.project, job.site.connection, job.site, job]


def direct_parts() -> list[Block]:
    """The blocks of the sites that are reached directly."""
    login = UnicoreCredentials(username="alice", password=PASSWORD)
    client = FirecrestCredentials(client_id="alice", client_secret=PASSWORD)
    return [
        login,
        UnicoreSite(api_url=CONFIG["UnicoreApiUrl"], login=login, backend_config=CONFIG),
        client,
        FirecrestSite(**FIRECREST, login=client),
    ]


@pytest.fixture(scope="module")
def saved(prefect_server: Any) -> TrainingJob:
    job = a_job()
    for block in (*parts(job), *direct_parts()):
        block.save(NAME)
    return job


def nested_blocks(block: Block) -> list[Block]:
    return [value for name in type(block).model_fields if isinstance(value := getattr(block, name), Block)]


# --- Described ------------------------------------------------------------------------------------------------------


class TestStandard(BlockStandardTestSuite):
    """Prefect's own suite for blocks."""

    @pytest.fixture(params=BLOCKS, ids=_blocks.__all__)
    def block(self, request: pytest.FixtureRequest) -> type[Block]:
        return request.param

    @pytest.mark.network
    def test_has_a_valid_image(self, block: type[Block]) -> None:
        super().test_has_a_valid_image(block)


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_says_what_it_is(field: Any) -> None:
    assert field.title
    assert field.title[0].isupper()
    assert field.description
    assert field.description.endswith(".")


def alternatives(annotation: Any) -> set[Any]:
    """The types that a field may hold."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return {one for argument in get_args(annotation) for one in alternatives(argument)}
    return {annotation}


@pytest.mark.parametrize("field", FIELDS)
def test_no_field_is_typed_by_a_base_class(field: Any) -> None:
    held = {one for one in alternatives(field.annotation) if isinstance(one, type) and issubclass(one, Block)}
    assert held <= set(BLOCKS)
    assert not [(base, block) for base in held for block in BLOCKS if block is not base and issubclass(block, base)]


def test_a_site_is_one_of_the_concrete_site_blocks() -> None:
    assert alternatives(TrainingJob.model_fields["site"].annotation) == {MantikSite, UnicoreSite, FirecrestSite}


# --- Saved and loaded -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BLOCKS, ids=_blocks.__all__)
def test_loads_in_this_process(saved: TrainingJob, kind: type[Block]) -> None:
    loaded = kind.load(NAME)
    assert type(loaded) is kind
    assert [type(part).__name__ for part in nested_blocks(loaded)] == TREE[kind.__name__]


def test_loads_with_all_values(saved: TrainingJob) -> None:
    loaded = TrainingJob.load(NAME)
    assert loaded.project.credentials.password.get_secret_value() == PASSWORD
    assert loaded.site.connection.id == UUID(CONNECTION_ID)
    assert loaded.spec() == saved.spec()


FRESH = """
import hashlib, json, sys
from prefect.blocks.core import Block
from pydantic import SecretStr

def described(value):
    if isinstance(value, Block):
        kind = type(value)
        return {"class": f"{kind.__module__}.{kind.__name__}",
                **{name: described(getattr(value, name)) for name in kind.model_fields}}
    if isinstance(value, SecretStr):
        return hashlib.sha256(value.get_secret_value().encode()).hexdigest()
    return None

assert "prefect_mantik" not in sys.modules
print(json.dumps([described(Block.load(reference)) for reference in sys.argv[1:]]))
"""


def test_loads_in_a_process_that_never_heard_of_us(saved: TrainingJob, prefect_server: Any, tmp_path: Path) -> None:
    references = [f"{kind.get_block_type_slug()}/{NAME}" for kind in BLOCKS]
    done = subprocess.run(
        [sys.executable, "-c", FRESH, *references],
        env=prefect_server.environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = dict(zip(BLOCKS, json.loads(done.stdout), strict=True))
    assert [found["class"] for found in loaded.values()] == [f"{kind.__module__}.{kind.__name__}" for kind in BLOCKS]
    job, digests = loaded[TrainingJob], [hashlib.sha256(secret.encode()).hexdigest() for secret in SECRETS]
    connection = job["site"]["connection"]
    assert [connection["credentials"]["password"], connection["connection_id"]] == digests
    assert job["project"]["credentials"]["class"] == "prefect_mantik.credentials.MantikCredentials"


def test_reference_names_what_was_saved_also_when_nested(saved: TrainingJob) -> None:
    loaded = TrainingJob.load(NAME)
    names = [f"{type(block).get_block_type_slug()}/{NAME}" for block in parts(loaded)]
    assert [reference(block) for block in parts(loaded)] == names
    assert reference(loaded.site.connection.credentials) == f"mantik-credentials/{NAME}"
    assert reference(a_job().site) is None


@pytest.mark.parametrize("name", [NAME, f"training-job/{NAME}"])
async def test_aload_block_takes_both_forms_of_a_name(saved: TrainingJob, name: str) -> None:
    assert reference(await aload_block(TrainingJob, name)) == f"training-job/{NAME}"


@pytest.mark.parametrize("name", ["nowhere", "training-job/nowhere"])
async def test_aload_block_says_that_there_is_no_such_block(prefect_server: Any, name: str) -> None:
    with pytest.raises(BlockInvalid, match=r"no saved block training-job/nowhere\."):
        await aload_block(TrainingJob, name)


def test_a_document_that_an_earlier_version_saved_still_loads(saved: TrainingJob, prefect_server: Any) -> None:
    """Version 0.1 knew sites behind the platform only: its schema is another one, and stays with the document."""
    schema = json.loads((Path(__file__).parent / "documents" / "training-job-0.1.json").read_text())
    model = prefect_server.document(f"training-job/{NAME}")
    made = prefect_server.request(
        "POST",
        "/block_schemas/",
        {"fields": schema, "block_type_id": model["block_type_id"], "capabilities": ["run-job"], "version": "0.1.0"},
    )
    assert made["id"] != model["block_schema_id"]
    data = {"project": ref(prefect_server, MantikProject), "site": ref(prefect_server, MantikSite), "commit": "c0ffee"}
    document = {
        "name": "saved-by-0-1",
        "data": data,
        "block_type_id": model["block_type_id"],
        "block_schema_id": made["id"],
    }
    prefect_server.request("POST", "/block_documents/", document)
    loaded = TrainingJob.load("saved-by-0-1")
    assert (type(loaded.site), loaded.commit, loaded.directory) == (MantikSite, "c0ffee", "")
    assert loaded.spec().digest


def test_a_document_of_a_firecrest_site_still_loads(saved: TrainingJob, prefect_server: Any) -> None:
    """As version 0.1 saves them, with that version's schema."""
    fields = json.loads((Path(__file__).parent / "documents" / "firecrest-site-0.1.json").read_text())
    block_type = prefect_server.document(f"firecrest-site/{NAME}")["block_type_id"]
    made = prefect_server.request(
        "POST",
        "/block_schemas/",
        {"fields": fields, "block_type_id": block_type, "capabilities": [], "version": "0.1.0"},
    )
    document = {
        "name": "saved-by-0-1",
        "data": {**FIRECREST, "login": ref(prefect_server, FirecrestCredentials), "account": "s1"},
        "block_type_id": block_type,
        "block_schema_id": made["id"],
    }
    prefect_server.request("POST", "/block_documents/", document)
    loaded = FirecrestSite.load("saved-by-0-1")
    assert (loaded.account, loaded.root, type(loaded.login)) == ("s1", FIRECREST["root"], FirecrestCredentials)


# --- Damaged --------------------------------------------------------------------------------------------------------


@pytest.fixture
def by_hand(saved: TrainingJob, prefect_server: Any, request: pytest.FixtureRequest) -> Callable[..., str]:
    """Save a document as the UI does, past all checks; gives its name."""

    def save(kind: type[Block], data: dict[str, Any]) -> str:
        model = prefect_server.document(f"{kind.get_block_type_slug()}/{NAME}")
        name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")
        made = {key: model[key] for key in ("block_type_id", "block_schema_id")} | {"name": name, "data": data}
        prefect_server.request("POST", "/block_documents/", made)
        return name

    return save


def ref(server: Any, kind: type[Block]) -> dict[str, Any]:
    document = server.document(f"{kind.get_block_type_slug()}/{NAME}")
    return {"$ref": {"block_document_id": document["id"]}}


ASTERISKS = {"username": "alice", "password": "********"}
THREE_IDS = dict.fromkeys(["project_id", "experiment_repository_id", "code_repository_id"], AN_ID)
OWN_FIELDS = {MantikConnection: {"connection_id": CONNECTION_ID}, MantikProject: THREE_IDS}


@pytest.mark.parametrize("kind", OWN_FIELDS)
async def test_a_login_that_the_ui_lost_is_explained(
    prefect_server: Any, by_hand: Callable[..., str], kind: type[Block]
) -> None:
    data = OWN_FIELDS[kind]
    name = by_hand(kind, {**data, "credentials": ref(prefect_server, MantikCredentials)})
    await aload_block(kind, name)
    document = prefect_server.document(f"{kind.get_block_type_slug()}/{name}")
    edited = {"data": {**data, "credentials": ASTERISKS}, "merge_existing_data": False}
    prefect_server.request("PATCH", f"/block_documents/{document['id']}", edited)
    with pytest.raises(BlockInvalid, match=rf"{name} .*: credentials\.password: is only asterisks") as raised:
        await aload_block(kind, name)
    assert_no_secret(everything_said(raised.value))


async def test_a_login_lost_deep_inside_is_named_by_its_whole_path(
    prefect_server: Any, by_hand: Callable[..., str]
) -> None:
    connection = {"connection_id": CONNECTION_ID, "credentials": ASTERISKS}
    site = {"connection": connection, "backend_config": CONFIG}
    name = by_hand(TrainingJob, {"project": ref(prefect_server, MantikProject), "site": site})
    with pytest.raises(BlockInvalid, match=r"site\.connection\.credentials\.password: is only asterisks"):
        await aload_block(TrainingJob, name)


JUNK = "junk-canary-91c2"
DAMAGED: dict[str, tuple[type[Block], dict[str, Any], list[str]]] = {
    "urls": (
        MantikCredentials,
        {
            "username": "alice",
            "password": PASSWORD,
            "api_url": f"http://{JUNK}.example.org",
            "tracking_uri": f"https://alice:{JUNK}@example.org",
        },
        ["api_url", "tracking_uri"],
    ),
    "a-url-beside-others": (
        MantikCredentials,
        {"username": "", "password": "", "api_url": f"http://{JUNK}.example.org"},
        ["username", "password", "api_url"],
    ),
    "empty-form": (MantikCredentials, {}, ["username", "password"]),
    "endpoint": (MantikCredentials, {"username": "a", "password": "b", "endpoints": {"nope": "GET /"}}, ["endpoints"]),
    "connection-id": (MantikConnection, {"connection_id": JUNK}, ["connection_id", "credentials"]),
    "project": (
        MantikProject,
        {"credentials": "junk", "project_id": JUNK, "experiment_repository_id": ""},
        ["credentials", "project_id", "experiment_repository_id", "code_repository_id"],
    ),
    "site": (
        MantikSite,
        {"backend_config": {"UnicoreApiUrl": f"http://{JUNK}.example.org", "Resources": {}}, "settle": -1},
        ["connection", "backend_config", "settle"],
    ),
    "job": (TrainingJob, {"site": "junk", "parameters": [JUNK]}, ["project", "site", "parameters"]),
    "client": (FirecrestCredentials, {"client_id": "", "client_secret": ""}, ["client_id", "client_secret"]),
    "site-of-firecrest": (
        FirecrestSite,
        {
            "api_url": f"http://{JUNK}.example.org",
            "token_url": f"https://alice:{JUNK}@example.org",
            "system": f"{JUNK} x",
            "root": f"$SCRATCH/{JUNK}",
            "backend_config": {},
            "settle": -1,
        },
        ["api_url", "token_url", "system", "root", "settle"],
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
async def test_wrong_fields_are_all_named_and_none_is_shown(by_hand: Callable[..., str], case: str) -> None:
    kind, data, fields = DAMAGED[case]
    name = by_hand(kind, data)
    with pytest.raises(BlockInvalid) as raised:
        await aload_block(kind, name)
    text = str(raised.value)
    assert f"{kind.get_block_type_slug()}/{name}" in text
    assert [field for field in fields if f"{field}: " not in text] == []
    assert_no_secret(everything_said(raised.value), (*SECRETS, JUNK))


# --- Leaking --------------------------------------------------------------------------------------------------------


def traces(secret: str) -> set[bytes]:
    """What a secret looks like: plain, a UUID without its dashes, and in base64 from any position on."""
    plain = {secret, secret.upper(), secret.replace("-", "")}
    found = {text.encode() for text in plain}
    for text, shift in ((text, shift) for text in plain for shift in range(3)):
        encoded = base64.b64encode(b"\0" * shift + text.encode())
        found.add(encoded[4:-4])  # whole groups that hold nothing but the secret
    return found


def assert_no_secret(text: str | bytes, secrets: Iterable[str] = SECRETS) -> None:
    data = text if isinstance(text, bytes) else text.encode()
    assert not [secret for secret in secrets if any(trace in data for trace in traces(secret))]


def everything_said(error: BaseException) -> str:
    """The texts of an error and of all that led to it, shown in a traceback or not."""
    said, one = [], error
    while one is not None:
        said += [*traceback.format_exception(one), repr(one), str(one)]
        one = one.__cause__ or one.__context__
    return "\n".join(said)


@pytest.mark.parametrize("hidden", [lambda s: s.encode(), lambda s: base64.b64encode(b"user:" + s.encode())])
def test_the_search_for_secrets_finds_them(hidden: Callable[[str], bytes]) -> None:
    for secret in SECRETS:
        with pytest.raises(AssertionError):
            assert_no_secret(b"..." + hidden(secret) + b"...")
    assert_no_secret(b"... nothing here ...")


SHOWN: dict[str, Callable[[Block], str]] = {
    "repr": repr,
    "str": str,
    "format": lambda block: f"{block}",
    "model_dump": lambda block: repr(block.model_dump()),
    "model_dump of a json": lambda block: repr(block.model_dump(mode="json")),
    "model_dump_json": lambda block: block.model_dump_json(),
    "get_client": lambda block: repr(block.get_client().__dict__) if isinstance(block, MantikCredentials) else "",
}


@pytest.mark.parametrize("show", SHOWN.values(), ids=SHOWN)
def test_no_text_of_a_block_holds_a_secret(show: Callable[[Block], str]) -> None:
    for block in (*parts(a_job()), *direct_parts()):
        assert_no_secret(show(block))


@pytest.mark.parametrize("kind", BLOCKS, ids=_blocks.__all__)
def test_prefect_shows_no_secret(saved: TrainingJob, prefect_server: Any, kind: type[Block]) -> None:
    slug = f"{kind.get_block_type_slug()}/{NAME}"
    assert_no_secret(json.dumps(prefect_server.document(slug)))
    held = json.dumps(prefect_server.document(slug, include_secrets=True))
    assert PASSWORD in held  # so it was there to be shown


def test_a_flow_run_keeps_no_secret_of_its_parameters(saved: TrainingJob, prefect_server: Any) -> None:
    @flow(name="takes-a-job", persist_result=True)
    def takes(jobs: list[TrainingJob | str]) -> str:
        get_run_logger().warning("got %s", jobs)
        return str(jobs)

    takes([TrainingJob.load(NAME), NAME])
    runs = prefect_server.request("POST", "/flow_runs/filter", {"flows": {"name": {"any_": ["takes-a-job"]}}})
    assert [run["state_type"] for run in runs] == ["COMPLETED"]
    assert "alice" in json.dumps(runs[0]["parameters"])  # so the block is in there
    assert_no_secret(json.dumps(runs))


URL = "https://alice:" + PASSWORD + "@example.org"
CREDENTIALS = {"username": "alice", "password": "x"}
REFUSED: dict[str, tuple[type[Block], dict[str, Any]]] = {
    "password without a user": (MantikCredentials, {"password": PASSWORD}),
    "password of a wrong kind": (MantikCredentials, {"username": "alice", "password": [PASSWORD]}),
    "password in the API URL": (MantikCredentials, {**CREDENTIALS, "api_url": URL}),
    "password in the tracking URI": (MantikCredentials, {**CREDENTIALS, "tracking_uri": URL}),
    "password beside a bad URL": (MantikCredentials, {"username": "a", "password": PASSWORD, "api_url": "junk"}),
    "Connection ID with a typing error": (MantikConnection, {"connection_id": CONNECTION_ID + "0"}),
    "password as a Connection ID": (MantikConnection, {"connection_id": PASSWORD, "credentials": CREDENTIALS}),
    "Connection ID as a project": (MantikProject, {"credentials": CREDENTIALS, "project_id": CONNECTION_ID + "0"}),
    "password nested": (MantikConnection, {"connection_id": CONNECTION_ID, "credentials": {"password": PASSWORD}}),
    "password nested deep": (
        TrainingJob,
        {"site": {"connection": {"connection_id": CONNECTION_ID, "credentials": {"password": PASSWORD}}}},
    ),
    "password in the config's URL": (MantikSite, {"backend_config": {"UnicoreApiUrl": URL}}),
    "secret without a client": (FirecrestCredentials, {"client_secret": PASSWORD}),
    "secret of a wrong kind": (FirecrestCredentials, {"client_id": "alice", "client_secret": [PASSWORD]}),
    "secret in FirecREST's URL": (FirecrestSite, {**FIRECREST, "api_url": URL}),
    "secret in the token URL": (FirecrestSite, {**FIRECREST, "token_url": URL}),
    "secret in the URL of FirecREST's config": (
        FirecrestSite,
        {**FIRECREST, "backend_config": {**FIRECREST["backend_config"], "Firecrest": {"ApiUrl": URL}}},
    ),
    "secret nested in a login": (FirecrestSite, {**FIRECREST, "login": {"client_secret": PASSWORD}}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_value_is_not_shown(case: str) -> None:
    kind, data = REFUSED[case]
    with pytest.raises(ValidationError) as raised:
        kind(**data)
    assert_no_secret(everything_said(raised.value))


@pytest.mark.parametrize("lost", ["", "   ", "*", "********"])
def test_an_empty_or_masked_secret_is_refused(lost: str) -> None:
    with pytest.raises(ValidationError, match="password"):
        MantikCredentials(username="alice", password=lost)
    with pytest.raises(ValidationError, match="connection_id"):
        MantikConnection(connection_id=lost, credentials=CREDENTIALS)
    with pytest.raises(ValidationError, match="client_secret"):
        FirecrestCredentials(client_id="alice", client_secret=lost)


# --- From the environment -------------------------------------------------------------------------------------------

VARIABLES = {
    "MANTIK_USERNAME": "alice",
    "MANTIK_PASSWORD": PASSWORD,
    "MANTIK_API_URL": "https://api.mantik.example.org/",
    "MLFLOW_TRACKING_URI": "https://api.mantik.example.org/tracking",
}


@pytest.mark.parametrize("source", ["process", "file"])
def test_credentials_from_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str) -> None:
    env_file = None
    if source == "process":
        for name, value in VARIABLES.items():
            monkeypatch.setenv(name, value)
    else:
        env_file = tmp_path / ".env"
        env_file.write_text("".join(f"export {name}='{value}'\n" for name, value in VARIABLES.items()))
    found = MantikCredentials.from_env(env_file)
    assert found.username == "alice"
    assert found.password.get_secret_value() == PASSWORD
    assert (found.api_url, found.tracking_uri) == (
        "https://api.mantik.example.org",
        "https://api.mantik.example.org/tracking",
    )


def test_the_process_wins_over_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("export MANTIK_USERNAME='bob'\nexport MANTIK_PASSWORD='x'\n")
    monkeypatch.setenv("MANTIK_USERNAME", "alice")
    assert MantikCredentials.from_env(tmp_path / ".env").username == "alice"


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({}, ["MANTIK_USERNAME", "MANTIK_PASSWORD"]),
        ({**VARIABLES, "MANTIK_PASSWORD": ""}, ["MANTIK_PASSWORD"]),
        ({**VARIABLES, "MANTIK_PASSWORD": "********"}, ["MANTIK_PASSWORD"]),
        (
            {"MANTIK_USERNAME": "alice", "MANTIK_API_URL": "http://example.org", "MLFLOW_TRACKING_URI": URL},
            ["MANTIK_PASSWORD", "MANTIK_API_URL", "MLFLOW_TRACKING_URI"],
        ),
    ],
    ids=["nothing", "empty password", "masked password", "URLs and password"],
)
def test_all_that_is_wrong_with_the_variables_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], named: list[str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(EnvironmentInvalid) as raised:
        MantikCredentials.from_env()
    assert [name for name in named if name not in str(raised.value)] == []
    assert len(raised.value.findings) == len(named)
    assert_no_secret(everything_said(raised.value))


def test_a_self_hosted_platform_may_have_any_path(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**VARIABLES, "MANTIK_API_URL": "https://hpc.example.org/mantik/api"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(EnvironmentInvalid, match="MANTIK_API_URL"):
        MantikCredentials.from_env()
    assert MantikCredentials.from_env(self_hosted=True).api_url == "https://hpc.example.org/mantik/api"


# --- Last, when everything above has happened -----------------------------------------------------------------------


def test_no_file_of_prefect_holds_a_secret(saved: TrainingJob, prefect_server: Any) -> None:
    homes = {prefect_server.home, prefect_server.database.parent}
    files = [path for home in homes for path in home.rglob("*") if path.is_file()]
    contents = b"".join(path.read_bytes() for path in files)
    assert NAME.encode() in contents  # these are the files that the blocks are in
    assert_no_secret(contents)
