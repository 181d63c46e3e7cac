"""YAML and JSON as users write them, with the line of every key.

Shared with `prefect_mantik.mlproject`. A document that cannot be read gives findings, never an exception.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_mantik.backend_config.findings import ConfigFinding, below

if TYPE_CHECKING:
    import yaml

MAX_CHARACTERS = 256 * 1024
"""No config that somebody wrote is longer. YAML of this size is read in seconds."""


@dataclass(frozen=True)
class Document:
    """What a text holds.

    Attributes:
        value: In dicts, lists, texts and numbers; None where the text cannot be read.
        findings: Why it cannot be read, and keys that are given twice.
        root: The tree of YAML nodes, for lines.
    """

    value: Any
    findings: tuple[ConfigFinding, ...] = ()
    root: yaml.Node | None = None

    @property
    def readable(self) -> bool:
        """Whether the text could be read at all."""
        return self.root is not None or self.value is not None

    def located(self, finding: ConfigFinding) -> ConfigFinding:
        """The finding with the line of its path, or of the nearest part above it that the text has."""
        if finding.line or self.root is None:
            return finding
        return replace(finding, line=_line(self.root, finding.path))


def read_file(path: Path) -> tuple[str, tuple[ConfigFinding, ...]]:
    """Read a file of UTF-8 text.

    Args:
        path: The file.

    Returns:
        The text, or an empty one and why it cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(4 * MAX_CHARACTERS + 1)
        return content.decode("utf-8-sig"), ()
    except OSError as error:
        return "", (ConfigFinding("", f"cannot be read: {error.strerror}"),)
    except UnicodeDecodeError as error:
        line = 1 + content[: error.start].count(b"\n")
        return "", (ConfigFinding("", "is not UTF-8 text", line=line),)


def read_text(text: str) -> Document:
    """Read YAML or JSON.

    Args:
        text: The whole text.

    Returns:
        What it holds, or why it cannot be read.
    """
    import yaml

    if len(text) > MAX_CHARACTERS:
        return Document(None, (ConfigFinding("", f"is longer than {MAX_CHARACTERS} characters"),))
    try:
        return _read_json(text) or _read_yaml(text)
    except yaml.MarkedYAMLError as error:
        if text.lstrip().startswith("{"):
            return Document(None, (_json_syntax(text),))
        mark = error.problem_mark or error.context_mark
        return Document(None, (_syntax(error.problem or "", mark.line + 1 if mark else None),))
    except yaml.reader.ReaderError as error:
        line = 1 + text.count("\n", 0, error.position)
        return Document(None, (ConfigFinding("", "holds a character that YAML does not allow", line=line),))
    except RecursionError:
        return Document(None, (ConfigFinding("", "is nested too deeply"),))
    except ValueError as error:  # a date such as 2024-13-01
        return Document(None, (ConfigFinding("", f"holds a value that YAML cannot read ({error}): put it in quotes"),))


def _syntax(problem: str, line: int | None) -> ConfigFinding:
    if "'\\t'" in problem:
        return ConfigFinding("", "holds a tab where YAML wants spaces: replace tabs by spaces", line=line)
    return ConfigFinding("", f"is not valid YAML: {problem}", line=line)


def _json_syntax(text: str) -> ConfigFinding:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return ConfigFinding("", f"is not valid JSON: {error.msg}", line=error.lineno)
    return ConfigFinding("", "is not valid YAML")


def _read_json(text: str) -> Document | None:
    """Read JSON as JSON: it may have tabs, and reads 7e-6 as a number."""
    import yaml

    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    try:
        # Valid JSON has tabs between values only.
        root = yaml.compose(text.replace("\t", " "), Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        root = None
    if root is None:  # JSON that YAML reads otherwise: no lines are better than no answer
        return Document(value)
    return Document(value, tuple(_duplicates(root)), root)


def _read_yaml(text: str) -> Document:
    import yaml

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is None:
        return Document(None, (ConfigFinding("", "is empty"),))
    loader = yaml.SafeLoader("")
    try:
        value = loader.construct_document(root)
    finally:
        loader.dispose()
    return Document(value, tuple(_duplicates(root)), root)


# --- Nodes ----------------------------------------------------------------------------------------------------------


def _line(node: yaml.Node, path: str, line: int | None = None) -> int:
    """The line of the key to which a path leads, as far as it leads."""
    import yaml

    line = line or node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and (
                path == key.value or path.startswith((f"{key.value}.", f"{key.value}["))
            ):
                return _line(value, path[len(key.value) :].lstrip("."), key.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode) and path.startswith("["):
        index, _, rest = path[1:].partition("]")
        if index.isdigit() and int(index) < len(node.value):
            item = node.value[int(index)]
            return _line(item, rest.lstrip("."), item.start_mark.line + 1)
    return line


def _duplicates(root: yaml.Node) -> Iterator[ConfigFinding]:
    import yaml

    seen_nodes: set[int] = set()  # an alias leads to a node again, or into a circle
    waiting: list[tuple[str, yaml.Node]] = [("", root)]
    while waiting:
        path, node = waiting.pop()
        if id(node) in seen_nodes or isinstance(node, yaml.ScalarNode):
            continue
        seen_nodes.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += [(f"{path}[{index}]", item) for index, item in enumerate(node.value)]
            continue
        lines: dict[str, int] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                place, line = below(path, key.value), key.start_mark.line + 1
                if key.value in lines:
                    said = f"is given twice, first in line {lines[key.value]}"
                    yield ConfigFinding(place, said, line=line)
                lines.setdefault(key.value, line)
                waiting.append((place, value))
