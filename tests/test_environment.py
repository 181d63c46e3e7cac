"""The variables: values as bash gives them, all findings at once, and no secret in any message."""

from __future__ import annotations

import logging
import os
import pickle
import random
import shlex
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from prefect_mantik.environment import (
    DEFAULT_API_URL,
    DEFAULT_TRACKING_URI,
    MantikEnvironment,
    RuntimeContext,
    check_api_url,
    check_tracking_uri,
    firecrest_login,
    read_variables,
    unicore_login,
)
from prefect_mantik.errors import EnvironmentInvalid
from prefect_mantik.foreign_credentials import foreign_tracking_credentials

A_UUID = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"
SECRET = "hunter2-Zq9"
LOGIN = {"MANTIK_USERNAME": "ada", "MANTIK_PASSWORD": SECRET}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("MANTIK_", "MLFLOW_")) or name == "NETRC"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()


def env_file(folder: Path, content: str | bytes) -> Path:
    path = folder / ".env"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(0o600)
    return path


def in_bash(path: Path, *names: str) -> list[str]:
    """Source a file as users do and give the values of some variables."""
    script = 'set -a; source "$0" 2>/dev/null; for name; do printf "%s\\0" "${!name}"; done'
    clean = {"HOME": "/home/nobody", "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    command = ["bash", "--norc", "--noprofile", "-c", script, str(path), *names]
    done = subprocess.run(command, env=clean, cwd="/", capture_output=True, timeout=60, check=True)
    return done.stdout.decode().split("\0")[:-1]


def in_ours(path: Path, name: str) -> str | None:
    """The value read here; None for a clear error."""
    try:
        return read_variables(path)[name]
    except EnvironmentInvalid:
        return None


# --- .env files against bash ----------------------------------------------------------------------------------------

AS_BASH = {
    "plain": "PM_X=abc",
    "export": "export PM_X=abc",
    "export and blanks": " \texport \t PM_X=abc  ",
    "comment behind": "PM_X=abc # a comment",
    "comment with a quote": "PM_X=abc # don't",
    "comment lines": "# don't\n\n  # \"\nPM_X=abc\n#",
    "empty": "PM_X=",
    "empty and comment": "PM_X= # abc",
    "empty quotes": "PM_X=''",
    "single quotes": r"""PM_X='a $b # "c" \d \n `e` & ~'""",
    "single quotes, backslash": r"PM_X='a\\b\nc'",
    "single quotes, backslash last": "PM_X='abc\\'\nPM_Y='d'",
    "single quotes, backslash last, end of file": "PM_X='abc\\'",
    "idiom of shlex": """export PM_X='it'"'"'s'""",
    "idiom of tools": r"export PM_X='it'\''s'",
    "idiom at both ends": r"PM_X=''\''its'\'''",
    "bash's own quoting": r"PM_X=it\'s\ \$5\#\"",
    "double quotes": '''PM_X="it's # a ; b"''',
    "double quotes, escapes": r'PM_X="a\"b\\c\$d\`e"',
    "double quotes, kept backslashes": r'PM_X="a\nb\td\!e\z"',
    "double quotes, line joined": 'PM_X="ab\\\ncd"',
    "several lines": "PM_X='ab\n  cd # e\n'",
    "several lines, double": 'PM_X="ab\ncd"\nPM_Y=e',
    "hash inside": "PM_X=a#b",
    "hash first": "PM_X=#b",
    "hash behind quotes": "PM_X='a'#b",
    "escaped space and hash": r"PM_X=a\ #b",
    "pieces": """PM_X=a'b c'"d e"f\\ g""",
    "glob": "export PM_X=a*[b]?",
    "signs": "PM_X=!%^*-_=+[],./?@:",
    "umlauts": "PM_X='äöü €'",
    "umlauts, plain": "PM_X=ä",
    "the last one wins": "PM_X=a\nPM_X=b",
    "export later": "PM_X=a\nexport PM_X",
    "URL": "export PM_X=https://api.cloud.mantik.ai/tracking/",
}
REFUSED = {
    "expansion in double quotes": 'PM_X="pa$HOME"',
    "expansion": "PM_X=pa$HOME",
    "braced expansion": "PM_X=pa${HOME}",
    "dollar last": 'PM_X="pa$"',
    "command": 'PM_X="`id`"',
    "command, plain": "PM_X=$(id)",
    "ANSI quotes": r"PM_X=$'a\nb'",
    "tilde": "PM_X=~/x",
    "braces": "export PM_X={a,b}",
    "two words": "PM_X=a b",
    "space behind =": "PM_X= a",
    "space before =": "PM_X =a",
    "no =": "PM_X",
    "two exports": "export PM_X=a PM_Y=b",
    "two commands": "PM_X=a; PM_Y=b",
    "background": "PM_X=a&b",
    "redirection": "PM_X=a>b",
    "array": "PM_X=(a b)",
    "append": "PM_X+=b",
    "open quote": "PM_X='ab",
    "open double quote": 'PM_X="ab',
    "quote inside": "PM_X=it's",
    "backslash last": "PM_X=ab\\",
    "line joined": "PM_X=ab\\\ncd",
    "hash behind an escaped space": r"PM_X=a\ #$b",
    "quoted name": "'PM_X'=a",
    "other shell": "set PM_X=a",
    "condition": "if true; then PM_X=a; fi",
    "no-break space": "PM_X=a\u00a0b",
    "Windows": "PM_X='a'\r\n",
    "byte-order mark inside": "\ufeffPM_X='a'",
    "control character": "PM_X='a\x01b'",
}


@pytest.mark.parametrize("content", AS_BASH.values(), ids=AS_BASH)
@pytest.mark.parametrize("end", ["", "\n"])
def test_a_line_means_what_it_means_for_bash(content: str, end: str, tmp_path: Path) -> None:
    path = env_file(tmp_path, content + end)
    assert in_ours(path, "PM_X") == in_bash(path, "PM_X")[0]
    if "PM_Y" in content:
        assert in_ours(path, "PM_Y") == in_bash(path, "PM_Y")[0]


@pytest.mark.parametrize("content", REFUSED.values(), ids=REFUSED)
def test_a_line_that_bash_would_change_is_refused_with_its_number(content: str, tmp_path: Path) -> None:
    path = env_file(tmp_path, f"# one\n\nPM_A='{SECRET}'\n{content}")
    with pytest.raises(EnvironmentInvalid, match=r"\.env, line 4 ") as caught:
        read_variables(path)
    assert SECRET not in str(caught.value)


def test_a_byte_order_mark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentInvalid, match=r"line 1 .*byte-order mark"):
        read_variables(env_file(tmp_path, "\ufeffPM_X=a"))


