"""What one value of a config must be, and the form into which it is brought."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prefect_mantik.backend_config.findings import ConfigFinding, below
from prefect_mantik.environment import check_url

VARIABLE_NAME = r"[A-Za-z_][A-Za-z0-9_]*"

_TRACKING_CREDENTIALS = r"(?:APPTAINERENV_|SINGULARITYENV_)?MLFLOW_TRACKING_(?:USERNAME|PASSWORD|TOKEN)"
_ASSIGNED_CREDENTIALS = re.compile(rf"(?<![A-Za-z0-9_])({_TRACKING_CREDENTIALS})\+?=")


@dataclass(frozen=True)
class Rule:
    """What a value must be. Stands in the annotation of a field of the schema.

    Attributes:
        findings: Takes the path of a value and the value, gives a finding for each thing that is wrong with it.
    """

    findings: Callable[[str, Any], Iterable[ConfigFinding]]


# --- Forms ----------------------------------------------------------------------------------------------------------


def command_text(text: str) -> str:
    r"""A command without the line ends and semicolons that a YAML `|` or `>` leaves behind it; `\;` stays."""
    text = text.replace("\r\n", "\n").strip()
    while text.endswith(";") and not text.endswith("\\;"):
        text = text[:-1].rstrip()
    return text


def command_list(value: Any) -> list[Any]:
    """A text or a list of texts as a list of commands."""
    return [command_text(item) if isinstance(item, str) else item for item in _listed(value)]


def word_list(value: Any) -> list[Any]:
    """A text or a list of texts as a list of words."""
    return [word for item in _listed(value) for word in (item.split() if isinstance(item, str) else [item])]


def text_list(value: Any) -> list[Any]:
    """A text or a list of texts as a list."""
    return list(_listed(value))


def python_path(value: Any) -> Any:
    """The directory of a virtual environment, given as a text or as an object with the key `Path`."""
    path = value["Path"] if isinstance(value, Mapping) else value
    return re.sub(_IN_VENV, "", path) if isinstance(path, str) else path


def variable_texts(value: Mapping[str, Any]) -> dict[str, str]:
    """Variables with texts as their values, by Python's `str` as on the platform: `true` becomes `True`."""
    return {str(name): str(content) for name, content in value.items()}


def _listed(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list | tuple) else [value]


# --- Kinds of rules -------------------------------------------------------------------------------------------------


def _rule(form: str, fits: Callable[[Any], bool]) -> Rule:
    return Rule(lambda path, value: () if fits(value) else (ConfigFinding(path, f"must be {form}"),))


def _pattern(form: str, pattern: str) -> Rule:
    """Make a rule for a text or a whole number: YAML reads `Runtime: 0` and `Port: 22` as numbers."""

    def fits(value: Any) -> bool:
        is_scalar = isinstance(value, str | int) and not isinstance(value, bool)
        return is_scalar and re.fullmatch(pattern, str(value), re.ASCII) is not None

    return _rule(form, fits)


def _url(form: str) -> Rule:
    def findings(path: str, value: Any) -> Iterable[ConfigFinding]:
        try:
            check_url(value if isinstance(value, str) else "", form=form)
        except ValueError as error:
            yield ConfigFinding(path, f"is no URL to use: {error}")

    return Rule(findings)


def _items(form: str, fits: Callable[[str], bool]) -> Rule:
    return _rule(form, lambda value: all(isinstance(item, str) and fits(item) for item in _listed(value)))


def _first_of(*rules: Rule) -> Rule:
    """Make a rule of several: each speaks where those before it are content, so that it can rely on them."""

    def findings(path: str, value: Any) -> Iterable[ConfigFinding]:
        return next(filter(None, (list(rule.findings(path, value)) for rule in rules)), [])

    return Rule(findings)


def is_text(value: Any) -> bool:
    """Whether a value is a text on one line, without spaces around it."""
    return isinstance(value, str) and bool(value) and value == value.strip() and can_be_written(value, r"\n\r")


def is_slurm_word(text: str) -> bool:
    """Whether a line `#SBATCH --name=<text>` gives the text to Slurm as it is."""
    return re.search(r"""[\s'"\\#\0]""", text) is None


SLURM_WORD = "must be one word without quotes, # or \\, or Slurm would split or change it"


def can_be_written(text: str, but: str = "") -> bool:
    """Whether a text can stand in a script: no zero byte, nothing that is no character, none of `but`."""
    return re.search(rf"[\0\ud800-\udfff{but}]", text) is None


_IN_VENV = r"/bin(/(activate|python[0-9.]*))?/?$"


# --- Rules with more to say -----------------------------------------------------------------------------------------


