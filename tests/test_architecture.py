"""ARCHITECTURE.md is checked against the tree: layers, circles, pure modules, and where to look."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
#: The sides and their folders.
SIDES = {"shoal.agent": "agent", "shoal.controller": "controller"}
#: Files that each journey may take; ARCHITECTURE.md lists them.
JOURNEYS = {"A release": 30, "An input row": 18, "A federated update": 22}
Imports = Mapping[str, set[str]]


# ------------------------------------------------------------------------------------- contracts


def lint_imports(*more_sources: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-logo", "--no-cache"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, more_sources))},
        capture_output=True,
        text=True,
    )


def plant(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_every_layer_contract_is_kept() -> None:
    run = lint_imports()
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_shared_module_that_imports_the_agent_breaks_a_contract(tmp_path: Path) -> None:
    plant(tmp_path, "shoal/planted.py", "import shoal.agent\n")
    run = lint_imports(tmp_path)
    assert run.returncode != 0
    assert "shoal.planted -> shoal.agent" in run.stdout


# ------------------------------------------------------------------------------------- circles


@cache
def imports() -> Imports:
    """Module -> modules that it imports, those for the type checker alone included."""
    graph = grimp.build_graph("shoal")
    return {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}


def circles(graph: Imports) -> list[set[str]]:
    """Sets of nodes that reach each other (Tarjan's strongly connected components)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(node: str) -> None:
        order[node] = lowest[node] = len(order)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in order:
                visit(other)
            if other in stack:
                lowest[node] = min(lowest[node], lowest[other])
        if lowest[node] == order[node]:
            at = stack.index(node)
            component, stack[at:] = set(stack[at:]), []
            if len(component) > 1:
                found.append(component)

    for node in graph:
        if node not in order:
            visit(node)
    return found


def domains(graph: Imports, side: str) -> Imports:
    """Domain -> domains that it imports; a module that is in none stands for itself."""
    folders = {
        name for name in graph if any(other.startswith(f"{name}.") for other in graph)
    } - set(SIDES)

    def of(module: str) -> str:
        domain = ".".join(module.split(".")[:3])
        return domain if domain in folders else module

    found: dict[str, set[str]] = {}
    for module, others in graph.items():
        if module.startswith(f"{side}."):
            inside = {of(other) for other in others if other.startswith(f"{side}.")}
            found.setdefault(of(module), set()).update(inside - {of(module)})
    return found


def test_no_modules_import_each_other_not_even_for_the_type_checker() -> None:
    assert circles(imports()) == []


@pytest.mark.parametrize("side", SIDES)
def test_no_domains_import_each_other_not_even_for_the_type_checker(side: str) -> None:
    assert circles(domains(imports(), side)) == []


def test_a_circle_is_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set[str]()}
    assert circles(graph) == [{"b", "c"}]


# ------------------------------------------------------------------------------------- pure


def pure_contract() -> dict[str, list[str]]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    return next(c for c in settings["contracts"] if c["name"].startswith("controller: pure"))


def not_listed(listed: Iterable[str]) -> list[str]:
    """Modules of the controller's domains that import nothing forbidden, and are not `listed`."""
    contract = pure_contract()
    graph = grimp.build_graph(
        "shoal", include_external_packages=True, exclude_type_checking_imports=True
    )

    def within(module: str, packages: Iterable[str]) -> bool:
        return any(module == one or module.startswith(f"{one}.") for one in packages)

    def forbidden(module: str) -> bool:
        adapter = module.startswith("shoal.controller.") and ".io" in module
        return adapter or within(module, contract["forbidden_modules"])

    return [
        module
        for module in sorted(graph.modules)
        if module.startswith("shoal.controller.")
        and not graph.find_children(module)
        and not within(module, listed)
        and not forbidden(module)
        and not any(forbidden(other) for other in graph.find_upstream_modules(module))
    ]


def test_every_pure_module_of_the_controller_is_listed_as_pure() -> None:
    assert not_listed(pure_contract()["source_modules"]) == []


def test_a_pure_module_that_is_not_listed_is_found() -> None:
    listed = pure_contract()["source_modules"]
    assert not_listed(set(listed) - {"shoal.controller.monitoring.bets"}) == [
        "shoal.controller.monitoring.bets"
    ]


# ------------------------------------------------------------------------------------- look-up


def section(title: str) -> str:
    """The text below a heading of ARCHITECTURE.md, up to the next one of its level or above."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    found = re.search(rf"^(#+) {re.escape(title)}$", text, re.MULTILINE)
    assert found, f"ARCHITECTURE.md has no heading {title!r}"
    rest = text[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def defined(path: Path) -> set[str]:
    """Names of all functions, classes, methods and constants of a module."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {x.id for x in node.targets if isinstance(x, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def questions() -> list[tuple[str, str, str]]:
    """(question, file, definition) of the table of questions."""
    row = re.compile(r"^\| (.+\?) \| `([\w/.]+\.py)` \| `(\w+)` \|$", re.MULTILINE)
    return row.findall(section("Ten questions"))


def test_architecture_answers_ten_questions() -> None:
    assert len(questions()) == 10


@pytest.mark.parametrize(("question", "file", "name"), questions(), ids=lambda x: str(x)[:60])
def test_an_answer_names_the_file_that_defines_it(question: str, file: str, name: str) -> None:
    assert (ROOT / file).is_file(), question
    assert name in defined(ROOT / file), question


def files_of(title: str) -> list[str]:
    """Files of a journey in order, from its numbered lines."""
    return re.findall(r"^\d+\. `([\w/.]+\.py)`", section(title), re.MULTILINE)


@pytest.mark.parametrize("title", JOURNEYS)
def test_a_journey_is_short_and_its_files_are_there(title: str) -> None:
    files = files_of(title)
    assert [name for name in files if not (ROOT / name).is_file()] == []
    assert len(files) == len(set(files))
    assert 5 <= len(files) <= JOURNEYS[title]


# ------------------------------------------------------------------------------------- migrations


def test_every_migration_follows_the_one_before_it() -> None:
    versions = ROOT / "controller/shoal/controller/store/io/migrations/versions"
    files = sorted(versions.glob("m*.py"))
    revision = re.compile(r'^(?:down_)?revision = "?(\w+)"?$', re.MULTILINE)
    for number, file in enumerate(files, 1):
        own, before = revision.findall(file.read_text())
        assert (file.name[1:5], own) == (f"{number:04}", f"{number:04}"), file.name
        assert before == (f"{number - 1:04}" if number > 1 else "None"), file.name