def test_all_bad_lines_are_listed_with_what_to_do_and_without_content(tmp_path: Path) -> None:
    path = env_file(tmp_path, f"A=${SECRET}\n\n# fine\nB=b\n\n  C={SECRET} {SECRET}\n{SECRET}\n")
    with pytest.raises(EnvironmentInvalid) as caught:
        read_variables(path)
    assert [finding.split(" is not ")[0] for finding in caught.value.findings] == [
        f"{path}, line {number}" for number in (1, 6, 7)
    ]
    assert "single quotes: NAME='value'" in str(caught.value)
    assert SECRET not in str(caught.value)


ALPHABET = string.ascii_letters[:6] + "012" + "$$##''\"\"\\\\\\ ``!~{},;&|<>()*?[]=@%^:.-_/+äñ€"
STYLES = {
    "single": lambda text: f"'{text}'",
    "single, escaped": shlex.quote,
    "single, idiom": lambda text: "'" + text.replace("'", r"'\''") + "'",
    "double": lambda text: f'"{text}"',
    "double, escaped": lambda text: '"' + "".join("\\" + c if c in '"\\$`' else c for c in text) + '"',
    "unquoted": lambda text: text,
    "escaped": lambda text: "".join("\\" + c for c in text),
    "half": lambda text: f"'{text[:3]}'\"{text[3:5]}\"{text[5:]}",
}
ALWAYS_READABLE = {"single, escaped", "single, idiom", "double, escaped", "escaped"}