def _no_shell_signs(path: str, value: Any) -> Iterable[ConfigFinding]:
    if any(re.search(r"[;&|<>`()\"']", item) for item in _listed(value)):
        message = "holds a ; or another sign that a shell would act on: names and paths have none"
        yield ConfigFinding(path, message, severity="advice")


def _no_module_command(path: str, value: Any) -> Iterable[ConfigFinding]:
    if any(re.match(r"(module|ml)\s", item.strip()) for item in _listed(value)):
        message = 'should name modules only: "module load" is put before them'
        yield ConfigFinding(path, message, severity="advice")


def _options_only(path: str, value: Any) -> Iterable[ConfigFinding]:
    if any(re.search(r"[;&|\n]", item) for item in command_list(value)):
        message = "should hold options only, on one line: a ; & or | would end them"
        yield ConfigFinding(path, message, severity="advice")


def _venv(path: str, value: Any) -> Iterable[ConfigFinding]:
    if isinstance(value, Mapping):
        yield from (ConfigFinding(below(path, key), "is not known; known here: Path") for key in value if key != "Path")
        if "Path" not in value:
            yield ConfigFinding(below(path, "Path"), "is missing")
            return
        path, value = below(path, "Path"), value["Path"]
    if not is_text(value) or not value.startswith("/"):
        yield ConfigFinding(path, "must be the absolute path of a virtual environment at the site")
    elif re.search(_IN_VENV, value):
        message = "should be the directory of the virtual environment: /bin/activate is put behind it"
        yield ConfigFinding(path, message, severity="advice")
    else:
        yield from _no_shell_signs(path, value)


def _texts_that_run(path: str, value: Any) -> Iterable[ConfigFinding]:
    for item in command_list(value):
        if named := _ASSIGNED_CREDENTIALS.search(item):
            yield ConfigFinding(path, f"must not set {named[1]}: the job gets a tracking token of its own")
        if re.search(r"(?<!\\)(?:\\\\)*\\$", item):
            yield ConfigFinding(path, "must not end with a backslash, which would join it with what comes next")


def _variables(path: str, value: Any) -> Iterable[ConfigFinding]:
    if not isinstance(value, Mapping):
        yield ConfigFinding(path, "must be an object of names and values")
        return
    for name, content in value.items():
        place = below(path, name)
        if re.fullmatch(_TRACKING_CREDENTIALS, str(name)):
            yield ConfigFinding(place, "is not allowed: the job gets a tracking token of its own")
        elif not isinstance(name, str):
            yield ConfigFinding(place, "is not read as a text by YAML: put the name in quotes")
        elif not re.fullmatch(VARIABLE_NAME, name, re.ASCII):
            yield ConfigFinding(place, "is not a name that a shell takes: letters, digits and _, no digit first")
        elif not isinstance(content, str | int | float):
            yield ConfigFinding(place, "must be a text, a number, true or false (in quotes, if it is a date)")
        elif not can_be_written(str(content)):
            yield ConfigFinding(place, "holds a character that no variable can hold")


# --- The rules ------------------------------------------------------------------------------------------------------

TEXT = _rule("a text on one line, without spaces around it", is_text)
COUNT = _pattern("a whole number, 1 or more", r"0*[1-9][0-9]*")
COUNT_OR_NONE = _pattern("a whole number, 0 or more", r"[0-9]+")
PORT = _pattern("a port number", r"[1-9][0-9]{0,4}")
RUNTIME = _pattern("a number with one unit (30m, 12h, 2d, 90s), or 0", r"[0-9]+[smhd]|0")
MEMORY = _pattern("a whole number, or one with a unit (12GiB)", r"-?[0-9]+|[0-9]+[KMGT](iB|B)?")

UNICORE_URL = _url("https://<gateway>/<SITE>/rest/core")
FIRECREST_URL = _url("https://<host>/<platform>/firecrest/v2")
TOKEN_URL = _url("https://<host>/<...>/openid-connect/token")

COMMANDS = _first_of(
    _items("a text or a list of texts", lambda item: bool(command_text(item)) and can_be_written(item)),
    Rule(_texts_that_run),
)
OPTIONS = _first_of(COMMANDS, Rule(_options_only))
MODULES = _first_of(
    _items("a text or a list of texts", lambda item: bool(item.strip()) and can_be_written(item)),
    Rule(_no_shell_signs),
    Rule(_no_module_command),
)
NAMES = _items("a text or a list of texts", lambda item: bool(item.strip()) and can_be_written(item, r"\n"))
IMAGE = _first_of(TEXT, Rule(_no_shell_signs))
IMAGE_TYPE = _rule("local or remote", lambda v: isinstance(v, str) and v.lower() in ("local", "remote"))
VENV = Rule(_venv)
VARIABLES = Rule(_variables)
