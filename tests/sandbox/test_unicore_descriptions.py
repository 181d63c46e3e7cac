import time
from pathlib import Path

import pytest

CHECK = "Processing failed: eu.unicore.xnjs.ems.ExecutionException: "


def test_executable_and_arguments_are_shell(rest):
    done = rest.run('printf "[%s]"', Arguments=["a b", "'c d'", '"$HOME"', "$UC_NODES"])
    home = rest.run("echo $HOME")["stdout"].strip()
    assert done["stdout"] == f"[a][b][c d][{home}][1]"
    assert home.endswith("home/sandbox-at-alder")


def test_the_executable_is_looked_at_twice(rest):
    assert rest.run("echo $(echo x >> times; wc -l < times)")["stdout"] == "2\n"
    assert rest.run("echo", Arguments=["$(echo x >> times; wc -l < times)"])["stdout"] == "1\n"
    assert "one: command not found" in rest.run('bash -c "echo one; true"')["stderr"]


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ("plain", "plain"),
        ("a'b", "a'b"),
        ("x$UC_NODES", "x1"),
        ("$(echo sub)", "sub"),
        ("`echo tick`", "tick"),
        ("line1\nline2", "line1\nline2"),
        ("a\\b\\\\c", "a\\b\\c"),
        ("  two  blanks ", "  two  blanks "),
        ('a\\"b', 'a"b'),
        ("$UC_WORKING_DIRECTORY", ""),
        ('broken"quote', None),
    ],
)
def test_environment_is_not_quoted(rest, given, seen):
    done = rest.run('printf "%s" "$V"', Environment={"V": given})
    if seen is None:
        assert (done["status"], "exitCode" in done) == ("FAILED", False)
    else:
        assert done["stdout"] == seen


def test_environment_as_a_list_and_parameters(rest):
    assert rest.run("echo $LA $LB", Environment=["LA=1", "LB=a=b"])["stdout"] == "1 a=b\n"
    assert rest.run("echo $P", Parameters={"P": "v"})["stdout"] == "v\n"


def test_names_of_the_streams(rest):
    imports = {"in": {"Data": "i"}}
    job = rest.submit("{ cat; echo e >&2; }", Stdin="in", Stdout="o.log", Stderr="e.log", Imports=imports)
    rest.over(job)
    assert (rest.text(job, "o.log"), rest.text(job, "e.log"), rest.text(job, "stdout")) == ("i", "e\n", None)
    both = rest.submit("echo o; echo e >&2", Stdout="all.log", Stderr="all.log")
    rest.over(both)
    assert rest.text(both, "all.log") == "o\ne\n"


def test_imports(rest):
    done = rest.run(
        "cat a/b/c.txt; cat twice; ls -l secret run.sh; run.sh",
        Imports=[
            {"To": "a/b/c.txt", "Data": 'ü "q" $HOME\n'},
            {"To": "twice", "Data": "1"},
            {"To": "twice", "Data": "2\n", "Mode": "append"},
            {"To": "secret", "Data": "x", "Permissions": "r-x------"},
            {"To": "run.sh", "Data": ["#!/bin/bash", "echo ran"], "Permissions": "rwx------"},
        ],
    )
    assert done["status"] == "SUCCESSFUL"
    lines = done["stdout"].splitlines()
    assert lines[:2] == ['ü "q" $HOME', "12"]
    assert [line.split()[0] for line in lines[2:4]] == ["-rwx------", "-r-x------"]
    assert lines[4] == "ran"


def test_a_staged_script_becomes_executable(rest):
    assert rest.run("run.sh", Imports=[{"To": "run.sh", "Data": ["#!/bin/bash", "echo ran"]}])["stdout"] == "ran\n"


@pytest.mark.parametrize(
    ("item", "text"),
    [
        ({"To": "../out", "Data": "x"}, "Invalid path"),
        ({"To": "x", "Data": "x", "Permissions": "0600"}, "Illegal permissions string <0600>"),
        ({"To": "x", "From": "file:///etc/hostname"}, "Could not get file:///etc/hostname"),
        ({"To": "x", "From": "https://example.org/x"}, "Could not get https://example.org/x"),
    ],
)
def test_imports_that_fail(rest, item, text):
    failed = rest.run("true", Imports=[item])
    assert (failed["status"], failed["queue"]) == ("FAILED", "N/A")
    assert failed["statusMessage"].startswith("Staging in failed. Reason: Filetransfer FAILED: [")
    assert text in failed["statusMessage"]
    assert failed["stdout"] is None


