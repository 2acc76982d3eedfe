"""Laws of the house, read from the source without importing it: where files stand, how large they are, and who imports whom."""

from __future__ import annotations

import ast
import graphlib
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from serial_files import SERIAL

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PACKAGE = "maskpro_deploy"
MOST_FILES = 20  # directly in a folder, with its __init__; the aim is 15
MOST_LINES = 600  # of a file; the aim is 200
MOST_BODY_LINES = 40  # of a function of a command; its signature and decorators are not counted


@cache
def product() -> dict[str, Path]:
    """Every module of the package and its file; links are not followed."""
    files = (f for top in (PACKAGE, "exporters", "runtime") for f in (ROOT / top).rglob("*.py"))
    modules = {}
    for file in files:
        path = file.relative_to(ROOT).with_suffix("")
        if path.parts[:2] in ((PACKAGE, "exporters"), (PACKAGE, "runtime")):
            continue
        parts = path.parts if path.parts[0] == PACKAGE else (PACKAGE, *path.parts)
        modules[".".join(parts).removesuffix(".__init__")] = file
    return modules


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def statements(node: ast.AST) -> Iterator[ast.stmt]:
    """The statements inside a node, at every depth."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield child
        if not isinstance(child, ast.expr):
            yield from statements(child)


def functions(file: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in statements(tree(file)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def imports(module: str) -> set[str]:
    """The modules of this package that a module names in its imports, wherever they stand: in functions and for types too."""
    modules, targets = product(), set()
    for node in statements(tree(modules[module])):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}, line {node.lineno}: imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            targets |= {name if name in modules else str(node.module) for name in names}
    return targets & set(modules)


def none_of(offenders: Iterable[object]) -> None:
    """Fail with all of them, one a line."""
    shown = [str(offender) for offender in offenders]
    assert not shown, "\n" + "\n".join(shown)


def test_the_product_is_seen() -> None:
    assert {"maskpro_deploy.cli", "maskpro_deploy.exporters.bundle", "maskpro_deploy.runtime"} <= set(product())
    assert "maskpro_deploy.errors" in imports("maskpro_deploy.cli")


def test_files_do_not_import_each_other_in_circles() -> None:
    edges, circles = {module: imports(module) for module in product()}, []
    while True:
        try:
            graphlib.TopologicalSorter(edges).prepare()
            break
        except graphlib.CycleError as error:
            circle = error.args[1][::-1]
            circles.append(" -> ".join(circle))
            edges[circle[0]] = edges[circle[0]] - {circle[1]}  # to find the next one
    none_of(circles)


def test_a_folder_holds_few_files() -> None:
    counts = Counter(file.parent.relative_to(ROOT).as_posix() for file in product().values())
    none_of(f"{folder}: {count} files" for folder, count in counts.items() if count > MOST_FILES)


def test_files_are_short() -> None:
    lines = {m: len(file.read_text(encoding="utf-8").splitlines()) for m, file in product().items()}
    none_of(f"{module}: {count} lines" for module, count in lines.items() if count > MOST_LINES)


def test_every_room_says_what_it_is() -> None:
    """The docstring of a package: what it is, and in further lines what enters, what leaves and what it may import."""
    rooms = [file for file in product().values() if file.name == "__init__.py"]
    terse = [file for file in rooms if len((ast.get_docstring(tree(file)) or "").splitlines()) < 2]
    none_of(file.relative_to(ROOT) for file in terse)


def command_files() -> list[Path]:
    return [file for module, file in product().items() if module.startswith(f"{PACKAGE}.commands")]


def test_commands_have_no_private_modules() -> None:
    none_of(file for file in command_files() if file.name.startswith("_") and file.name != "__init__.py")


def test_functions_of_commands_fit_a_screen() -> None:
    none_of(
        f"{file.relative_to(ROOT)}: {function.name}: {lines} lines"
        for file in command_files()
        for function in functions(file)
        if (lines := (function.end_lineno or 0) - function.body[0].lineno + 1) > MOST_BODY_LINES
    )


def test_the_version_is_set_once() -> None:
    assigned = [
        module
        for module, file in product().items()
        for node in statements(tree(file))
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name) and target.id == "__version__"
    ]
    assert assigned == [f"{PACKAGE}._version"]


def python_scripts() -> set[str]:
    first_lines = {file: file.read_bytes().split(b"\n", 1)[0] for file in (ROOT / "scripts").iterdir() if file.is_file()}
    return {f"scripts/{file.name}" for file, line in first_lines.items() if line.startswith(b"#!") and b"python" in line}


def test_every_python_script_is_linted() -> None:
    assert sorted(PYPROJECT["tool"]["ruff"]["extend-include"]) == sorted(python_scripts())
    assert len(python_scripts()) > 5


def test_tests_stand_where_what_they_test_stands() -> None:
    folders = {file.parent.relative_to(ROOT / "tests") for file in (ROOT / "tests").rglob("test_*.py")}
    rooms = {file.parent for file in product().values() if file.name == "__init__.py"}
    none_of(f"tests/{f}" for f in folders if f.parts and not {ROOT / PACKAGE / f, ROOT / f} & rooms)


def test_names_of_tests_are_unique_and_those_that_run_alone_exist() -> None:
    names = Counter(file.name for file in (ROOT / "tests").rglob("*.py") if file.name != "conftest.py")
    none_of(name for name, count in names.items() if count > 1)
    none_of(set(SERIAL) - set(names))


def test_contributing_names_files_that_exist() -> None:
    """What stands in backticks with a slash is a path, from the root or from the package."""
    named = re.findall(r"`([\w./-]+/[\w./-]*)`", CONTRIBUTING)
    assert len(named) > 40
    none_of(sorted({name for name in named if not (ROOT / name).exists() and not (ROOT / PACKAGE / name).exists()}))


def test_contributing_shows_the_layers() -> None:
    contracts = PYPROJECT["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["name"] == "layers")
    assert "\n\n" + "".join(f"    {layer}\n" for layer in layers) + "\n" in CONTRIBUTING


def test_contributing_names_every_room() -> None:
    rooms = {file.parent.name for module, file in product().items() if file.name == "__init__.py" and module.count(".") == 1}
    none_of(sorted(room for room in rooms if f"`{room}/`" not in CONTRIBUTING))
