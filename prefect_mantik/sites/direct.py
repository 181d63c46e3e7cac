"""What all sites that are reached directly share: the code, the script's first lines, the tracking token.

On these roads nobody but us fetches the code of a run, and tells its job what the platform would. The job's token for
the tracking server is not in its description, which others may read: it lies in a file of the run directory and is kept
fresh for as long as the job waits.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator

from pydantic import SecretStr

from prefect_mantik.backend_config import parse_backend_config
from prefect_mantik.credentials import MantikProject
from prefect_mantik.errors import ConfigurationError, NotFound, RequestFailed
from prefect_mantik.mlproject import entry_command, parse_mlproject
from prefect_mantik.platform import LastingToken
from prefect_mantik.platform.schemas import CodeRepositoryAnswer
from prefect_mantik.runs import (
    CodeDirectory,
    CodeRepository,
    GitCode,
    RunKey,
    RunSpec,
)
from prefect_mantik.staging import StagedCode, stage
from prefect_mantik.tracking import TrackedRun

CODE = "mantik-code.tar.gz"
TOKEN_FILE = "mantik-token"  # noqa: S105  # its name
RESERVED = re.compile(
    r"mantik\.(sh|log|err)|mantik-(token|before\.sh|after\.sh|run\.json|running|cancelled-.*|job-.*|code.*\.tar\.gz.*)"
)
"""What the run directory holds besides the code."""

UNPACK = f"""\
if [ -f {CODE} ]; then
  tar -xzf {CODE} && rm -f {CODE} || {{ echo "mantik: {CODE} cannot be unpacked here"; exit 1; }}
fi"""

TRACK = f"""\
unset MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD
mantik_tracking() {{
  local expires token complete
  for try in 1 2 3; do
    read -r expires token complete < {TOKEN_FILE} && [ "$complete" = complete ] && break
    sleep 1
  done
  if [ "$complete" = complete ] && [ "$(date +%s)" -lt "$expires" ]; then
    export MLFLOW_TRACKING_TOKEN="$token"
    return
  fi
  echo "mantik: no valid tracking token, so this run logs to $PWD/mlruns instead of $MLFLOW_TRACKING_URI"
  export MLFLOW_TRACKING_URI="file://$PWD/mlruns" MLFLOW_ALLOW_FILE_STORE=true
  unset MLFLOW_RUN_ID MLFLOW_EXPERIMENT_ID MLFLOW_TRACKING_TOKEN
}}
[ -f {TOKEN_FILE} ] && chmod 600 {TOKEN_FILE}
mantik_tracking"""
"""Without a token a run trains all the same. MLflow 3.7 and later take a file store only when told so."""


def first_lines() -> list[str]:
    """What a job's script does before anything of the user's."""
    return [UNPACK, TRACK]


def token_file(token: LastingToken) -> bytes:
    """What the token file holds: when the token ends (seconds since 1970), the token, and a word that it is whole."""
    return f"{int(token.expires_at.timestamp())} {token.token.get_secret_value()} complete\n".encode()


def command_of(spec: RunSpec, staged: StagedCode) -> str:
    """The command of the spec's entry point, with its parameters.

    Raises:
        MLprojectInvalid: The MLproject has no such entry point, or the parameters do not fit.
        ConfigurationError: The code holds a file of a name that we need.
    """
    taken = sorted(filter(RESERVED.fullmatch, staged.top_level))
    if taken:
        raise ConfigurationError(f"The code holds {', '.join(taken)}, which prefect-mantik writes itself: rename that.")
    project = parse_mlproject(staged.mlproject, where=spec.mlproject_path)
    return entry_command(project, spec.entry_point, spec.parameters)


def variables_of(spec: RunSpec, key: RunKey, attempt: int, run: TrackedRun, tracking_uri: str) -> dict[str, str]:
    """The variables that the platform gives to a job, and ours. No secrets."""
    code = spec.code
    ref = code.ref if isinstance(code, GitCode) else "" if isinstance(code, CodeDirectory) else _version(code)
    data = spec.data
    given = {
        "MANTIK_RUN_KEY": f"{key.site_key}-{attempt}",
        "MANTIK_RUN_KEY_DIGEST": key.digest,
        "MANTIK_RUN_SPEC_DIGEST": spec.digest,
        "MANTIK_PROJECT_ID": str(spec.project_id),
        "MANTIK_EXPERIMENT_REPOSITORY_ID": str(spec.experiment_repository_id),
        "MANTIK_CODE_REPOSITORY_ID": str(code.repository_id) if isinstance(code, CodeRepository) else "",
        "MANTIK_GIT_REF": ref,
        "MANTIK_DATA_REPOSITORY_ID": str(data.repository_id) if data else "",
        "MANTIK_DATA_REPOSITORY_BRANCH": (data.branch or "") if data else "",
        "MANTIK_DATA_REPOSITORY_COMMIT": (data.commit or "") if data else "",
        "MLFLOW_TRACKING_URI": tracking_uri,
        "MLFLOW_EXPERIMENT_ID": run.experiment_id,
        "MLFLOW_RUN_ID": run.run_id,
        "MLFLOW_RUN_NAME": run.name,
    }
    return {name: value for name, value in given.items() if value}


def _version(code: CodeRepository) -> str:
    return code.commit or code.branch or ""


@contextlib.asynccontextmanager
async def staged_code(spec: RunSpec, project: MantikProject, commit: str | None) -> AsyncIterator[StagedCode]:
    """Fetch and pack the code of a run.

    Args:
        spec: Names the code.
        project: Whose code repository it may be in.
        commit: Take this one instead of the spec's branch, which may have moved.
    """
    code, token = await _resolved(spec, project)
    if commit and isinstance(code, GitCode):
        code = GitCode(url=code.url, ref=commit)
    config = parse_backend_config(spec.backend_config)
    image = config.environment.apptainer
    async with stage(
        code,
        mlproject_path=spec.mlproject_path,
        exclude=config.exclude,
        image=image.path if image and image.type == "local" else None,
        token=token,
    ) as staged:
        yield staged


async def _resolved(spec: RunSpec, project: MantikProject) -> tuple[GitCode | CodeDirectory, SecretStr | None]:
    """Where the code of a run is; for a private repository of the platform also its token, kept in memory only."""
    if not isinstance(spec.code, CodeRepository):
        return spec.code, None
    platform = project.credentials.get_client()
    try:
        found = await platform.code_repository(spec.project_id, spec.code.repository_id)
    except NotFound as error:
        raise ConfigurationError(
            f"Project {spec.project_id} has no code repository {spec.code.repository_id} ({error.detail}). Check the "
            "MantikProject block."
        ) from None
    return GitCode(url=found.uri, ref=_version(spec.code)), await _git_token(project, found)


async def _git_token(project: MantikProject, repository: CodeRepositoryAnswer) -> SecretStr | None:
    if repository.connection_id is None:
        return None
    try:
        found = await project.credentials.get_client().connection(repository.connection_id)
    except RequestFailed as error:
        if error.status not in (403, 404):
            raise
        raise ConfigurationError(
            f"The code repository {repository.uri} is private, and its Connection is none of "
            f"{project.credentials.username!r}'s ({error.detail}): who submits needs one of their own for it."
        ) from None
    return found.token or found.password