def test_imports_that_may_fail(rest):
    item = {"To": "x", "From": "file:///nowhere"}
    assert rest.run("true", Imports=[{**item, "FailOnError": "false"}])["status"] == "SUCCESSFUL"
    assert rest.run("true", Imports=[{**item, "FailOnError": False}])["status"] == "FAILED", "only text is read"


def test_import_of_nothing(rest):
    assert "NullPointerException" in rest.run("true", Imports=[{"To": "x"}])["statusMessage"]
    assert "must be an array or a map" in rest.run("true", Imports="x")["statusMessage"]


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"Queue": "nope"}, CHECK + "Resource request <Queue = nope> is out of range. (Invalid resource request)"),
        ({"Nodes": 99}, CHECK + "Resource request <Nodes=99> is out of range. (Invalid resource request)"),
        ({"Nodes": "many"}, CHECK + "Resource request <Nodes=many> is out of range. (Invalid resource request)"),
        ({"Queue": "devel", "Runtime": "3h"}, CHECK + "Resource request <Runtime=10800> is out of range. (Inv"),
        ({"CPUs": 8}, CHECK + "Resource <CPUs> is not available for partition <batch> (Invalid resource request)"),
        ({"GPUS": 1}, CHECK + "Resource <GPUS> is not available for partition <batch> (Invalid resource request)"),
        ({"MemoryPerNode": "900G"}, CHECK + "Resource request <MemoryPerNode=966367641600> is out of range."),
        ({"Runtime": "soon"}, "Processing failed: java.lang.IllegalArgumentException: Could not parse requested reso"),
        ({"Runtime": "01:00:00"}, "Processing failed: java.lang.IllegalArgumentException: Could not parse requested"),
    ],
)
def test_resources_the_site_does_not_have(rest, resources, message):
    failed = rest.run("true", Resources=resources)
    assert (failed["status"], failed["queue"], failed["stdout"]) == ("FAILED", "N/A", None)
    assert failed["statusMessage"].startswith(message)
    assert "exitCode" not in failed


def test_resources_the_site_has(rest):
    every = {
        "Queue": "devel",
        "Nodes": "1",
        "CPUsPerNode": 4,
        "GPUsPerNode": 1,
        "Runtime": "10m",
        "Memory": "2G",
        "QoS": "q",
        "NodeConstraints": "gpu",
        "Exclusive": "true",
        "Reservation": "r1",
        "Project": "p",
    }
    done = rest.run("echo $UC_NODES $UC_PROCESSORS_PER_NODE $UC_RUNTIME $UC_MEMORY_PER_NODE", Resources=every)
    assert (done["status"], done["stdout"], done["queue"]) == ("SUCCESSFUL", "1 4 600 2048\n", "devel")
    assert rest.run("echo $UC_TOTAL_PROCESSORS $UC_NODES", Resources={"TotalCPUs": 8})["stdout"] == "8 -1\n"


def test_projects(rest):
    assert rest.run("true", Project="any")["status"] == "SUCCESSFUL"
    rest.control.switch(unicore_projects="one,two")
    assert rest.run("true", Project="two", Resources={"Project": "three"})["status"] == "SUCCESSFUL"
    failed = rest.run("true", Resources={"Project": "three"})
    assert "Invalid account" in failed["statusMessage"]


def test_walltime(rest):
    late = rest.run("sleep 30", Resources={"Runtime": "1"})
    assert (late["status"], "exitCode" in late) == ("FAILED", False)
    assert late["statusMessage"].startswith("Job did not complete normally on BSS")


