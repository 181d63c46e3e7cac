"""A job as it is submitted: the body of the request, and what `sbatch` or the batch system's own API makes of it."""

from __future__ import annotations

import json
import time
from os.path import normpath
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from prefect_mantik.sandbox.firecrest.books import ACCOUNTS, PARTITIONS, Books
from prefect_mantik.sandbox.firecrest.replies import FirecrestError, validation_errors
from prefect_mantik.sandbox.firecrest.sbatch import (
    Options,
    SbatchError,
    check_script,
    directives,
    read_options,
    refused,
    understand,
)
from prefect_mantik.sandbox.jobs import JobRequest

LONGEST_SCRIPT = 4 * 1024 * 1024
# A script that names no interpreter is no program, and the error's number becomes the exit code.
_NO_PROGRAM = 'echo "slurmstepd: error: execve(): $0: Exec format error" >&2; exit 8'
_TOO_LONG = "Pathname of a file, directory or other parameter too long"
_OPTIONS = {
    "name": "job-name",
    "account": "account",
    "partition": "partition",
    "reservation": "reservation",
    "standard_input": "input",
    "standard_output": "output",
    "standard_error": "error",
    "constraints": "constraint",
}
_NO_PARTITION = "Invalid partition name specified"
_NO_ACCOUNT = "Invalid account or account/partition combination specified"
_NO_RESERVATION = "Requested reservation is invalid"
# The numbers that Slurm has for its errors.
_NUMBERS = {_NO_PARTITION: 2000, _NO_ACCOUNT: 2045, _NO_RESERVATION: 2052, _TOO_LONG: 36}


