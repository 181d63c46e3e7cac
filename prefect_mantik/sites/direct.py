"""What all sites that are reached directly share: the MLflow run, the script's first lines, the tracking token.

On these roads nobody but us makes the MLflow run of a job, tells the job about it, and closes it if the job dies. The
job's token for the tracking server is not in its description, which others may read: it lies in a file of the run
directory and is kept fresh for as long as the job waits.
"""

from __future__ import annotations

from pydantic import SecretStr

from prefect_mantik.backend_config import BackendConfig
from prefect_mantik.credentials import MantikCredentials, MantikProject
from prefect_mantik.documents import aload_block, reference
from prefect_mantik.errors import ConfigurationError, KeyInUse, RequestFailed
from prefect_mantik.log import run_logger
from prefect_mantik.mlproject import entry_command, parse_mlproject
from prefect_mantik.platform import LastingToken
from prefect_mantik.runs import (
    CodeDirectory,
    CodeRepository,
    GitCode,
    RunHandle,
    RunKey,
    RunSpec,
    RunState,
    RunStatus,
)
from prefect_mantik.sites.base import Site
from prefect_mantik.sites.tracked import CANCELLED_TAG, KEY_TAG, RECORD_TAG, RECORDED, identity_of, run_name
from prefect_mantik.staging import StagedCode
from prefect_mantik.tracking import TrackedRun, TrackingClient

CODE = "mantik-code.tar.gz"
TOKEN_FILE = "mantik-token"  # noqa: S105  # its name
LOG = "mantik.log"
RESERVED = frozenset({CODE, TOKEN_FILE, LOG, "mantik.err", "mantik.sh", "mantik-before.sh", "mantik-after.sh"})
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
    taken = sorted(RESERVED & staged.top_level)
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


async def resolve_code(spec: RunSpec, project: MantikProject) -> tuple[GitCode | CodeDirectory, SecretStr | None]:
    """Where the code of a run is; for a private repository of the platform also its token, kept in memory only."""
    if not isinstance(spec.code, CodeRepository):
        return spec.code, None
    platform = project.credentials.get_client()
    found = await platform.code_repository(spec.project_id, spec.code.repository_id)
    token = (await platform.connection(found.connection_id)).token if found.connection_id else None
    return GitCode(url=found.uri, ref=_version(spec.code)), token


def local_image(config: BackendConfig) -> str | None:
    """The container image that is sent along, from the directory of the MLproject; None where there is none."""
    image = config.environment.apptainer
    return image.path if image and image.type == "local" else None


# --- The MLflow run -------------------------------------------------------------------------------------------------


async def open_mlflow_run(project: MantikProject, spec: RunSpec, key: RunKey, attempt: int, site: Site) -> TrackedRun:
    """The MLflow run of an attempt: the one that bears its key, or a new one.

    Raises:
        KeyInUse: It belongs to a run at another site.
    """
    tracking = project.credentials.tracking_client()
    experiment = await project.credentials.get_client().experiment(spec.project_id, spec.experiment_repository_id)
    for run in await tracking.runs_tagged(KEY_TAG, key.site_key, [experiment.mlflow_experiment_id]):
        found = identity_of(run)
        if int(found.get("attempt", 0)) != attempt:
            continue
        if (found.get("kind", "mantik"), found.get("site_name")) != (site.kind, site.name):
            raise KeyInUse(
                f"Key '{key.name}' belongs to a run at {found.get('site_name', 'another site')} "
                f"({tracking.run_link(run.experiment_id, run.run_id)}), not at {site.name}. Use another key."
            )
        if not run.deleted:  # in the UI: such a run takes no more
            return run
    record = RunHandle(
        site=site.reference,
        site_name=site.name,
        kind=site.kind,
        remote_id="",
        site_key=key.site_key,
        attempt=attempt,
        name=key.slug,
        spec_digest=spec.digest[:8],
        platform_project_id=spec.project_id,
    )
    tags = {KEY_TAG: key.site_key, RECORD_TAG: record.model_dump_json(include=RECORDED, exclude_none=True)}
    return await tracking.create_run(experiment.mlflow_experiment_id, run_name(key, attempt, spec), tags)


async def close_mlflow_run(tracking: TrackingClient, handle: RunHandle, status: RunStatus) -> None:
    """Close the MLflow run of a job that ended without doing so itself. A help, not a need: never raises."""
    if handle.mlflow_run_id is None or not status.state.is_end:
        return
    word = {RunState.FINISHED: "FINISHED", RunState.KILLED: "KILLED"}.get(status.state, "FAILED")
    try:
        run = await tracking.run(handle.mlflow_run_id)
        if run is None or run.deleted or run.status in ("FAILED", "KILLED", word):
            return
        if run.status == "FINISHED" and word != "FINISHED":
            run_logger().warning(
                "%s logged that it finished, and then its job ended %s.", handle.describe(), status.describe()
            )
            return
        if run.status == "SCHEDULED" and word == "FINISHED":
            run_logger().warning(
                "%s finished without logging to MLflow. Where it had no valid token, its metrics are in mlruns/ of its "
                "run directory.",
                handle.describe(),
            )
        await tracking.set_status(handle.mlflow_run_id, word, status.ended_at or status.observed_at)
        if word == "KILLED":
            await tracking.set_tags(handle.mlflow_run_id, {CANCELLED_TAG: "true"})
    except RequestFailed as error:
        run_logger().warning("The MLflow run of %s was not closed as %s. %s", handle.describe(), word, error)


async def tracking_of(handle: RunHandle, project: MantikProject | None) -> TrackingClient | None:
    """The tracking server of a run, as the account that submitted it; None where that is not known here."""
    if project is not None and handle.account in (None, reference(project.credentials)):
        return project.credentials.tracking_client()
    if handle.account is None:
        return None
    return (await aload_block(MantikCredentials, handle.account)).tracking_client()