def test_commands_before_and_after(rest):
    job = rest.submit("cat pre", **{"User precommand": "echo pre > pre", "User postcommand": "echo post > post"})
    assert rest.over(job)["status"] == "SUCCESSFUL"
    assert (rest.text(job, "stdout"), rest.text(job, "post")) == ("pre\n", "post\n")
    failed = rest.run("true", **{"User precommand": "exit 7"})
    assert failed["statusMessage"].startswith("Pre-command(s) failed: [Command exited with non-zero exit code: <7>.")
    assert (failed["stdout"], "exitCode" in failed) == (None, False)
    ignored = {"User precommand": "false", "UserPrecommandIgnoreNonZeroExitCode": "true"}
    assert rest.run("true", **ignored)["status"] == "SUCCESSFUL"
    there = {"User precommand": "X=1; false", "RunUserPrecommandOnLoginNode": "false"}
    assert rest.run("echo $X", **there)["stdout"] == "1\n"


def test_login_node(rest):
    rest.control.switch(queue_delay=60)
    done = rest.run("echo hi", **{"Job type": "on_login_node"})
    assert (done["status"], done["stdout"], done["jobType"]) == ("SUCCESSFUL", "hi\n", "ON_LOGIN_NODE")
    assert done["batchSystemID"].startswith("INTERACTIVE_")
    lost = rest.run("exit 1", **{"Job type": "interactive"})
    assert lost["statusMessage"].startswith("Execution was not completed (no exit code file found)")
    assert rest.run("true", **{"Job type": "raw"})["status"] == "FAILED"


def test_umask(rest):
    assert rest.run("umask")["stdout"] == "0027\n"
    assert rest.run("umask", Umask="077")["stdout"] == "0077\n"
    assert "under radix 8" in rest.run("true", Umask="nonsense")["statusMessage"]


def test_not_before(rest):
    later = time.strftime("%Y-%m-%dT%H:%M:%S+0000", time.gmtime(time.time() + 3))
    job = rest.submit("true", **{"Not before": later})
    time.sleep(1)
    waiting = rest.get(job)
    assert waiting["status"] == "QUEUED"
    assert [line for line in waiting["log"] if "Further processing scheduled" in line]
    assert rest.over(job)["status"] == "SUCCESSFUL"
    assert "could not be parsed" in rest.run("true", **{"Not before": "tomorrow"})["statusMessage"]


def test_applications(rest):
    done = rest.over(rest.post(ApplicationName="Date").headers["Location"])
    assert (done["status"], done["name"]) == ("SUCCESSFUL", "Date")
    unknown = rest.over(rest.post(ApplicationName="Nope").headers["Location"])
    assert "The requested Application 'Nope' is not available." in unknown["statusMessage"]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"Executable": ', "JSONException"),
        (b"[1]", "must begin with '{' at 1 [character 2 line 1]"),
        (b"", "must begin with '{' at 0 [character 1 line 1]"),
    ],
)
def test_what_is_no_description(rest, body, text):
    before = len(rest.control.jobs())
    answer = rest.http.post("/jobs", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["status"]) == (500, 500)
    assert answer.json()["errorMessage"].startswith("Could not submit job: org.json.JSONException: ")
    assert text in answer.json()["errorMessage"]
    assert rest.http.post("/jobs", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert len(rest.control.jobs()) == before


@pytest.mark.parametrize(
    ("keys", "status"),
    [
        ({"Environment": {"N": 5}}, "FAILED"),
        ({"Environment": "A=b"}, "SUCCESSFUL"),
        ({"Resources": "x"}, "SUCCESSFUL"),
        ({"Tags": "x"}, "SUCCESSFUL"),
        ({"Name": "a\nb"}, "FAILED"),
        ({"Imports": ["x"]}, "FAILED"),
        ({"Imports": [{"To": "x", "Data": 5}]}, "SUCCESSFUL"),
        ({"Arguments": 5}, "SUCCESSFUL"),
        ({"Name": 5}, "SUCCESSFUL"),
        ({"Parameters": {"P": {"Values": [1, 2]}}}, "FAILED"),
    ],
)
def test_odd_values(rest, keys, status):
    assert rest.run("true", **keys)["status"] == status


def test_the_directory_is_private_to_the_umask(rest):
    job = rest.submit(Umask="077")
    rest.over(job)
    [found] = [found for found in rest.control.jobs() if job.endswith(found["id"])]
    assert Path(found["directory"]).stat().st_mode & 0o777 == 0o700
