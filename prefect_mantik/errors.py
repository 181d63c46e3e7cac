"""Every error that prefect-mantik raises on purpose, in one tree.

    MantikError
    ├── ConfigurationError            what was given cannot be used; nothing was sent
    │   ├── EnvironmentInvalid        variables missing or malformed, all of them listed
    │   ├── BlockInvalid              a saved block is missing, incomplete or damaged
    │   ├── BackendConfigInvalid      a compute backend config breaks its schema, all findings listed
    │   ├── MLprojectInvalid          an MLproject, or what is asked of it, cannot be run, all findings listed
    │   └── KeyInvalid                a key that cannot name a run
    ├── NotSupported                  this site, or this version, cannot do that; says what can
    ├── RequestFailed                 a server answered with an error (method, path, status, detail)
    │   ├── LoginRefused              user name, password or token refused; not tried again
    │   ├── NotFound                  the server knows no such thing
    │   └── ServiceUnavailable        no usable answer: unreachable, too slow, overloaded, broken
    ├── SubmitError                   a training run was not submitted, or we do not know
    │   ├── SubmitRefused             the site said no; no job exists
    │   ├── SubmitUnknown             the site cannot tell whether a job exists: we stop and ask
    │   ├── SubmitIncomplete          the site took the job and not its files: it waits for the next try
    │   ├── KeyInUse                  the key belongs to another run: description, site or child flow differ
    │   ├── RunEnded                  the key's run ended without success and `if_ended` is "raise"
    │   ├── DuplicateJobs             the site shows more than one live job under one key
    │   └── SubmitsFailed             some of several submits failed; carries the live handles
    ├── RunsFailed                    some of the runs waited for did not finish; carries all results
    ├── WaitTimeout                   the caller's own timeout passed; says what became of the jobs
    ├── SiteSilent                    a run gave no sign of life for as long as its site's block allows
    └── MetricMissing                 no run has the metric that was asked for

Messages say what happened, where (site, run, key) and what to do about it. They never hold a secret.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect_mantik.runs import RunHandle, RunResult


class MantikError(Exception):
    """Root of all errors of this package."""


class ConfigurationError(MantikError):
    """What was given cannot be used. Nothing was sent anywhere."""


class EnvironmentInvalid(ConfigurationError):
    """One or more environment variables are missing or malformed.

    Attributes:
        findings: One sentence for each variable that is wrong.
    """

    def __init__(self, findings: Sequence[str]) -> None:
        self.findings = list(findings)
        super().__init__(_listed("The environment is not usable", self.findings))

    def __reduce__(self) -> tuple[type[EnvironmentInvalid], tuple[list[str]]]:
        return type(self), (self.findings,)


class BlockInvalid(ConfigurationError):
    """A saved block is missing, incomplete or damaged. The message names the block and the field."""


class BackendConfigInvalid(ConfigurationError):
    """A compute backend config breaks its schema.

    Attributes:
        findings: One sentence for each rule that is broken.
    """

    def __init__(self, findings: Sequence[str]) -> None:
        self.findings = list(findings)
        super().__init__(_listed("The compute backend config is not usable", self.findings))

    def __reduce__(self) -> tuple[type[BackendConfigInvalid], tuple[list[str]]]:
        return type(self), (self.findings,)


class MLprojectInvalid(ConfigurationError):
    """An MLproject file, or an entry point and parameters that are asked of it, cannot be run.

    Attributes:
        findings: One sentence for each thing that is wrong.
    """

    def __init__(self, findings: Sequence[str]) -> None:
        self.findings = list(findings)
        super().__init__(_listed("The MLproject is not usable", self.findings))

    def __reduce__(self) -> tuple[type[MLprojectInvalid], tuple[list[str]]]:
        return type(self), (self.findings,)


class KeyInvalid(ConfigurationError):
    """A key that cannot name a run."""


class NotSupported(MantikError):
    """This site, or this version of the package, cannot do that. The message names what can."""


class RequestFailed(MantikError):
    """A server answered with an error.

    Attributes:
        method: HTTP method.
        path: Path of the endpoint, with placeholders where ids stand (an id may be a secret).
        status: HTTP status, or None where no answer came.
        detail: What the server said, shortened.
    """

    def __init__(
        self, message: str, *, method: str = "", path: str = "", status: int | None = None, detail: str = ""
    ) -> None:
        super().__init__(message)
        self.method, self.path, self.status, self.detail = method, path, status, detail


class LoginRefused(RequestFailed):
    """User name, password or token were refused. Not tried again until they change: centres lock accounts."""

    def again(self) -> LoginRefused:
        """A new object for another raise: one that is kept would gather the traceback of every caller."""
        return LoginRefused(str(self), method=self.method, path=self.path, status=self.status, detail=self.detail)


class NotFound(RequestFailed):
    """The server knows no such thing."""


class ServiceUnavailable(RequestFailed):
    """No usable answer: unreachable, too slow, overloaded or broken.

    Attributes:
        sent: Whether the request may have reached the server, so that it may have acted on it.
        retry_after: Seconds for which the server asked not to be asked again, where it did.
    """

    def __init__(
        self,
        message: str,
        *,
        method: str = "",
        path: str = "",
        status: int | None = None,
        detail: str = "",
        sent: bool = True,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, method=method, path=path, status=status, detail=detail)
        self.sent, self.retry_after = sent, retry_after


class SubmitError(MantikError):
    """A training run was not submitted, or we do not know whether it was."""


class SubmitRefused(SubmitError):
    """The site refused the run. No job exists."""


class SubmitUnknown(SubmitError):
    """The site cannot tell whether a job exists. Nothing more was sent: the next try under the same key asks again."""


class SubmitIncomplete(SubmitError):
    """The site took the job and not its files. It waits there unstarted; the next try under the same key goes on."""


class KeyInUse(SubmitError):
    """The key belongs to a run with another description, at another site, or of another flow run of the same tree."""


class RunEnded(SubmitError):
    """The key's run ended without success, and `if_ended` does not allow another attempt."""