@pytest.mark.parametrize("style", STYLES)
def test_random_passwords_are_never_another_value_than_in_bash(style: str, tmp_path: Path) -> None:
    """One password in a file of its own, as bash gives up a whole file at an open quote."""
    dice = random.Random(f"passwords, {style}")
    readable = 0
    for number in range(150):
        password = "".join(dice.choice(ALPHABET) for _ in range(dice.randint(1, 12)))
        head = dice.choice(["", "export "])
        tail = dice.choice(["\n", "", " # note\n", "\nPM_Y='y'\n"])
        path = env_file(tmp_path, f"{head}PM_X={STYLES[style](password)}{tail}")
        ours = in_ours(path, "PM_X")
        if ours is None:
            assert style not in ALWAYS_READABLE, (number, password)
            continue
        readable += 1
        names = ["PM_X", "PM_Y"] if "PM_Y" in tail else ["PM_X"]
        assert [in_ours(path, name) for name in names] == in_bash(path, *names), (number, path.read_text())
        if style in ALWAYS_READABLE:
            assert ours == password
    assert readable > 10


def test_a_password_without_a_single_quote_is_always_readable_in_single_quotes(tmp_path: Path) -> None:
    dice = random.Random("the form the platform recommends")
    letters = ALPHABET.replace("'", "")
    passwords = ["".join(dice.choice(letters) for _ in range(dice.randint(1, 14))) for _ in range(500)]
    path = env_file(tmp_path, "".join(f"export PM_{i}='{password}'\n" for i, password in enumerate(passwords)))
    variables = read_variables(path)
    names = [f"PM_{i}" for i in range(len(passwords))]
    assert [variables[name] for name in names] == passwords == in_bash(path, *names)


def test_random_text_never_reads_otherwise_than_in_bash(tmp_path: Path) -> None:
    """Whole files of noise: where ours reads the file, bash has the same values."""
    dice = random.Random("noise")
    pieces = [
        "PM_X=",
        "PM_Y=",
        "export ",
        "\n",
        "\n",
        "\n",
        " ",
        "'",
        "'",
        '"',
        '"',
        "\\",
        "#",
        "a",
        "b=",
        "$",
        "'a b'",
        '"c"',
    ]
    read = 0
    for _ in range(4000):
        path = env_file(tmp_path, "PM_X=" + "".join(dice.choice(pieces) for _ in range(dice.randint(1, 9))))
        try:
            ours = read_variables(path)
        except EnvironmentInvalid:
            continue
        if read < 400:
            read += 1
            assert [ours.get("PM_X", ""), ours.get("PM_Y", "")] == in_bash(path, "PM_X", "PM_Y"), path.read_text()
    assert read > 200


def test_the_process_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = env_file(tmp_path, "MANTIK_USERNAME=file\nMANTIK_PROJECT_ID=file\n")
    monkeypatch.setenv("MANTIK_USERNAME", "process")
    before = dict(os.environ)
    variables = read_variables(str(path))
    assert (variables["MANTIK_USERNAME"], variables["MANTIK_PROJECT_ID"]) == ("process", "file")
    assert read_variables() == before == dict(os.environ)


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "No such file"), ("folder", "directory"), (b"\nPM_X=\xff", "line 2 .*not UTF-8")],
    ids=str,
)
def test_a_file_that_cannot_be_read_is_an_error(content: str | bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / ".env"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        env_file(tmp_path, content)
    with pytest.raises(EnvironmentInvalid, match=said) as caught:
        read_variables(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, True), (0o604, True)])
