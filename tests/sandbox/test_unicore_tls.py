import ssl
import stat
from pathlib import Path

import httpx
import pytest
from pyunicore import client, credentials

from prefect_mantik.sandbox.env_file import read_env_file


def test_https(start_light):
    process = start_light(tls=True)
    env = read_env_file(process.env_file)
    url, authority = env["MANTIK_SANDBOX_TLS_URL"], env["MANTIK_SANDBOX_CA_FILE"]
    trusting = ssl.create_default_context(cafile=authority)
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{url}/ALDER/rest/core", trust_env=False)
    login = credentials.UsernamePassword(env["MANTIK_UNICORE_USERNAME"], env["MANTIK_UNICORE_PASSWORD"])
    untouched = client.Client(login, env["MANTIK_SANDBOX_BIRCH_URL"])
    assert [storage.properties["resourceStatus"] for storage in untouched.get_storages()] == ["READY", "READY"]
    for base in (url, url.replace("127.0.0.1", "localhost")):
        site = client.Client(client.Transport(login, verify=trusting), f"{base}/ALDER/rest/core")
        assert site.links["jobs"] == f"{base}/ALDER/rest/core/jobs"
        job = site.new_job({"Executable": "true"})
        assert job.resource_url.startswith(f"{base}/ALDER/rest/core/jobs/")
    plain = client.Client(login, env["MANTIK_SANDBOX_ALDER_URL"])
    assert plain.links["jobs"].startswith("http://")
    assert {found.job_id for found in plain.get_jobs()} > {job.job_id}
    key = Path(authority).with_suffix(".key")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    wrong_host = httpx.get(f"{url}/ALDER/rest/core", headers={"Host": "example.org"}, verify=False, trust_env=False)
    assert wrong_host.status_code == 421
    assert "Traceback" not in process.output()


def test_no_https_unless_asked_for(box):
    assert "MANTIK_SANDBOX_TLS_URL" not in box.env
