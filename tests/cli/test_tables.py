"""Tables as people have them, by the command line: the page of the documentation as printed."""

import gzip
import json
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
    zipped, again = blocks("sh")[1].splitlines()
    Path("export.csv.gz").write_bytes(gzip.compress(Path("export.csv").read_bytes()))
    assert zipped == "gzip -k export.csv"
    assert blocks("")[1].strip() in shoal(*again.split()[1:]).stdout
    assert "bench@1" in shoal("dataset", "versions", "bench").stdout
    same = shoal("dataset", "diff", "bench@1", "bench")
    assert same.exit_code == 0, same.output
    assert "none of 4 columns differs" in same.stdout
    found = shoal(*blocks("sh")[2].split()[1:], "--json").stdout
    assert [one["count"] for one in json.loads(found)["findings"]] == [1]
    assert "line 51 of the file" in found
    copy = Path("export.csv").read_text("cp1252").replace("Prüfer;", "Prüfer;Code;").splitlines()
    rows = [row.replace("Müller;", f"Müller;{7 * row.endswith('gut')};") for row in copy]
    Path("leaky.csv").write_text("\n".join(rows), "cp1252")
    warned = shoal(*add.replace("export", "leaky").replace("bench", "leaky").split()[1:]).stdout
    assert "warning: Code alone predicts Ergebnis" in warned
    assert "--drop Code" in warned
    assert "export.csv" in shoal(*re.sub(" --skip 3", "", add).split()[1:]).stderr
    asked = shoal(*re.sub(" --encoding.*", "", add).split()[1:]).stderr
    assert "--encoding cp1252" in asked
