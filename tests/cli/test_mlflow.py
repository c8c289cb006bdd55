"""`shoal mlflow`, and imports from it, where no server is configured: each says what to do."""

import pytest

from cli.conftest import Cli


def test_status_says_how_a_server_is_named(shoal: Cli) -> None:
    assert "[mlflow] in controller.toml" in shoal("mlflow", "status").stdout
    found = shoal.json("mlflow", "status")
    assert (found["url"], found["runs"]["enabled"], found["follows"]) == ("", False, [])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("model", "import", "mlflow:press/3", "--task", "tensors"), "under [mlflow]"),
        (("model", "import", "mlflow:My Press/3", "--task", "tensors"), "import NAME mlflow:My"),
        (("model", "import", "press", "mlflow:press", "--task", "tensors"), "NAME/VERSION"),
        (("model", "import", "mlflow:press/3"), "add --dataset"),
        (("model", "import", "press"), "FILE"),
        (("mlflow", "follow", "press@prod", "--task", "tensors"), "under [mlflow]"),
        (("mlflow", "follow", "press/3", "--task", "tensors"), "NAME@alias"),
        (("mlflow", "follow", "press@prod"), "name a dataset"),
        (("mlflow", "unfollow", "press@prod", "--yes"), "shoal mlflow status"),
    ],
)
def test_what_cannot_be_done_names_the_next_step(
    shoal: Cli, arguments: tuple[str, ...], words: str
) -> None:
    result = shoal(*arguments)
    assert result.exit_code != 0
    assert words in " ".join(result.output.split())
