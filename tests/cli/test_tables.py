"""Tables as people have them, by the command line: the page of the documentation as printed."""

import re
from pathlib import Path

import pytest

from cli.conftest import Cli

PAGE = Path(__file__).parents[2] / "docs/tables.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_the_page_on_tables_runs_as_printed(
    shoal: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(blocks("python")[0], {})
    add, show = blocks("sh")[0].splitlines()
    said = shoal(*add.split()[1:])
    assert said.exit_code == 0, said.output
    for line in blocks("")[0].splitlines():
        assert line.split("…")[0].strip() in said.stdout
    shown = shoal(*show.split()[1:]).stdout
    assert "not as many values as columns" in shown
    assert 'thousands "."' in shown
    assert "export.csv" in shoal(*re.sub(" --skip 3", "", add).split()[1:]).stderr
    asked = shoal(*re.sub(" --encoding.*", "", add).split()[1:]).stderr
    assert "--encoding cp1252" in asked