def test_a_file_that_others_can_read_is_warned_about(
    mode: int, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = env_file(tmp_path, "PM_X=a")
    path.chmod(mode)
    with caplog.at_level(logging.WARNING, "prefect_mantik.environment"):
        read_variables(path)
    assert ("chmod 600" in caplog.text) == warned


# --- URLs -----------------------------------------------------------------------------------------------------------

BOTH = {
    "https://api.cloud.mantik.ai": "https://api.cloud.mantik.ai",
    "https://api.cloud.mantik.ai/": "https://api.cloud.mantik.ai",
    "HTTPS://Api.Cloud.Mantik.AI:8443/": "https://api.cloud.mantik.ai:8443",
    "http://localhost:5000": "http://localhost:5000",
    "http://LOCALHOST": "http://localhost",
    "http://127.0.0.1:1/": "http://127.0.0.1:1",
    "http://127.9.9.9": "http://127.9.9.9",
    "http://[::1]:65535/": "http://[::1]:65535",
    "https://[2001:DB8::1]": "https://[2001:db8::1]",
    "https://mantik_api": "https://mantik_api",
}
NEITHER = {
    "": "does not start",
    "api.cloud.mantik.ai": "does not start",
    "//api.cloud.mantik.ai": "does not start",
    "ftp://api.cloud.mantik.ai": "does not start",
    "https:/api.cloud.mantik.ai": "does not start",
    " https://api.cloud.mantik.ai": "space",
    "https://api.cloud.mantik.ai\n": "space",
    "https://api.cloud .mantik.ai": "space",
    "https://": "host or port",
    "https:///tracking": "host or port",
    "https://a..b": "host or port",
    "https://.a": "host or port",
    "https://h:port": "host or port",
    "https://h:": "host or port",
    "https://h:0": "host or port",
    "https://h:65536": "host or port",
    "https://h:443:443": "host or port",
    "https://[::1": "host or port",
    "https://[:::]": "host or port",
    "https://münchen.example": "host or port",
    "https://api.cloud.mantik.ai?": "query",
    "https://api.cloud.mantik.ai/?token=hunter2-Zq9": "query",
    "https://api.cloud.mantik.ai/#hunter2-Zq9": "fragment",
    "https://ada:hunter2-Zq9@api.cloud.mantik.ai": "user name",
    "https://ada:12/hunter2-Zq9@api.cloud.mantik.ai": "user name",
    "https://hunter2-Zq9@localhost": "user name",
    "https://a\\@b": "user name",
    "http://api.cloud.mantik.ai": "plain http",
    "http://127.0.0.1.example.org": "plain http",
    "http://localhost.example.org": "plain http",
    "http://127.1": "plain http",
    "http://[::2]": "plain http",
    "http://0.0.0.0": "plain http",
}


@pytest.mark.parametrize("check", [check_api_url, check_tracking_uri])
@pytest.mark.parametrize(("given", "expected"), BOTH.items())
def test_urls_are_normalised(check, given: str, expected: str) -> None:
    assert check(given) == check(expected) == expected


@pytest.mark.parametrize("self_hosted", [False, True])
@pytest.mark.parametrize("check", [check_api_url, check_tracking_uri])
@pytest.mark.parametrize(("given", "said"), NEITHER.items())
def test_bad_urls_are_refused_with_the_right_form_and_not_echoed(
    check, given: str, said: str, self_hosted: bool
) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        check(given, self_hosted=self_hosted)
    assert "right form is https://<host>" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert "ada" not in str(caught.value)


@pytest.mark.parametrize("path", ["/api", "/tracking/api/2.0", "/Tracking", "/%74racking", "//tracking", "/tracking;a"])
def test_paths(path: str) -> None:
    host = "https://mantik.example.org"
    for check in (check_api_url, check_tracking_uri):
        with pytest.raises(ValueError, match="another path"):
            check(host + path)
        assert check(host + path + "/", self_hosted=True) == host + path
    assert check_tracking_uri(host + "/tracking/") == host + "/tracking"
    with pytest.raises(ValueError, match="another path"):
        check_api_url(host + "/tracking")


# --- The models -----------------------------------------------------------------------------------------------------


def set_all(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, LOGIN | {"MANTIK_API_URL": "", "MANTIK_PROJECT_ID": "", "MANTIK_UNICORE_USERNAME": " "})
    environment = MantikEnvironment.load()
    assert (environment.api_url, environment.tracking_uri) == (DEFAULT_API_URL, DEFAULT_TRACKING_URI)
    assert environment.username == "ada"
    assert environment.password.get_secret_value() == SECRET
    assert environment.project_id is environment.unicore_username is environment.connection_id is None
    assert check_api_url(DEFAULT_API_URL) == DEFAULT_API_URL
    assert check_tracking_uri(DEFAULT_TRACKING_URI) == DEFAULT_TRACKING_URI


def test_everything_from_a_file(tmp_path: Path) -> None:
    path = env_file(
        tmp_path,
        f"""
        export MANTIK_USERNAME=ada
        export MANTIK_PASSWORD='{SECRET}'
        export MLFLOW_TRACKING_URI=https://mantik.example.org/tracking/
        export MANTIK_API_URL=https://mantik.example.org/
        export MANTIK_COMPUTE_BUDGET_ACCOUNT=slai
        export MANTIK_UNICORE_USERNAME=ada1
        export MANTIK_UNICORE_PASSWORD='{SECRET}-u'
        export MANTIK_FIRECREST_CLIENT_ID=client
        export MANTIK_FIRECREST_CLIENT_SECRET='{SECRET}-f'
        export MANTIK_PROJECT_ID={A_UUID}
        export MANTIK_EXPERIMENT_REPOSITORY_ID={A_UUID}
        export MANTIK_DATA_REPOSITORY_ID={A_UUID}
        export MANTIK_CODE_REPOSITORY_ID={A_UUID}
        export MANTIK_CONNECTION_ID={A_UUID}
        """,
    )
    environment = MantikEnvironment.load(path)
    assert environment.tracking_uri == "https://mantik.example.org/tracking"
    assert environment.api_url == "https://mantik.example.org"
    assert environment.compute_budget_account == "slai"
    assert environment.unicore_password
    assert environment.unicore_password.get_secret_value() == SECRET + "-u"
    assert environment.project_id == UUID(A_UUID)
    assert environment.connection_id
    assert environment.connection_id.get_secret_value() == UUID(A_UUID)
    assert SECRET not in repr(environment) + environment.model_dump_json()
    assert A_UUID not in repr(environment.connection_id)


def test_all_findings_come_at_once_and_hold_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {
        "MANTIK_PASSWORD": SECRET + " ",
        "MANTIK_API_URL": f"https://ada:{SECRET}@api.cloud.mantik.ai",
        "MLFLOW_TRACKING_URI": f"https://api.cloud.mantik.ai/{SECRET}",
        "MANTIK_PROJECT_ID": SECRET,
        "MANTIK_CONNECTION_ID": A_UUID[:-1],
        "MANTIK_UNICORE_PASSWORD": SECRET,
        "MANTIK_FIRECREST_CLIENT_ID": "client",
        "MANTIK_COMPUTE_BUDGET_ACCOUNT": "slai\t",
    }
    set_all(monkeypatch, wrong)
    with pytest.raises(EnvironmentInvalid) as caught:
        MantikEnvironment.load()
    expected = {
        "MANTIK_USERNAME": "export MANTIK_USERNAME='<value>'",
        "MANTIK_PASSWORD": "space",
        "MANTIK_API_URL": f"as in {DEFAULT_API_URL}",
        "MLFLOW_TRACKING_URI": f"as in {DEFAULT_TRACKING_URI}",
        "MANTIK_PROJECT_ID": "01234567-",
        "MANTIK_CONNECTION_ID": "01234567-",
        "MANTIK_UNICORE_PASSWORD": "MANTIK_UNICORE_USERNAME is not",
        "MANTIK_FIRECREST_CLIENT_ID": "MANTIK_FIRECREST_CLIENT_SECRET is not",
        "MANTIK_COMPUTE_BUDGET_ACCOUNT": "space",
    }
    found = {finding.replace(":", " ").split()[0]: finding for finding in caught.value.findings}
    assert len(caught.value.findings) == len(expected)
    for name, said in expected.items():
        assert said in found[name]
    everything = str(caught.value) + repr(pickle.loads(pickle.dumps(caught.value)))
    assert SECRET not in everything
    assert A_UUID[:-1] not in everything
    assert caught.value.__context__ is None


def test_an_empty_password_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, LOGIN | {"MANTIK_PASSWORD": ""})
    with pytest.raises(EnvironmentInvalid, match="MANTIK_PASSWORD is missing or empty"):
        MantikEnvironment.load()


