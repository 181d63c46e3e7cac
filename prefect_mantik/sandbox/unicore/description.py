"""UNICORE job descriptions, turned into something to run as UNICORE does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect_mantik.sandbox.jobs import JobFailed, JobRequest
from prefect_mantik.sandbox.scripts import EXIT_CODE_FILE
from prefect_mantik.sandbox.unicore.replies import parse_iso_time
from prefect_mantik.sandbox.unicore.resources import MEBIBYTE, Resources, check_resources, read_resources

_BATCH = ("batch", "normal")
_LOGIN_NODE = ("on_login_node", "interactive")
_APPLICATIONS = {"Date": "/bin/date", "Bash shell": "/bin/bash", "bash": "/bin/bash"}
_UMASK = "0027"


@dataclass(frozen=True)
class Import:
    """A file to stage in."""

    to: str
    source: str
    data: str | None
    mode: str = "overwrite"
    permissions: str = ""
    fail_on_error: bool = True


@dataclass(frozen=True, kw_only=True)
class Understood:
    """A job description that was read as far as it can be.

    Attributes:
        request: What the scheduler is to run.
        imports: What is to be staged in before.
        waits: Whether the client is to start the job.
        name: As the job's properties give it.
        job_type: As the job's properties give it.
        resources: As the job's log gives them.
        problem: Why the job fails as soon as it is looked at.
        late_problem: Why it fails when it is handed to the batch system.
    """

    request: JobRequest
    imports: list[Import] = field(default_factory=list)
    waits: bool = False
    name: str = "N/A"
    job_type: str = "n/a"
    resources: str = ""
    problem: str = ""
    late_problem: str = ""


def understand(
    description: Mapping[str, Any], *, directory: Path, dn: str, slots: int, projects: frozenset[str]
) -> Understood:
    """Read a job description; what is wrong with it shows only when the job is processed.

    Args:
        description: The job description.
        directory: The job's working directory.
        dn: Who submits.
        slots: The nodes of the site.
        projects: Those the site knows; empty stands for any.
    """
    waits = _flag(description, "haveClientStageIn")
    try:
        return _read(description, directory, dn, slots, projects, waits)
    except (JobFailed, AttributeError, TypeError) as error:  # the latter: a value of a kind nobody expects
        nothing = JobRequest(name="N/A", queue="N/A", nodes=1, walltime=1.0, script="", description=description)
        return Understood(request=nothing, waits=waits, problem=str(error))


def tags_of(description: Mapping[str, Any]) -> list[str]:
    """Give the tags of a job description."""
    tags = description.get("Tags", description.get("tags", []))
    return [str(tag) for tag in tags] if isinstance(tags, list) else []


def without_data(description: Mapping[str, Any]) -> dict[str, Any]:
    """Give a job description as the server keeps it: without the data that came with it."""
    imports = description.get("Imports")
    if isinstance(imports, Mapping):
        kept: Any = {to: _blank(item) for to, item in imports.items()}
    elif isinstance(imports, list):
        kept = [_blank(item) for item in imports]
    else:
        return dict(description)
    return {**description, "Imports": kept}


def _blank(item: Any) -> Any:
    return {**item, "Data": "n/a"} if isinstance(item, Mapping) and "Data" in item else item


def _read(
    description: Mapping[str, Any],
    directory: Path,
    dn: str,
    slots: int,
    projects: frozenset[str],
    waits: bool,
) -> Understood:
    executable = _executable(description)
    environment = {**_environment(description.get("Environment", {})), **_parameters(description)}
    before, after = str(description.get("User precommand", "")), str(description.get("User postcommand", ""))
    before_there = _flag(description, "RunUserPrecommandOnLoginNode", default=True)
    after_there = _flag(description, "RunUserPostcommandOnLoginNode", default=True)
    kind = str(description.get("Job type", "batch")).lower()
    if kind not in (*_BATCH, *_LOGIN_NODE):
        raise _failure("java.lang.IllegalArgumentException", f"Job type '{kind}' is not supported here")
    umask = _umask(description)
    not_before = _not_before(description)
    imports = _imports(description.get("Imports", []))
    nothing = not executable and not before and not after
    asked = _mapping(description, "Resources")
    resources = read_resources(asked, str(description.get("Project", "")))
    head = _head(resources, umask, environment, dn, directory)
    main = _main(description, executable, "" if before_there else before, "" if after_there else after)
    name = str(description.get("Name") or description.get("ApplicationName") or "UNICORE_Job")
    request = JobRequest(
        name=name,
        queue=resources.queue,
        nodes=min(max(resources.number("Nodes"), 1), slots),
        walltime=float(resources.number("Runtime")),
        script="" if nothing else f"{head}{main}",
        login_shell=True,
        before=f"{head}{before}\n" if before and before_there else "",
        after=f"{head}{after}\n" if after and after_there else "",
        before_may_fail=_flag(description, "UserPrecommandIgnoreNonZeroExitCode"),
        after_may_fail=_flag(description, "UserPostcommandIgnoreNonZeroExitCode"),
        environment=environment,
        output=str(description.get("Stdout", "stdout")),
        error=str(description.get("Stderr", "stderr")),
        ignore_exit_code=_flag(description, "IgnoreNonZeroExitCode"),
        leaves_exit_code=bool(executable),
        on_login_node=kind in _LOGIN_NODE,
        not_before=not_before,
        umask=int(umask, 8),
        description=description,
    )
    return Understood(
        request=request,
        imports=imports,
        waits=waits,
        name=str(description.get("Name", "N/A")) if nothing else name,
        job_type="n/a" if nothing and not imports else "ON_LOGIN_NODE" if request.on_login_node else "BATCH",
        resources=resources.listed,
        late_problem=_late_problem(name, asked, resources, slots, projects),
    )


def _late_problem(
    name: str, asked: Mapping[str, Any], resources: Resources, slots: int, projects: frozenset[str]
) -> str:
    try:
        check_resources(asked, resources, slots=slots, projects=projects)
    except JobFailed as error:
        return str(error)
    if "\n" in name:
        cause = "java.lang.IllegalArgumentException: Job name contains illegal characters: '\n'"
        return f"Processing failed: {cause}"
    return ""


def _executable(description: Mapping[str, Any]) -> str:
    executable = description.get("Executable")
    if executable is None and "ApplicationName" in description:
        application = str(description["ApplicationName"])
        if application not in _APPLICATIONS:
            cause = f"The requested Application '{application}' is not available. "
            raise _failure("eu.unicore.xnjs.ems.ExecutionException", f"{cause}(Requested application is not defined)")
        return _APPLICATIONS[application]
    return str(executable or "").strip()


def _head(resources: Resources, umask: str, environment: Mapping[str, str], dn: str, directory: Path) -> str:
    memory = resources.number("MemoryPerNode")
    lines = [
        "#!/bin/bash -l",
        f"UC_NODES={resources.number('Nodes')}; export UC_NODES",
        f"UC_PROCESSORS_PER_NODE={resources.number('CPUsPerNode')}; export UC_PROCESSORS_PER_NODE",
        f"UC_TOTAL_PROCESSORS={resources.number('TotalCPUs')}; export UC_TOTAL_PROCESSORS",
        f"UC_RUNTIME={resources.number('Runtime')}; export UC_RUNTIME",
        f"UC_MEMORY_PER_NODE={memory // MEBIBYTE if memory > 0 else -1}; export UC_MEMORY_PER_NODE",
        f"umask {umask}",
        # Nothing is quoted, and the working directory is not known yet: so it is at the real server.
        *(f'{name}="{value}"; export {name}' for name, value in environment.items()),
        f'UC_USERDN="{dn}"; export UC_USERDN',
        "PATH=$PATH:. ; export PATH",
        f'UC_WORKING_DIRECTORY="{directory}/"; export UC_WORKING_DIRECTORY',
        f'UC_OUTPUT_DIRECTORY="{directory}/"; export UC_OUTPUT_DIRECTORY',
        "cd ${UC_WORKING_DIRECTORY}",
        "",
    ]
    return "\n".join(lines)


def _main(description: Mapping[str, Any], executable: str, before: str, after: str) -> str:
    lines = []
    if executable:
        # The executable's text is looked at twice: once here, within quotes that it may break.
        lines += [f'UC_EXECUTABLE="{executable}"; export UC_EXECUTABLE']
        lines += [f'chmod u+x "{executable.split()[0]}" 2> /dev/null ']
    lines += [f"rm -f ${{UC_OUTPUT_DIRECTORY}}/{EXIT_CODE_FILE}"]
    if before:
        lines += ["# user defined pre-command", before]
    if executable:
        given = description.get("Arguments", [])
        arguments = "".join(f" {argument}" for argument in given) if isinstance(given, list) else ""
        entry = f" < ${{UC_WORKING_DIRECTORY}}/{description['Stdin']}" if description.get("Stdin") else ""
        lines += [f"{executable}{arguments}{entry}", "", f"echo $? > ${{UC_OUTPUT_DIRECTORY}}/{EXIT_CODE_FILE}"]
    if after:
        lines += ["", "# user defined post-command", after]
    return "\n".join([*lines, ""])


def _environment(given: Any) -> dict[str, str]:
    if not isinstance(given, (list, Mapping)):
        return {}
    if isinstance(given, list):
        pairs = (str(item).partition("=") for item in given)
        return {name: value for name, _, value in pairs}
    for name, value in given.items():
        if not isinstance(value, str):
            raise _not_a_string(name, value)
    return dict(given)


def _parameters(description: Mapping[str, Any]) -> dict[str, str]:
    parameters = _mapping(description, "Parameters")
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            raise _failure(
                "java.lang.UnsupportedOperationException", f"Parameter sweep over {name}: not in the sandbox"
            )
    return {name: str(value) for name, value in parameters.items()}


def _imports(given: Any) -> list[Import]:
    if isinstance(given, Mapping):
        given = [{"To": to, **(item if isinstance(item, Mapping) else {"From": item})} for to, item in given.items()]
    elif not isinstance(given, list):
        raise _failure(
            "eu.unicore.xnjs.ems.ExecutionException",
            "'Imports' must be an array or a map (Job description error)",
        )
    imports = []
    for item in given:
        data = item.get("Data")
        if isinstance(data, list):
            data = "".join(f"{line}\n" for line in data)
        source = str(item.get("From", "inline://"))
        if data is None and source.startswith("inline:"):
            cause = 'Cannot invoke "String.length()" because "this.input" is null'
            raise _failure("java.lang.NullPointerException", cause)
        imports.append(
            Import(
                to=str(item.get("To", "")),
                source=source,
                data=None if data is None else str(data),
                mode=str(item.get("Mode", "overwrite")).lower(),
                permissions=str(item.get("Permissions", "")),
                # The real server reads text only: false without quotes counts for nothing.
                fail_on_error=item.get("FailOnError") != "false",
            )
        )
    return imports


def _umask(description: Mapping[str, Any]) -> str:
    umask = str(description.get("Umask", _UMASK))
    try:
        int(umask, 8)
    except ValueError:
        cause = f'For input string: "{umask}" under radix 8'
        raise _failure("java.lang.NumberFormatException", cause) from None
    return umask


def _not_before(description: Mapping[str, Any]) -> float:
    given = description.get("Not before")
    if not given:
        return 0.0
    try:
        return parse_iso_time(str(given))
    except ValueError:
        cause = f"Specified date string '{given}'could not be parsed!"
        raise _failure("java.lang.IllegalArgumentException", cause) from None


def _mapping(description: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = description.get(key)
    return dict(value) if isinstance(value, Mapping) else {}


def _flag(values: Mapping[str, Any], key: str, *, default: bool = False) -> bool:
    return str(values.get(key, default)).lower() == "true"


def _not_a_string(name: str, value: object) -> JobFailed:
    kinds = {bool: "java.lang.Boolean", int: "java.lang.Integer", float: "java.math.BigDecimal"}
    kind = kinds.get(type(value), "org.json.JSONObject")
    return _failure("org.json.JSONException", f'JSONObject["{name}"] is not a string (class {kind} : {value}).')


def _failure(kind: str, cause: str) -> JobFailed:
    return JobFailed(f"Processing failed: {kind}: {cause}")
