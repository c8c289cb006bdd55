"""What can be typed, set or called is documented, or one of these fails."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def _load_reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = _load_reference()
APPLICATIONS = [
    ("shoal.cli.__main__", "cli", "shoal", "cli.md"),
    ("shoal.agent.__main__", "main", "shoal-agent", "agent.md"),
    ("shoal.controller.__main__", "main", "shoal-controller", "controller.md"),
]


def test_the_reference_parts_of_the_documents_match_the_code() -> None:
    script = [sys.executable, str(ROOT / "scripts" / "reference.py"), "--check"]
    run = subprocess.run(script, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(("module", "attribute", "name", "document"), APPLICATIONS)
def test_every_command_and_option_is_documented_and_has_a_description(
    module: str, attribute: str, name: str, document: str
) -> None:
    text = (DOCS / document).read_text()
    root = getattr(importlib.import_module(module), attribute)
    for path, command in reference._walk(root, (name,)):
        if isinstance(command, click.Group):
            continue
        title = " ".join(path)
        assert f"### {title}\n" in text, f"{title} is not in docs/{document}"
        part = text.split(f"### {title}\n")[1].split("\n### ")[0]
        for option in (p for p in command.params if isinstance(p, click.Option)):
            assert option.opts[0] in part, f"{title} {option.opts[0]} is not in docs/{document}"
            assert option.help, f"{title} {option.opts[0]} does not say what it does"


@pytest.mark.parametrize("name", ["shoal.agent.host.io.config", "shoal.controller.host.settings"])
def test_every_setting_has_a_description(name: str) -> None:
    root = importlib.import_module(name).Settings
    for kind in (
        root,
        *filter(None, (reference._struct_of(f.type) for f in reference._fields(root))),
    ):
        said = reference.described(kind)
        plain = [f.name for f in reference._fields(kind) if not reference._is_struct(f.type)]
        assert [name for name in plain if not said.get(name)] == [], kind.__name__


def test_every_route_is_documented_and_has_a_description() -> None:
    text = (DOCS / "api.md").read_text()
    from shoal.controller.api import registry

    for route in registry.all_routes():
        path = re.sub(r"<(?:[^:>]+:)?([^>]+)>", r"{\1}", route.path)
        assert f"| `{route.method}` | `{path}` |" in text
        assert route.view.__doc__, path


LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#]+)(#[^)]*)?\)")


@pytest.mark.parametrize(
    "document",
    [path.relative_to(ROOT) for path in sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])],
    ids=str,
)
def test_every_link_between_documents_leads_somewhere(document: Path) -> None:
    text = (ROOT / document).read_text()
    broken = [
        found[1]
        for found in LINK.finditer(text)
        if not (ROOT / document.parent / found[1]).exists()
    ]
    assert broken == []


def test_every_exit_code_of_the_cli_is_documented() -> None:
    from shoal.cli.exit_codes import MEANING

    text = (DOCS / "cli.md").read_text()
    assert [code for code in MEANING if f"| {code} |" not in text] == []


def test_every_row_of_the_field_reports_names_tests_that_there_are() -> None:
    rows = [
        line
        for line in (DOCS / "field-reports.md").read_text().splitlines()
        if line.startswith("| [")
    ]
    assert len(rows) >= 40
    known = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, f"no test holds: {row[:80]}"
        assert known.issuperset(named), f"no such test: {set(named) - known}"