def test_self_hosted_allows_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"MANTIK_API_URL": "https://example.org/mantik", "MLFLOW_TRACKING_URI": "https://example.org/mlflow/"}
    set_all(monkeypatch, LOGIN | own)
    with pytest.raises(EnvironmentInvalid):
        MantikEnvironment.load()
    environment = MantikEnvironment.load(self_hosted=True)
    assert (environment.api_url, environment.tracking_uri) == (own["MANTIK_API_URL"], "https://example.org/mlflow")


def test_made_by_hand_it_is_checked_and_frozen() -> None:
    environment = MantikEnvironment(username="ada", password=SECRET, api_url="https://Example.org/")
    assert environment.api_url == "https://example.org"
    with pytest.raises(ValueError, match="frozen"):
        environment.username = "bob"
    with pytest.raises(ValueError, match="right form") as caught:
        MantikEnvironment(username="ada", password=SECRET, api_url=f"https://{SECRET}@example.org")
    assert SECRET not in str(caught.value)


IN_A_JOB = {
    "MANTIK_GIT_REF": "main",
    "MANTIK_WORKING_DIRECTORY": "/scratch/run",
    "MLFLOW_EXPERIMENT_ID": "12",
    "MLFLOW_RUN_ID": "abc",
    "MLFLOW_RUN_NAME": "train",
    "MLFLOW_TRACKING_TOKEN": SECRET,
    "MLFLOW_TRACKING_URI": DEFAULT_TRACKING_URI,
    "MANTIK_RUN_KEY": "pm-key",
}


