"""What `sbatch` makes of a batch script and of its command line."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from datetime import datetime, timedelta

_WITH_VALUE = {
    "account", "acctg-freq", "array", "batch", "bb", "bbf", "begin", "chdir", "cluster-constraint", "clusters",
    "comment", "constraint", "container", "container-id", "core-spec", "cores-per-socket", "cpu-freq", "cpus-per-gpu",
    "cpus-per-task", "deadline", "delay-boot", "dependency", "distribution", "error", "exclude", "export",
    "export-file", "extra", "extra-node-info", "gid", "gpu-bind", "gpu-freq", "gpus", "gpus-per-node",
    "gpus-per-socket", "gpus-per-task", "gres", "gres-flags", "hint", "input", "job-name", "kill-on-invalid-dep",
    "licenses", "mail-type", "mail-user", "mcs-label", "mem", "mem-bind", "mem-per-cpu", "mem-per-gpu", "mincpus",
    "network", "nodefile", "nodelist", "nodes", "ntasks", "ntasks-per-core", "ntasks-per-gpu", "ntasks-per-node",
    "ntasks-per-socket", "open-mode", "output", "partition", "power", "prefer", "priority", "profile", "qos",
    "reservation", "segment", "signal", "sockets-per-node", "stepmgr", "switches", "thread-spec", "threads-per-core",
    "time", "time-min", "tmp", "tres-bind", "tres-per-task", "uid", "wait-all-nodes", "wckey", "wrap",
}  # fmt: skip
_WITHOUT_VALUE = {
    "contiguous", "hold", "ignore-pbs", "no-kill", "no-requeue", "overcommit", "oversubscribe", "parsable", "quiet",
    "reboot", "requeue", "spread-job", "test-only", "use-min-nodes", "verbose", "wait",
}  # fmt: skip
_OPTIONAL_VALUE = {"exclusive", "get-user-env", "nice", "propagate"}
_SHORT = {
    "A": "account", "a": "array", "b": "begin", "C": "constraint", "c": "cpus-per-task", "D": "chdir",
    "d": "dependency", "e": "error", "F": "nodefile", "G": "gpus", "H": "hold", "i": "input", "J": "job-name",
    "k": "no-kill", "L": "licenses", "M": "clusters", "m": "distribution", "N": "nodes", "n": "ntasks",
    "o": "output", "O": "overcommit", "p": "partition", "Q": "quiet", "q": "qos", "s": "oversubscribe",
    "S": "core-spec", "t": "time", "v": "verbose", "w": "nodelist", "W": "wait", "x": "exclude",
}  # fmt: skip
_NUMBERS = ("ntasks", "ntasks-per-node", "cpus-per-task")
_TRY = 'Try "sbatch --help" for more information\n'
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "": 1}
_REFUSED = "sbatch: error: Batch job submission failed: "


class SbatchError(Exception):
    """A job that `sbatch` does not take.

    Args:
        text: What it prints.
        code: Its exit code.
    """

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self.code = code


def refused(why: str) -> SbatchError:
    """Word a refusal by the batch system itself."""
    return SbatchError(f"{_REFUSED}{why}\n")


@dataclass(frozen=True)
class Array:
    """The tasks of a job array."""

    indices: tuple[int, ...]
    limit: int | None = None


@dataclass(frozen=True)
class Dependency:
    """A job that another waits for."""

    kind: str
    number: int


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options that the sandbox acts on.

    Attributes:
        given: All options, by their long names.
        seconds: The time limit; None: the partition's default, 0: its longest.
        nodes: How many nodes.
        begin: The earliest start; 0: at once.
        array: The tasks of an array.
        dependencies: The jobs to wait for.
    """

    given: dict[str, str] = field(default_factory=dict)
    seconds: float | None = None
    nodes: int = 1
    begin: float = 0.0
    array: Array | None = None
    dependencies: tuple[Dependency, ...] = ()

    def get(self, name: str, default: str = "") -> str:
        """Give the value of an option."""
        return self.given.get(name, default)


def check_script(script: str) -> None:
    """Refuse what does not look like a batch script.

    Raises:
        SbatchError: It does not.
    """
    if not script.startswith("#!"):
        raise SbatchError(
            "sbatch: error: This does not look like a batch script.  The first\n"
            "sbatch: error: line must start with #! followed by the path to an interpreter.\n"
            "sbatch: error: For instance: #!/bin/sh\n"
        )
    if "\r\n" in script:
        raise SbatchError(
            "sbatch: error: Batch script contains DOS line breaks (\\r\\n)\n"
            "sbatch: error: instead of expected UNIX line breaks (\\n).\n"
        )


def directives(script: str) -> list[str]:
    """Give the words of the `#SBATCH` lines: those before the first command."""
    words: list[str] = []
    for line in script.splitlines():
        if line.startswith("#SBATCH"):
            try:
                words += shlex.split(line.removeprefix("#SBATCH"), comments=True)
            except ValueError:
                raise SbatchError(f"sbatch: error: Missing \" or ' in line: {line}\n") from None
        elif line.strip() and not line.lstrip().startswith("#"):
            break
    return words


