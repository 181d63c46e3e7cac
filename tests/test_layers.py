"""Who may import whom, read from the code itself: what is lower never knows of what is higher."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import prefect_mantik

PACKAGE = "prefect_mantik"
ROOT = Path(prefect_mantik.__file__).parent

LEVELS = (
    {"errors"},
    {"log", "loop", "responses", "event_stream", "markdown"},
    {"runs", "results", "environment", "foreign_credentials", "backend_config", "mlproject"},
    {"api", "git"},
    {"staging"},
    {"platform", "unicore", "firecrest"},
    {"tracking"},
    {"documents"},
    {"credentials"},  # above the clients: a block makes its clients, which take a token source and never a block
    {"sites"},
    {"turns", "labels"},
    {"ledger", "waiting", "data"},
    {"cancelling", "progress"},
    {"noticing", "inventory", "kept", "log_artifacts"},
    {"run_lists", "suspending", "holding"},
    {"jobs"},
    {"tasks", "lifecycle", "reports"},
    {"flows", "_blocks", "prefect_server"},
    {"block_files"},
    {"demo", "doctor"},
    {"cli"},
)
"""From low to high. Rooms of one level may import each other."""

LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}

SANDBOX_KNOWS = {"sandbox", "runs", "errors"}
STARTS_THE_SANDBOX = {"cli", "demo"}
READS_THE_ENVIRONMENT = {"environment", "cli", "sandbox"}


@dataclass(frozen=True)
class Import:
    """One name that a module imports.

    Attributes:
        name: The module, and what is taken from it.
        line: Where.
        when: "import", "call" (inside a function) or "checking" (for type checkers only).
    """

    name: str
    line: int
    when: str

    @property
    def room(self) -> str | None:
        """Which room of ours it is; None for what is not ours."""
        parts = self.name.split(".")
        if parts[0] != PACKAGE or len(parts) == 1:
            return None
        return parts[1] if parts[1] in LEVEL or parts[1] == "sandbox" else "__init__"


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(path: Path) -> Iterator[Import]:
    yield from _imports(tree(path), "import")


def _imports(node: ast.AST, when: str) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, node.lineno, when) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        yield from (Import(f"{node.module}.{alias.name}", node.lineno, when) for alias in node.names)
    elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        for child in node.body:
            yield from _imports(child, "checking")
        for child in node.orelse:
            yield from _imports(child, when)
    else:
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from _imports(child, "call" if inside else when)


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


MODULES = [
    path
    for path in sorted(ROOT.rglob("*.py"))
    if "project" not in path.relative_to(ROOT).parts  # what jobs run
]
OURS = [path for path in MODULES if room_of(path) != "sandbox"]
SANDBOX = [path for path in MODULES if room_of(path) == "sandbox"]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_room_has_a_level() -> None:
    assert {room_of(path) for path in OURS} - set(LEVEL) == {"__init__"}


@pytest.mark.parametrize("path", OURS, ids=named)
def test_imports_never_go_up(path: Path) -> None:
    room = room_of(path)
    level = LEVEL.get(room, -1)  # the package itself is below all: it imports nothing when it is imported
    up = [
        f"{named(path)}:{item.line} {item.name}"
        for item in imports(path)
        if item.when != "checking" and item.room and item.room not in (room, "sandbox")
        if item.room == "__init__" or LEVEL[item.room] > level
    ]
    assert up == []


def test_a_block_imports_its_clients_only_when_it_makes_them() -> None:
    clients = [item for item in imports(ROOT / "credentials.py") if item.room in ("platform", "tracking")]
    assert {item.when for item in clients} == {"call", "checking"}


@pytest.mark.parametrize("path", SANDBOX, ids=named)
def test_the_sandbox_knows_next_to_nothing_of_the_package(path: Path) -> None:
    assert {item.room for item in imports(path)} - {None} <= SANDBOX_KNOWS


def test_only_what_starts_it_imports_the_sandbox() -> None:
    importers = {room_of(path) for path in OURS for item in imports(path) if item.room == "sandbox"}
    assert importers <= STARTS_THE_SANDBOX


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_nothing_private_of_prefect_is_imported(path: Path) -> None:
    names = [item.name for item in imports(path) if item.name.split(".")[0] == "prefect"]
    assert not [name for name in names if any(part.startswith("_") for part in name.split("."))]


# --- The process environment ----------------------------------------------------------------------------------------

CHANGES = {"update", "setdefault", "pop", "popitem", "clear", "__setitem__", "__delitem__"}
READS, WRITES = {"environ", "environb", "getenv", "getenvb"}, {"putenv", "unsetenv"}


def uses_of_environ(module: ast.AST) -> Iterator[ast.AST]:
    """Each place where `os.environ` or its like is named, however it was imported."""
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute) and node.attr in READS | WRITES and ast.unparse(node.value) == "os":
            yield node
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            yield from (alias for alias in node.names if alias.name in READS | WRITES)


def writes_of_environ(module: ast.AST) -> Iterator[ast.AST]:
    """Each place where it is changed; imported by name it counts as changed, for it could not be followed."""
    for node in ast.walk(module):
        if isinstance(node, (ast.Subscript, ast.Attribute)):
            base, of = ast.unparse(node.value), getattr(node, "attr", "")
            stored = not isinstance(node.ctx, ast.Load)
            on_it = base == "os.environ" and (stored or of in CHANGES)
            if on_it or (base == "os" and (of in WRITES or (of in READS and stored))):
                yield node
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            yield from (alias for alias in node.names if alias.name in READS | WRITES)


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_the_environment_is_read_where_it_may_be_and_written_nowhere(path: Path) -> None:
    if room_of(path) not in READS_THE_ENVIRONMENT:
        assert not list(uses_of_environ(tree(path)))
    assert not list(writes_of_environ(tree(path)))


# --- The searches find what they look for ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "written"),
    [
        ("os.environ['A'] = 'b'", True),
        ("del os.environ['A']", True),
        ("os.environ['A'] += 'b'", True),
        ("os.environ.update(A='b')", True),
        ("os.environ |= {}", True),
        ("os.putenv('A', 'b')", True),
        ("from os import environ", True),
        ("x = os.environ['A']", False),
        ("x = os.environ.get('A')", False),
        ("x = dict(os.environ)", False),
        ("x = os.getenv('A')", False),
    ],
)
def test_uses_of_the_environment_are_seen(code: str, written: bool) -> None:
    assert bool(list(writes_of_environ(ast.parse(code)))) is written
    assert list(uses_of_environ(ast.parse(code)))


def test_imports_are_told_apart() -> None:
    code = """
if TYPE_CHECKING:
    from prefect_mantik.platform import PlatformClient
else:
    import prefect_mantik.tasks
import prefect_mantik.jobs, os
class A:
    from prefect_mantik import sites
    def f(self):
        from prefect_mantik.tracking.client import TrackingClient
from prefect_mantik import TrainingJob
"""
    found = {(item.room, item.when) for item in _imports(ast.parse(code), "import")}
    assert found == {
        ("platform", "checking"),
        ("tasks", "import"),
        ("jobs", "import"),
        (None, "import"),
        ("sites", "import"),
        ("tracking", "call"),
        ("__init__", "import"),
    }