def test_the_runtime_context_has_all_but_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, IN_A_JOB)
    context = RuntimeContext.current()
    assert context == RuntimeContext.current(IN_A_JOB)
    assert context.model_dump() == {
        "git_ref": "main",
        "working_directory": Path("/scratch/run"),
        "experiment_id": "12",
        "run_id": "abc",
        "run_name": "train",
        "tracking_uri": DEFAULT_TRACKING_URI,
        "run_key": "pm-key",
    }


def test_the_runtime_context_can_do_without_some() -> None:
    optional = {"MANTIK_GIT_REF", "MLFLOW_RUN_NAME", "MANTIK_RUN_KEY"}
    context = RuntimeContext.current({name: value for name, value in IN_A_JOB.items() if name not in optional})
    assert context.git_ref is context.run_name is context.run_key is None


SITE_LOGINS = {
    unicore_login: ("MANTIK_UNICORE_USERNAME", "MANTIK_UNICORE_PASSWORD", "UnicoreCredentials"),
    firecrest_login: ("MANTIK_FIRECREST_CLIENT_ID", "MANTIK_FIRECREST_CLIENT_SECRET", "FirecrestCredentials"),
}


@pytest.mark.parametrize("login", SITE_LOGINS)
def test_the_login_of_a_site(login: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    name, secret, block = SITE_LOGINS[login]
    with pytest.raises(EnvironmentInvalid, match=f"{name} and {secret} not set: set both .*{block} or a Connection"):
        login()
    monkeypatch.setenv(secret, SECRET)
    with pytest.raises(EnvironmentInvalid, match=f": {name} not set") as caught:
        login()
    assert SECRET not in str(caught.value)
    with pytest.raises(EnvironmentInvalid, match=f": {secret} not set"):
        login({name: "ada", secret: ""})
    monkeypatch.setenv(name, "ada")
    found, hidden = login()
    assert (found, hidden.get_secret_value()) == ("ada", SECRET)
    assert SECRET not in repr(hidden)


def test_outside_a_job_there_is_no_runtime_context() -> None:
    with pytest.raises(EnvironmentInvalid, match=r"MLFLOW_RUN_ID.* only inside a run of the platform"):
        RuntimeContext.current()
    with pytest.raises(EnvironmentInvalid, match="malformed: MLFLOW_RUN_ID"):
        RuntimeContext.current({**IN_A_JOB, "MLFLOW_RUN_ID": ""})


# --- What would win over the token ----------------------------------------------------------------------------------


def test_nothing_foreign() -> None:
    assert foreign_tracking_credentials({}) == []
    assert foreign_tracking_credentials({"MLFLOW_TRACKING_USERNAME": "", "MLFLOW_TRACKING_TOKEN": SECRET}) == []


def test_foreign_variables_are_named() -> None:
    names = ["MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"]
    assert foreign_tracking_credentials(dict.fromkeys(names, SECRET)) == names


@pytest.mark.parametrize(
    ("content", "found"),
    [(f"[mlflow]\nmlflow_tracking_password = {SECRET}%", 1), ("[databricks]\na = b", 0), ("no section", 0), (None, 0)],
)
def test_mlflow_credentials_file(content: str | None, found: int, tmp_path: Path) -> None:
    if content is not None:
        folder = tmp_path / "home" / ".mlflow"
        folder.mkdir()
        (folder / "credentials").write_text(content)
    assert foreign_tracking_credentials({}) == ["~/.mlflow/credentials (section [mlflow])"] * found


NETRC = f"machine {{}} login ada password {SECRET}\n"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (NETRC.format("api.cloud.mantik.ai"), True),
        (NETRC.format("example.org"), False),
        (f"default login ada password {SECRET}\n", True),
        ("machine", False),
        ("nonsense here", False),
    ],
)
@pytest.mark.parametrize("name", [".netrc", "_netrc", "named"])
def test_netrc(content: str, found: bool, name: str, tmp_path: Path) -> None:
    path = tmp_path / "home" / name
    path.write_text(content)
    path.chmod(0o600)
    variables = {"NETRC": str(path)} if name == "named" else {}
    shown = str(path) if name == "named" else f"~/{name}"
    assert foreign_tracking_credentials(variables) == [f"{shown} (entry for api.cloud.mantik.ai)"] * found


