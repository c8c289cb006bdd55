"""What `shoal-agent enroll` is asked for is looked at before anything is sent."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from shoal.agent.__main__ import main

NOWHERE = "https://127.0.0.1:9"
TOKEN = f"sj1.{'a' * 10}.{'b' * 32}.{'0' * 64}"


def enroll(tmp_path: Path, *options: str) -> str:
    asked = ["enroll", "--folder", str(tmp_path / "agent"), "--controller", NOWHERE]
    result = CliRunner().invoke(main, [*asked, "--token", TOKEN, "--name", "cam-1", *options])
    assert result.exit_code == 1
    return result.output


@pytest.mark.parametrize(
    ("source", "label", "said"),
    [
        ("replay:{folder}/gone.csv", "", "there is no file"),
        ("replay:{folder}", "", "there is no file"),
        ("replay:{folder}/rows.csv", "colour", "colour"),
        ("tape:{folder}/rows.csv", "", "replay:FILE"),
    ],
)
def test_an_unreadable_source_is_reported_before_a_token_is_spent(
    tmp_path: Path, source: str, label: str, said: str
) -> None:
    (tmp_path / "rows.csv").write_text("x,y\n1,a\n2,b\n")
    told = enroll(tmp_path, "--source", source.format(folder=tmp_path), "--source-label", label)
    assert said in told
    assert not (tmp_path / "agent").exists()


def test_a_source_that_can_be_read_goes_on_to_the_controller(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("x,y\n1,a\n2,b\n")
    told = enroll(tmp_path, "--source", f"replay:{tmp_path}/rows.csv", "--source-label", "y")
    assert NOWHERE in told
