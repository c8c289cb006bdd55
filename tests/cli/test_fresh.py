"""What the CLI says of a controller that was just made. No test here changes anything in it."""

import msgspec
import pytest

from cli.conftest import Cli


@pytest.mark.parametrize("noun", ["device", "dataset", "model", "release", "rollout", "operation"])
def test_an_empty_list_shows_the_next_command(noun: str, stranger: Cli, shoal: Cli) -> None:
    result = shoal(noun, "list")
    assert result.exit_code == 0, result.output
    assert "shoal " in result.stdout or noun in ("dataset", "model", "release", "operation")


def test_doctor_finds_nothing_wrong_with_a_fresh_controller_but_its_engine(shoal: Cli) -> None:
    result = shoal("doctor", "--json")
    found = {item["what"]: item["ok"] for item in msgspec.json.decode(result.stdout)}
    assert found["account"]
    assert found["clock"]
    assert found["token"]
    assert found["alerts"]