def read_options(words: list[str]) -> dict[str, str]:
    """Read options as `getopt_long` does.

    Args:
        words: The words of a command line.
    """
    given: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("--") and len(word) > 2:
            _read_long(word, rest, given)
        elif word.startswith("-") and len(word) > 1:
            _read_short(word[1:], rest, given)
    return given


def understand(given: dict[str, str], now: float) -> Options:
    """Read the values of options.

    Args:
        given: The options by their long names.
        now: The time of the submission.
    """
    for name in _NUMBERS:
        if name in given and not given[name].isdigit():
            raise SbatchError(f'sbatch: error: Invalid numeric value "{given[name]}" for --{name}.\n')
    first_nodes = given.get("nodes", "1").partition("-")[0]
    if not first_nodes.isdigit() or int(first_nodes) < 1:
        raise SbatchError(f"sbatch: error: invalid node count `{given['nodes']}'\n")
    return Options(
        given=given,
        seconds=_seconds(given["time"]) if "time" in given else None,
        nodes=int(first_nodes),
        begin=_begin(given["begin"], now) if "begin" in given else 0.0,
        array=_array(given["array"]) if "array" in given else None,
        dependencies=_dependencies(given.get("dependency", "")),
    )


def _read_long(word: str, rest: list[str], given: dict[str, str]) -> None:
    name, has_value, value = word[2:].partition("=")
    known = _WITH_VALUE | _WITHOUT_VALUE | _OPTIONAL_VALUE
    if name not in known:
        longer = [each for each in known if each.startswith(name)]
        if len(longer) != 1:
            kind = "option '--" + name + "' is ambiguous" if longer else f"unrecognized option '{word}'"
            raise SbatchError(f"sbatch: {kind}\n{_TRY}", 255)
        name = longer[0]
    if name in _WITH_VALUE and not has_value:
        if not rest:
            raise SbatchError(f"sbatch: option '--{name}' requires an argument\n{_TRY}", 255)
        value = rest.pop(0)
    given[name] = value


def _read_short(letters: str, rest: list[str], given: dict[str, str]) -> None:
    while letters:
        letter, letters = letters[0], letters[1:]
        if letter not in _SHORT:
            raise SbatchError(f"sbatch: invalid option -- '{letter}'\n{_TRY}", 255)
        name, value = _SHORT[letter], ""
        if name in _WITH_VALUE:
            if not letters and not rest:
                raise SbatchError(f"sbatch: option requires an argument -- '{letter}'\n{_TRY}", 255)
            value, letters = letters or rest.pop(0), ""
        given[name] = value


def _seconds(text: str) -> float:
    if text.upper() in ("UNLIMITED", "INFINITE", "-1"):
        return 0.0
    match = re.fullmatch(r"(?:(\d+)-(\d+)(?::(\d+))?(?::(\d+))?|(?:(\d+):)?(\d+):(\d+)|(\d+))", text)
    if match is None:
        raise SbatchError("sbatch: error: Invalid --time specification\n")
    days, hours, minutes, seconds, other_hours, other_minutes, other_seconds, lone = (
        int(group or 0) for group in match.groups()
    )
    total = days * 86400 + (hours + other_hours) * 3600 + (minutes + other_minutes + lone) * 60
    return float(total + seconds + other_seconds)


def _begin(text: str, now: float) -> float:
    match = re.fullmatch(r"now(?:\+(\d+)([a-z]*))?", text)
    if match is not None:
        unit = match[2] or ""
        if unit[:1] in _UNITS:
            return now + int(match[1] or 0) * _UNITS[unit[:1]]
    today = datetime.fromtimestamp(now)
    for form in ("%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d"):
        try:
            return datetime.strptime(text, form).timestamp()
        except ValueError:
            continue
    for form in ("%H:%M:%S", "%H:%M"):
        try:
            clock = datetime.strptime(text, form).time()
        except ValueError:
            continue
        moment = datetime.combine(today.date(), clock)
        return (moment if moment > today else moment + timedelta(days=1)).timestamp()
    raise SbatchError(f"sbatch: error: Invalid time specification (pos=0): {text}\nsbatch: error: Invalid --begin\n")


def _array(text: str) -> Array:
    tasks, _, limit = text.partition("%")
    indices: set[int] = set()
    for part in tasks.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if match is None or (limit and not limit.isdigit()):
            raise refused("Invalid job array specification")
        indices.update(range(int(match[1]), int(match[2] or match[1]) + 1, int(match[3] or 1)))
    if not indices or max(indices) > 1000:
        raise refused("Invalid job array specification")
    return Array(tuple(sorted(indices)), int(limit) if limit else None)


def _dependencies(text: str) -> tuple[Dependency, ...]:
    found = []
    for part in filter(None, text.split(",")):
        kind, *numbers = part.split(":")
        known = kind in ("after", "afterany", "afterok", "afternotok", "singleton")
        if not known or not all(number.isdigit() for number in numbers):
            raise refused("Job dependency problem")
        found += [Dependency(kind, int(number)) for number in numbers or ("0",)]
    return tuple(found)