class JobDescription(BaseModel):
    """What a client says of a job."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    name: str | None = None
    account: str | None = None
    reservation: str | None = None
    partition: str | None = None
    working_directory: str
    standard_input: str | None = None
    standard_output: str | None = None
    standard_error: str | None = None
    env: dict[str, str] | list[str] = Field(default_factory=lambda: {"F7T_version": "v2.0.0"})
    constraints: str | None = None
    script: str | None = None
    script_path: str | None = None

    @model_validator(mode="after")
    def _has_a_script(self) -> JobDescription:
        if (self.script is None) is (self.script_path is None):
            raise ValueError("Exactly one of 'script' and 'scriptPath' is needed")
        return self

    def variables(self) -> dict[str, str]:
        """Give the variables as they were sent."""
        if isinstance(self.env, dict):
            return self.env
        return {name: value for name, _, value in (item.partition("=") for item in self.env)}

    def options(self) -> dict[str, str]:
        """Give the fields that are options of `sbatch` too."""
        given = {option: getattr(self, name) for name, option in _OPTIONS.items()}
        return {option: value for option, value in given.items() if value is not None}


class _Body(BaseModel):
    job: JobDescription


def read_job(raw: bytes) -> JobDescription:
    """Read the body of a submission.

    Args:
        raw: The body.

    Raises:
        FirecrestError: With status 400.
    """
    where = ("compute/router.py", 40, "post_job_submit", "POST /compute/{system_name}/jobs")
    try:
        return _Body.model_validate(json.loads(raw)).job
    except ValidationError as error:
        problems: list[Any] = error.errors(include_url=False, include_context=False)
        raise validation_errors([{**each, "loc": ("body", *each["loc"])} for each in problems], *where) from None
    except ValueError:
        problem = {"type": "json_invalid", "loc": ("body", 0), "msg": "JSON decode error", "input": {}}
        raise validation_errors([problem], *where) from None


def submit_with_sbatch(books: Books, description: JobDescription, script: str, login: str) -> int:
    """Submit a job as `sbatch` does, and give its number.

    Args:
        books: Where to.
        description: What was asked for, which wins over what stands in the script.
        script: The script.
        login: The site's user.

    Raises:
        FirecrestError: With status 500 and what `sbatch` printed.
    """
    try:
        check_script(script)
        options = understand({**read_options(directives(script)), **description.options()}, time.time())
        _check(books, options, script)
        request = _request(books, description, script, options, bare=False)
        return books.submit(request, options, login, _workdir(books, description, login))
    except SbatchError as error:
        text = f"Unexpected Slurm command response. exit_status:{error.code} std_err:{error}"
        raise FirecrestError(500, text) from None


def submit_by_api(books: Books, description: JobDescription, script: str, login: str) -> int:
    """Submit a job as the REST API of the batch system does, and give its number.

    Args:
        books: Where to.
        description: What was asked for; nobody looks into the script.
        script: The script.
        login: The site's user.

    Raises:
        FirecrestError: With status 500 and what the batch system answered.
    """
    if not script:
        described = "Batch job script empty or missing"
        raise _api_error(books, described, 2009, "Job script not specified", "script")
    try:
        options = understand(description.options(), time.time())
        _check(books, options, script)
    except SbatchError as error:
        why = str(error).rpartition("failed: ")[2].strip()
        number = _NUMBERS.get(why, 2052)
        source = "slurm_submit_batch_job()"
        raise _api_error(books, "Batch job submission failed", number, why, source) from None
    request = _request(books, description, script, options, bare=True)
    return books.submit(request, options, login, _workdir(books, description, login))


def script_of(books: Books, path: str, login: str) -> str:
    """Read a script that lies at the site.

    Args:
        books: Whose site.
        path: Where it lies.
        login: The site's user.
    """
    found = Path(path)
    own = (books.site.home(login), books.site.scratch(login))
    if any(each in found.parents for each in own) and ".." not in found.parts and found.is_file():
        return found.read_text(errors="replace")
    text = f"exit_status:1 std_err:sbatch: error: Unable to open file {path}\n"
    raise FirecrestError(500, f"Unexpected Slurm command response. {text}")


def _check(books: Books, options: Options, script: str) -> None:
    partition = options.get("partition", "batch")
    if partition not in PARTITIONS:
        first = f"sbatch: error: invalid partition specified: {partition}\n"
        raise SbatchError(f"{first}{refused(_NO_PARTITION)}")
    if options.get("account", ACCOUNTS[0]) not in ACCOUNTS:
        raise refused(_NO_ACCOUNT)
    if "reservation" in options.given:
        raise refused(_NO_RESERVATION)
    if options.nodes > books.site.slots:
        raise refused("Requested node configuration is not available")
    if any(each.number and not books.find(each.number) for each in options.dependencies):
        raise refused("Job dependency problem")
    if len(script) > LONGEST_SCRIPT:
        raise refused(_TOO_LONG)


def _request(books: Books, description: JobDescription, script: str, options: Options, *, bare: bool) -> JobRequest:
    partition = options.get("partition", "batch")
    longest, usual = PARTITIONS[partition]
    name = "" if bare else Path(description.script_path).name if description.script_path else "sbatch"
    words = _interpreter(script)
    return JobRequest(
        name=options.get("job-name", name),
        queue=partition,
        nodes=options.nodes,
        walltime=usual if options.seconds is None else options.seconds or longest,
        script=script,
        login_shell=words[0].endswith("sh") and any(word.startswith("-") and "l" in word for word in words[1:]),
        interpreter=words,
        variables=description.variables() if bare else exported(description.variables()),
        bare=bare,
        output=options.get("output", "slurm-%A_%a.out" if options.array else "slurm-%j.out"),
        error=options.get("error"),
        append=options.get("open-mode", "truncate")[:1] == "a",
        input=options.get("input", "/dev/null"),
        requeue="no-requeue" not in options.given,
        description={"script": script},
    )


def exported(variables: dict[str, str]) -> dict[str, str]:
    """Give the variables that arrive after `sbatch` has taken its option `--export` apart at the commas.

    Args:
        variables: The variables that were sent.
    """
    parts = ",".join(f"{name}={value}" for name, value in variables.items()).split(",")
    return {name: value for name, found, value in (part.partition("=") for part in parts) if found}


def _interpreter(script: str) -> tuple[str, ...]:
    first = script.partition("\n")[0]
    words = first.removeprefix("#!").split(None, 1) if first.startswith("#!") else []
    return tuple(word.strip() for word in words) or ("/bin/sh", "-c", _NO_PROGRAM)


def _workdir(books: Books, description: JobDescription, login: str) -> Path:
    return Path(normpath(books.site.home(login) / description.working_directory))


def _api_error(books: Books, description: str, number: int, error: str, source: str) -> FirecrestError:
    content = {
        "errors": [{"description": description, "error_number": number, "error": error, "source": source}],
        "warnings": [],
        "meta": {
            "plugin": {
                "type": "openapi/slurmctld",
                "name": "Slurm OpenAPI slurmctld",
                "data_parser": "data_parser/v0.0.42",
                "accounting_storage": "accounting_storage/slurmdbd",
            },
            "client": {"source": "[localhost]:42010(fd:9)", "user": "root", "group": "root"},
            "command": [],
            "slurm": {
                "version": {"major": "24", "micro": "5", "minor": "11"},
                "release": "24.11.5",
                "cluster": books.site.name,
            },
        },
    }
    text = json.dumps(content, indent=2).replace("/", "\\/")
    return FirecrestError(500, f"Unexpected Slurm API response. status:500 message:{text}")
