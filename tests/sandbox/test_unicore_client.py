"""The client that people use, pyunicore, has to agree with the sandbox."""

import io
import time

import httpx
import pytest
from pyunicore import client, credentials
from pyunicore.aio import client as aio


@pytest.fixture
def login(rest):
    return credentials.UsernamePassword(*rest.login)


@pytest.fixture
def site(rest, login):
    return client.Client(login, rest.url, cache_time=0)


@pytest.fixture
def run_key(request):
    return f"{request.node.name}-{time.time_ns()}".replace("_", "-")


def fresh(job):
    """The same job without the client's cache."""
    return client.Job(job.transport, job.resource_url, cache_time=0)


def over(job):
    job = fresh(job)
    deadline = time.monotonic() + 20
    while job.is_running():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return job


def test_who_am_i(rest, site):
    assert site.access_info()["xlogin"]["UID"] == "sandbox-at-alder"
    assert site.server_version_info() == (11, 0, 0)
    with pytest.raises(httpx.HTTPError, match="403 Server Error: Forbidden"):
        client.Client(credentials.UsernamePassword("sandbox", "wrong"), rest.url)
    assert client.Client(credentials.Anonymous(), rest.url).access_info()["role"]["selected"] == "anonymous"


def test_tokens(rest, site):
    token = site.issue_auth_token(lifetime=600, renewable=True)
    again = client.Client(credentials.BearerToken(token), rest.url)
    assert again.access_info()["authenticationMethod"] == "ETD"
    assert again.issue_auth_token().count(".") == 2
    oidc = credentials.OIDCToken(rest.control.unicore_token("sandbox"))
    assert client.Client(oidc, rest.url).access_info()["role"]["selected"] == "user"


def test_a_job_with_inputs(rest, site, tmp_path, run_key):
    (tmp_path / "in.txt").write_text("from here")
    description = {"Executable": "cat in.txt; echo $KEY", "Environment": {"KEY": "v"}, "Tags": [run_key]}
    job = site.new_job(description, inputs={"in.txt": str(tmp_path / "in.txt")})
    job.poll()
    assert (job.status, job.exit_code) == (client.JobStatus.SUCCESSFUL, 0)
    assert job.log[0].endswith("Created with type 'JSON'")
    assert job.bss_details()["Partition"] == "batch"
    directory = job.working_dir
    assert {"in.txt", "stdout", "stderr"} < directory.listdir().keys()
    output = directory.stat("stdout")
    assert (output.isfile(), output.size(), output.read()) == (True, 11, b"from herev\n")
    assert output.read(offset=5, size=4) == b"here"
    buffer = io.BytesIO()
    output.download(buffer)
    output.download(str(tmp_path / "out.txt"))
    assert buffer.getvalue() == (tmp_path / "out.txt").read_bytes() == b"from herev\n"
    assert [found.resource_url for found in site.get_jobs(tags=[run_key])] == [job.resource_url]
    job.delete()
    assert site.get_jobs(tags=[run_key]) == []


def test_files(site, tmp_path):
    home = next(storage for storage in site.get_storages() if storage.resource_url.endswith("/HOME"))
    home.mkdir("dir")
    home.put(b"content", "dir/file")
    home.copy("dir/file", "dir/copy")
    home.rename("dir/copy", "dir/renamed")
    assert home.listdir("dir").keys() == {"dir/file", "dir/renamed"}
    assert home.stat("dir").isdir()
    assert home.set_properties({"umask": "0022"}) == {"umask": "OK"}
    (tmp_path / "big").write_bytes(b"x" * 1_000_000)
    home.upload(str(tmp_path / "big"), "dir/big")
    assert home.stat("dir/big").size() == 1_000_000
    home.stat("dir/file").remove()
    home.rmdir("dir")
    with pytest.raises(httpx.HTTPError, match="404"):
        home.stat("dir")


def test_abort(site):
    job = site.new_job({"Executable": "sleep 60"})
    assert fresh(job).is_running()
    job.abort()
    aborted = over(job)
    assert (aborted.status, aborted.exit_code) == (client.JobStatus.FAILED, None)
    assert aborted.properties["statusMessage"] == "Job aborted."


def test_refused_resources(site):
    failed = over(site.new_job({"Executable": "true", "Resources": {"CPUs": 1}}))
    assert "Resource <CPUs> is not available" in failed.properties["statusMessage"]


def test_errors_reach_the_client(rest, site):
    rest.control.change_site("alder", maintenance=True, message="Closed.")
    with pytest.raises(httpx.HTTPError, match="503 Server Error: Closed"):
        site.new_job({})
    assert site.properties["server"]["jobSubmission"]["enabled"] is False


def test_sessions_are_renewed(rest, site):
    site.get_jobs()
    before = site.transport.last_session_id
    rest.control.expire_unicore_sessions()
    site.get_jobs()
    assert site.transport.last_session_id != before


def test_preferences(rest, login):
    transport = client.Transport(login)
    transport.preferences = "group:sandbox-budget"
    assert client.Client(transport, rest.url).access_info()["xlogin"]["group"] == "sandbox-budget"


def test_execute_and_compute(site):
    job = site.execute("hostname")
    assert over(job).exit_code == 0
    [compute] = site.get_compute()
    assert compute.get_queues().keys() == {"batch", "devel"}


def test_jobs_of_the_platform(rest, box, site):
    job = box.ended(box.submit("show"))
    seen = over(client.Job(site.transport, f"{rest.url}/jobs/{job['id']}", cache_time=0))
    assert seen.status == client.JobStatus.SUCCESSFUL
    assert b"Submitted bash script" in seen.working_dir.stat("mantik.log").read()


async def test_asynchronously(rest, login, tmp_path, run_key):
    (tmp_path / "in.txt").write_text("from here")
    async with aio.Client(login, rest.url) as site:
        assert (await site.access_info)["xlogin"]["UID"] == "sandbox-at-alder"
        description = {"Executable": "cat in.txt; exit_code=3; (exit $exit_code)", "Tags": [run_key]}
        job = await site.new_job(description, inputs={"in.txt": str(tmp_path / "in.txt")})
        await job.poll()
        assert (await job.status, await job.exit_code) == (aio.JobStatus.FAILED, 3)
        assert (await job.log)[0].endswith("Created with type 'JSON'")
        directory = await job.working_dir
        assert {"in.txt", "stdout"} < (await directory.listdir()).keys()
        assert await (await directory.stat("stdout")).read() == b"from here"
        await directory.mkdir("new")
        await directory.put(b"x", "new/file")
        assert await (await directory.stat("new/file")).size == 1
        await directory.rm("new/file")
        waiting = await site.new_job({"Executable": "sleep 60"})
        await waiting.abort()
        await waiting.poll()
        assert (await waiting.properties)["statusMessage"] == "Job aborted."
