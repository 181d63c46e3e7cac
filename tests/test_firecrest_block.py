"""The block of a FirecREST site: what it refuses when it is made, so that no job waits a night for nothing."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from prefect_mantik import FirecrestCredentials, FirecrestSite, MantikConnection, MantikCredentials
from prefect_mantik.errors import EnvironmentInvalid
from prefect_mantik.firecrest import ClientCredentials, KeptClient
from prefect_mantik.sites.firecrest.login import client_of
from prefect_mantik.sites.firecrest.site import DirectFirecrestSite

API = "https://api.example.org/hpc/firecrest/v2"
TOKEN_URL = "https://auth.example.org/auth/realms/r/protocol/openid-connect/token"
SECRET = "canary-S3cret-2b7"
LOGIN = FirecrestCredentials(client_id="ada", client_secret=SECRET)
RESOURCES = {"Resources": {"Queue": "normal", "Runtime": "1h"}}


def a_site(**changed: Any) -> FirecrestSite:
    given = {
        "api_url": API,
        "token_url": TOKEN_URL,
        "system": "daint",
        "login": LOGIN,
        "root": "/scratch/ada/mantik",
        "backend_config": RESOURCES,
    }
    return FirecrestSite(**{**given, **changed})


REFUSED: list[tuple[str, Any, str]] = [
    ("api_url", "https://firecrest.cscs.ch", "https://api.cscs.ch/<hpc, ml or cw>/firecrest/v2"),
    ("api_url", "https://api.example.org/firecrest/v1", "version 1, which was retired"),
    ("api_url", "http://api.example.org/v2", "plain http.*https://<host>/<platform>/firecrest/v2"),
    ("api_url", "api.example.org/v2", "does not start with https://"),
    ("api_url", "", "https://<host>/<platform>/firecrest/v2"),
    ("api_url", f"https://ada:{SECRET}@api.example.org/v2", "user name or password"),
    ("token_url", "http://auth.example.org/token", "plain http.*openid-connect/token"),
    ("token_url", "", "openid-connect/token"),
    ("token_url", f"{TOKEN_URL}?client_id=ada", "a query"),
    ("system", "", "name of one system"),
    ("system", "daint eiger", "name of one system"),
    ("system", "daint/../eiger", "name of one system"),
    ("system", "daint\n", "name of one system"),
    ("system", "-daint", "name of one system"),
    ("system", "{system}", "name of one system"),
    ("root", "", "absolute path"),
    ("root", "/", "absolute path"),
    ("root", "scratch/ada", "absolute path"),
    ("root", "~/mantik", "absolute path"),
    ("root", "$SCRATCH/mantik", "without variables"),
    ("root", "/scratch/$USER/mantik", "without variables"),
    ("root", "/scratch/ada's", "absolute path"),
    ("root", "/scratch/a b", "absolute path"),
    ("root", "/scratch/../etc", "absolute path"),
    ("root", "/scratch/..", "absolute path"),
    ("root", "/scratch//ada", "absolute path"),
    ("root", "/scratch/%j", "absolute path"),
    ("root", "/scratch/ada\n", "absolute path"),
    ("root", "/scratch/a|b", "absolute path"),
    ("settle", -1, "greater than or equal to 0"),
    ("backend_config", {}, "Resources"),
    ("backend_config", {"Resources": {}}, "Queue"),
    ("backend_config", {**RESOURCES, "UnicoreApiUrl": "https://u.example.org/S/rest/core"}, "exactly one of"),
    ("backend_config", {**RESOURCES, "SSH": {"Hostname": "h"}}, "exactly one of"),
    ("backend_config", {**RESOURCES, "Colour": "red"}, "Colour"),
    ("backend_config", {**RESOURCES, "Environment": {"PreRunCommandOnLoginNode": "ls"}}, "PreRunCommandOnLoginNode"),
    ("backend_config", {**RESOURCES, "Firecrest": {"Machine": "eiger"}}, "Firecrest.Machine is another one .* daint"),
    ("backend_config", {**RESOURCES, "Firecrest": {"ApiUrl": f"{API}x"}}, f"Firecrest.ApiUrl is another one .* {API}"),
    ("backend_config", {**RESOURCES, "Firecrest": {"TokenUrl": ""}}, f"Firecrest.TokenUrl is another .* {TOKEN_URL}"),
    ("backend_config", {**RESOURCES, "Firecrest": {"Account": "s1"}}, "Firecrest.Account"),
    ("backend_config", {**RESOURCES, "Firecrest": "daint"}, "Firecrest is no mapping"),
    ("backend_config", {**RESOURCES, "Firecrest": None}, "Firecrest is no mapping"),
    ("login", {"client_id": "ada"}, "client_secret"),
    ("login", {"client_id": "", "client_secret": SECRET}, "client_id"),
]


@pytest.mark.parametrize(("field", "value", "message"), REFUSED)
def test_what_a_site_cannot_be(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        a_site(**{field: value})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("field", ["api_url", "token_url", "system", "root", "backend_config"])
def test_what_a_site_needs(field: str) -> None:
    given = {name: value for name, value in a_site().model_dump().items() if name != field and name[0] != "_"}
    with pytest.raises(ValidationError, match=rf"(?s){field}.*Field required"):
        FirecrestSite(**{**given, "login": LOGIN})


@pytest.mark.parametrize(
    "changed",
    [
        {"api_url": f"{API}/"},
        {"root": "/scratch/ada/mantik/"},
        {"backend_config": {**RESOURCES, "Firecrest": {}}},
        {
            "backend_config": {
                **RESOURCES,
                "Firecrest": {"ApiUrl": f"{API}/", "TokenUrl": TOKEN_URL, "Machine": "Daint"},
            }
        },
    ],
)
def test_the_same_in_other_words(changed: dict[str, Any]) -> None:
    made = a_site(**changed)
    assert (made.api_url, made.root) == (API, "/scratch/ada/mantik")
    where = {"ApiUrl": API, "TokenUrl": TOKEN_URL, "Machine": "daint"}
    assert made.whole_config == {**RESOURCES, "Firecrest": where}


@pytest.mark.parametrize("url", ["http://127.0.0.1:7100/cedar", "http://localhost:7100/cedar"])
def test_a_server_on_this_machine_needs_no_https(url: str) -> None:
    assert a_site(api_url=url, token_url=f"{url}/token").api_url == url


@pytest.mark.parametrize("root", ["/s", "/capstor/scratch/cscs/ada", "/a/b.c/d@e/f+g-h_i", "/a/..b"])
def test_roots(root: str) -> None:
    assert a_site(root=root).root == root


# --- Opened ---------------------------------------------------------------------------------------------------------


def test_an_open_site_has_the_names_of_its_block() -> None:
    opened = a_site(system="eiger").open()
    assert isinstance(opened, DirectFirecrestSite)
    assert (opened.kind, opened.name, opened.reference) == ("firecrest", "eiger (not saved)", None)


def test_who_has_the_same_account_at_the_same_system_shares_a_client() -> None:
    """So that four calls in flight are four, however many blocks there are."""
    again = a_site(login=FirecrestCredentials(client_id="ada", client_secret=SECRET), root="/other")
    assert again.client() is a_site().client()
    other = FirecrestCredentials(client_id="ada", client_secret="another")
    assert len({a_site(login=other).client(), a_site(system="eiger").client(), a_site().client()}) == 3


def test_a_login_of_a_block_is_its_client() -> None:
    found = client_of(LOGIN)
    assert isinstance(found, ClientCredentials)
    assert (found.client_id, found.client_secret.get_secret_value(), found.username) == ("ada", SECRET, "ada")
    assert SECRET not in repr(found)


def test_no_login_is_that_of_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvironmentInvalid, match="MANTIK_FIRECREST_CLIENT_ID and MANTIK_FIRECREST_CLIENT_SECRET"):
        a_site(login=None).client()
    monkeypatch.setenv("MANTIK_FIRECREST_CLIENT_ID", "ada")
    monkeypatch.setenv("MANTIK_FIRECREST_CLIENT_SECRET", SECRET)
    assert client_of(None) == client_of(LOGIN)


def test_a_connection_is_fetched_when_it_is_needed() -> None:
    account = MantikCredentials(username="ada", password="x", api_url="http://127.0.0.1:9")
    identifier = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"
    found = client_of(MantikConnection(connection_id=identifier, credentials=account))
    assert isinstance(found, KeptClient)
    assert identifier not in repr(found)
    again = client_of(MantikConnection(connection_id=identifier, credentials=account))
    other = client_of(MantikConnection(connection_id=identifier.replace("0", "1"), credentials=account))
    assert (found == again, found == other) == (True, False)


@pytest.mark.parametrize("memory", ["4GiB", "4000", "4096M"])
def test_memory_may_have_a_unit_where_we_write_the_script(memory: str) -> None:
    """Only the platform's own road to Slurm takes none."""
    config = {"Resources": {"Queue": "normal", "MemoryPerNode": memory}}
    assert a_site(backend_config=config).whole_config["Resources"]["MemoryPerNode"] == memory
