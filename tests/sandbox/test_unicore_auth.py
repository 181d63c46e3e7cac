import base64
import json
import time

import httpx
import pytest

SESSION = "X-UNICORE-SecuritySession"
PREFERENCES = "X-UNICORE-User-Preferences"


def role(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["client"]["role"]["selected"]


def claims(token):
    body = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))


def token(client, **query):
    answer = client.get("/token", params=query, headers={"Accept": "text/plain"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain")
    return answer.text


def with_token(rest, value, **query):
    with rest.client(headers={"Authorization": f"Bearer {value}"}) as client:
        return client.get("", params=query)


def test_base(rest):
    answer = rest.http.get("")
    client, server = answer.json()["client"], answer.json()["server"]
    assert client["dn"] == "CN=sandbox, O=Sandbox"
    assert client["xlogin"]["UID"] == "sandbox-at-alder"
    assert client["authenticationMethod"] == "PASSWORD"
    assert (server["siteName"], server["jobSubmission"]) == ("ALDER", {"enabled": True, "message": ""})
    assert server["currentTime"].endswith("+0000")
    assert answer.json()["_links"]["jobs"]["href"] == f"{rest.url}/jobs"
    assert rest.http.get("/").status_code == 200
    assert list(rest.get("", fields="client")) == ["client"]


def test_html_unless_json_is_asked_for(rest):
    for path in ("", "/jobs", "/storages/HOME", "/storages/HOME/files"):
        answer = rest.http.get(path, headers={"Accept": "*/*"})
        assert answer.headers["content-type"].startswith("text/html")


def test_links_follow_the_host(rest):
    other = rest.url.replace("127.0.0.1", "localhost")
    answer = httpx.get(other, auth=rest.login, headers={"Accept": "application/json"}, trust_env=False)
    assert answer.json()["_links"]["jobs"]["href"] == f"{other}/jobs"


def test_passwords(rest, box):
    connection = box.control.accounts()[0]["connections"]["alder"]
    path = f"/users/{box.control.accounts()[0]['userId']}/settings/connections/{connection}"
    kept = box.http.get(path).json()
    login = (kept["loginName"], kept["password"])
    assert role(rest.client(auth=login).get("")) == "user"
    other_site = box.env["MANTIK_SANDBOX_BIRCH_URL"]
    assert httpx.get(other_site, auth=login, trust_env=False).status_code == 403
    assert httpx.get(other_site, auth=rest.login, trust_env=False).status_code == 200
    for wrong in ((rest.login[0], "wrong"), ("nobody", "x"), ("", "")):
        answer = rest.client(auth=wrong).get("")
        assert (answer.status_code, answer.content) == (403, b"")
        assert SESSION not in answer.headers


def test_nobody(rest):
    with rest.client() as client:
        assert role(client.get("")) == "anonymous"
        assert role(client.get("", headers={"Authorization": "Nonsense"})) == "anonymous"
        assert client.get("").json()["client"]["xlogin"] == {}
        assert client.get("/jobs").json()["jobs"] == []
        answer = client.post("/jobs", json={})
        assert (answer.status_code, answer.content) == (403, b"")
        assert client.get("/storages/HOME").status_code == 403


def test_not_entitled(rest):
    rest.control.change_site("alder", entitled=False)
    assert role(rest.http.get("")) == "anonymous"
    assert rest.http.get("").json()["client"]["dn"] == "CN=sandbox, O=Sandbox"
    answer = rest.post({})
    assert (answer.status_code, answer.content) == (403, b"")


def test_refused_logins(rest):
    access = rest.control.unicore_token("sandbox")
    rest.control.change_site("alder", refuse_logins=True)
    assert rest.http.get("").status_code == 403
    assert with_token(rest, access).status_code == 403


def test_sessions(rest):
    first = rest.http.get("")
    assert 28_000_000 < int(first.headers[f"{SESSION}-Lifetime"]) <= 28_800_000
    assert rest.http.get("").headers[SESSION] != first.headers[SESSION], "each request without one begins one"
    known = {SESSION: first.headers[SESSION]}
    with rest.client(headers=known) as client:
        assert role(client.get("")) == "user"
        again = client.get("", auth=("sandbox", "wrong"))
        assert role(again) == "user", "credentials are not looked at"
        assert again.headers[SESSION] == first.headers[SESSION]
    rest.control.expire_unicore_sessions()
    for path in ("", "/jobs", "/nonsense"):
        answer = rest.http.get(path, headers=known)
        assert (answer.status_code, answer.content) == (404 if path == "/nonsense" else 432, b"")
    assert SESSION not in rest.http.get("", headers=known).headers


def test_session_lifetime(rest):
    rest.control.switch(unicore_session_lifetime=0.5)
    known = {SESSION: rest.http.get("").headers[SESSION]}
    assert rest.http.get("", headers=known).status_code == 200
    time.sleep(0.6)
    assert rest.http.get("", headers=known).status_code == 432


def test_sessions_are_the_sites_own(rest, box):
    known = {SESSION: rest.http.get("").headers[SESSION]}
    assert httpx.get(box.env["MANTIK_SANDBOX_BIRCH_URL"], headers=known, trust_env=False).status_code == 432


def test_tokens(rest):
    plain = token(rest.http)
    assert claims(plain)["etd"] == "true"
    assert claims(plain)["exp"] - claims(plain)["iat"] == 300
    assert claims(token(rest.http, lifetime=3600))["exp"] - time.time() > 3500
    answer = with_token(rest, plain)
    assert role(answer) == "user"
    assert answer.json()["client"]["authenticationMethod"] == "ETD"
    head, body, signature = plain.split(".")
    assert with_token(rest, f"{head}.{body}.{signature[:-4]}AAAA").status_code == 403
    assert with_token(rest, token(rest.http, lifetime=-59)).status_code == 200, "the server forgives a minute"
    assert with_token(rest, token(rest.http, lifetime=-62)).status_code == 403
    wrong = rest.http.get("/token", params={"lifetime": "abc"}, headers={"Accept": "text/plain"})
    assert (wrong.status_code, wrong.json()["status"]) == (500, 500)
    assert rest.http.get("/token").status_code == 406


def test_renewable_and_limited_tokens(rest, box):
    renewable, plain, limited = token(rest.http, renewable="true"), token(rest.http), token(rest.http, limited="true")
    with rest.client(headers={"Authorization": f"Bearer {renewable}"}) as client:
        assert role(with_token(rest, token(client, renewable="true"))) == "user"
    with rest.client(headers={"Authorization": f"Bearer {plain}"}) as client:
        refused = client.get("/token", headers={"Accept": "text/plain"})
        assert refused.status_code == 500
        assert "non-renewable token" in refused.json()["errorMessage"]
    birch = box.env["MANTIK_SANDBOX_BIRCH_URL"]
    for value, status in ((plain, 200), (limited, 403)):
        headers = {"Authorization": f"Bearer {value}"}
        assert httpx.get(birch, headers=headers, trust_env=False).status_code == status
    assert role(with_token(rest, limited)) == "user"


def test_oidc_tokens(rest):
    access = rest.control.unicore_token("sandbox", lifetime=1)
    answer = with_token(rest, access)
    assert answer.json()["client"]["authenticationMethod"] == "OAUTH"
    time.sleep(1.1)
    for unknown in (access, "opaque"):
        answer = with_token(rest, unknown)
        assert answer.status_code == 200
        assert answer.json()["client"]["role"]["selected"] == "anonymous"


def test_no_passwords(rest):
    session = rest.http.get("").headers[SESSION]
    rest.control.switch(unicore_password_login=False)
    assert rest.http.get("/jobs").status_code == 403
    assert role(rest.http.get("")) == "user"
    with rest.client(headers={"Authorization": f"Bearer {token(rest.http)}"}) as client:
        assert client.get("/jobs").status_code == 200
    assert rest.client(headers={SESSION: session}).get("/jobs").status_code == 200


def test_preferences(rest):
    def xlogin(preferences, **headers):
        return rest.http.get("", headers={PREFERENCES: preferences, **headers})

    chosen = xlogin("uid:sandbox-at-alder,group:sandbox-budget,supgids:hpc+sandbox-budget,vo:x")
    assert chosen.json()["client"]["xlogin"]["group"] == "sandbox-budget"
    assert chosen.json()["client"]["xlogin"]["selectedSupplementaryGroups"] == ["hpc", "sandbox-budget"]
    kept = rest.http.get("", headers={SESSION: chosen.headers[SESSION]})
    assert kept.json()["client"]["xlogin"]["group"] == "sandbox-budget", "they stay with the session"
    for wrong in ("uid:root", "group:wheel", "supgids:wheel", "nonsense", "a:b:c", "uid:"):
        assert xlogin(wrong).status_code == 403, wrong
    job = rest.http.post("/jobs", json={}, headers={PREFERENCES: "group:sandbox-budget"}).headers["Location"]
    assert rest.get(job)["submissionPreferences"] == {"group": "sandbox-budget"}


def test_factories_and_sites(rest):
    factory = rest.get("/factories")["factories"][0]
    resources = rest.get(factory)["resources"]
    assert resources["batch"]["Nodes"] == "1-2"
    assert resources["devel"]["Runtime"] == "1-7200"
    rest.submit()
    site = rest.get("/sites")["sites"][0]
    assert rest.get(f"{site}/jobs")["jobs"] == rest.get("/jobs")["jobs"]
    assert rest.get(site)["_links"]["jobs"]["href"] == f"{site}/jobs"
    assert rest.http.post(site, json={"Executable": "true"}).status_code == 201
    assert rest.http.post(f"{site}/jobs", json={}).status_code == 405
    assert rest.get("/transfers")["transfers"] == []
    assert rest.http.get("/factories/x").status_code == 404
    certificate = rest.http.get("/certificate", headers={"Accept": "text/plain"}).text
    assert certificate.startswith("-----BEGIN CERTIFICATE-----")


@pytest.mark.parametrize("path", ["/nonsense", "/jobs/nonsense", "/storages/nonsense", "/storages/nonsense-uspace"])
def test_unknown(rest, path):
    answer = rest.http.get(path)
    assert (answer.status_code, answer.content) == (404, b"")
    assert httpx.get(rest.url.replace("ALDER", "CEDAR"), trust_env=False).status_code == 404