def test_netrc_goes_by_the_tracking_host_and_the_named_file_hides_the_usual_one(tmp_path: Path) -> None:
    (tmp_path / "home" / ".netrc").write_text(NETRC.format("localhost"))
    local = {"MLFLOW_TRACKING_URI": "http://localhost:5000/tracking"}
    assert foreign_tracking_credentials(local) == ["~/.netrc (entry for localhost)"]
    assert foreign_tracking_credentials({}) == []
    assert foreign_tracking_credentials({**local, "NETRC": str(tmp_path / "none")}) == []
    assert foreign_tracking_credentials({"MLFLOW_TRACKING_URI": "http://[bad"}) == []


def test_the_import_is_light() -> None:
    script = "import sys, prefect_mantik.environment; print({'prefect', 'dotenv', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_variable_that_hides_another_value_of_the_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / ".env"
    path.touch(mode=0o600)
    path.write_text("MANTIK_USERNAME=alice\nMANTIK_PASSWORD=in-the-file\n")
    monkeypatch.setenv("MANTIK_USERNAME", "alice")
    monkeypatch.setenv("MANTIK_PASSWORD", "in-the-environment")
    assert read_variables(path)["MANTIK_PASSWORD"] == "in-the-environment"
    assert caplog.messages == [f"{path}: the environment has other values, and wins: MANTIK_PASSWORD"]