class DuplicateJobs(SubmitError):
    """The site shows more than one live job under one key. Nothing was cancelled."""


class SubmitsFailed(SubmitError):
    """Some of several submits failed.

    Attributes:
        handles: The runs that were submitted or found, by key. They may be live: wait for them or cancel them.
        errors: What went wrong with each of the others, by key.
    """

    def __init__(self, handles: Mapping[str, RunHandle], errors: Mapping[str, BaseException]) -> None:
        self.handles, self.errors = dict(handles), dict(errors)
        others = f" (submitted or found: {', '.join(self.handles)})" if self.handles else ""
        total = len(self.handles) + len(self.errors)
        super().__init__(
            _listed(
                f"{len(self.errors)} of {total} training runs were not submitted{others}",
                [f"{key}: {error}" for key, error in self.errors.items()],
            )
        )

    def __reduce__(self) -> tuple[type[SubmitsFailed], tuple[dict[str, RunHandle], dict[str, BaseException]]]:
        return type(self), (self.handles, self.errors)


class RunsFailed(MantikError):
    """Some of the runs that were waited for did not finish.

    Attributes:
        results: The results of all runs, the finished ones too, in the order in which they were given.
    """

    def __init__(self, results: Sequence[RunResult]) -> None:
        self.results = list(results)
        failed = [result for result in self.results if not result.finished]
        super().__init__(
            _listed(
                f"{len(failed)} of {len(self.results)} training runs did not finish",
                [result.describe() for result in failed],
            )
        )

    def __reduce__(self) -> tuple[type[RunsFailed], tuple[list[RunResult]]]:
        return type(self), (self.results,)


class WaitTimeout(MantikError):
    """The caller's own timeout passed before all runs ended. The message says what became of the jobs.

    Attributes:
        handles: The runs that had not ended.
    """

    def __init__(self, message: str, handles: Sequence[RunHandle]) -> None:
        super().__init__(message)
        self.handles = list(handles)

    def __reduce__(self) -> tuple[type[WaitTimeout], tuple[str, list[RunHandle]]]:
        return type(self), (str(self), self.handles)


class SiteSilent(WaitTimeout):
    """Runs gave no sign of life for as long as their site's block allows: live or dead, someone has to look."""


class MetricMissing(MantikError):
    """No run has the metric that was asked for. The message lists those that exist."""


def _listed(headline: str, lines: Sequence[str]) -> str:
    if len(lines) == 1:
        return f"{headline}: {lines[0]}"
    return f"{headline}:\n" + "\n".join(f"  - {line}" for line in lines)
