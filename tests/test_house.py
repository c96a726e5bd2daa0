"""The house keeps its shape: few modules at the root, data that flow downwards, files and functions that can be read in one go."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "sogclr"
FILES = sorted(SOURCE.rglob("*.py"))
FLOORS = [  # from the ground up; a module imports from floors below its own, and from its own room
    {"errors"},
    {"files", "progress"},
    {"distributed", "checkpoint_file"},
    {"hardware"},
    {"kernels", "data"},
    {"losses", "config"},
    {"run_folder"},
    {"models"},
    {"evaluation"},
    {"training"},
    {"commands", "integrations"},
    {"options"},
    {"", "cli"},
    {"__main__"},
]
MOST_MODULES, MOST_LINES, MOST_FUNCTION_LINES = 14, 330, 70


def name_of(path: Path) -> str:
    """Return the dotted name below the package; of a package its own."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def room_of(module: str) -> str:
    return module.split(".")[0]


def imports_of(module: str, later: bool = False) -> set[str]:
    """Return the modules of the package that a module imports when it is loaded; with `later` what types and functions need too."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if later else tree.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            target = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                inner = f"{target}.{alias.name}".strip(".")
                found.add(inner if inner in MODULES else target)
    return found - {module}


def test_the_root_has_few_modules():
    assert len(list(SOURCE.glob("*.py"))) <= MOST_MODULES


def test_imports_point_downwards():
    floor = {room: k for k, rooms in enumerate(FLOORS) for room in rooms}
    wrong = [
        f"{module} imports {other}"
        for module in MODULES
        for other in imports_of(module)
        if room_of(module) != room_of(other) and not (other == "" or floor[room_of(other)] < floor[room_of(module)])
    ]
    assert wrong == []


def test_no_circle_of_imports():
    """Not by an import within a function either, but for the demo's: it types commands, as a user does."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in imports_of(module, later=True) - {"", "cli"}:
                visit(other, [*path, module])
            done.add(module)

    for module in MODULES:
        visit(module, [])


@pytest.mark.parametrize("folder", ["src", "benchmarks", "research"])
def test_files_and_functions_can_be_read_in_one_go(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= MOST_LINES, f"{path} has {text.count(chr(10))} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                assert lines <= MOST_FUNCTION_LINES, f"{path}: {node.name} has {lines} lines"
