"""Who the CLI speaks to, as whom, and what it says when that does not work."""

import stat
from pathlib import Path

import msgspec
import pytest

from cli.conftest import Cli


def test_login_shows_the_ca_and_keeps_a_token_that_only_its_owner_can_read(stranger: Cli) -> None:
    result = stranger.login()
    assert result.exit_code == 0, result.output
    assert stranger.controller.fingerprint[:4] in result.stderr
    kept = stranger.home / ".config" / "shoal"
    for path in (kept / "account.json", kept / "ca.pem"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    assert stranger.json("device", "list", "--site", "nowhere") == []


def test_a_fingerprint_on_the_command_line_is_checked_and_nothing_asked(stranger: Cli) -> None:
    url, right = stranger.controller.url, stranger.controller.fingerprint
    common = ("login", url, "--user", "admin", "--password", stranger.controller.password)
    assert stranger(*common, "--fingerprint", right).exit_code == 0
    result = stranger(*common, "--fingerprint", "0" * 64)
    assert result.exit_code == 6
    assert "suspect interception" in result.stderr


def test_without_a_yes_nothing_is_sent_to_an_unknown_ca(stranger: Cli) -> None:
    assert "--fingerprint" in stranger("login", stranger.controller.url, given="").stderr
    result = stranger("login", stranger.controller.url, given="n\n")
    assert result.exit_code == 3
    assert "Password" not in result.output + result.stderr
    assert not (stranger.home / ".config").exists()


def test_the_password_is_prompted_for_after_the_ca_and_the_user_is_not(stranger: Cli) -> None:
    given = f"y\n{stranger.controller.password}\n"
    result = stranger("login", stranger.controller.url, "--json", given=given)
    assert result.exit_code == 0, result.stderr
    assert msgspec.json.decode(result.stdout)["user"] == "admin"


def test_a_wrong_password_is_reported_and_has_an_exit_code_of_its_own(stranger: Cli) -> None:
    result = stranger.login(password="wrong-wrong-wrong")
    assert result.exit_code == 3
    assert "error:" in result.stderr


def test_a_command_without_a_sign_in_names_the_login_command(stranger: Cli) -> None:
    result = stranger("device", "list")
    assert result.exit_code == 3
    assert "shoal login" in result.stderr


def test_the_environment_wins_over_what_login_kept(shoal: Cli, tmp_path: Path) -> None:
    shoal.environment |= {"SHOAL_TOKEN": "shoal_nobody_nothing"}
    assert shoal("device", "list").exit_code == 3
    shoal.environment |= {"SHOAL_URL": "https://127.0.0.1:9"}
    result = shoal("device", "list")
    assert result.exit_code == 6
    assert "serve" in result.stderr


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("https://127.0.0.1:9", "is shoal-controller serve running there?"),
        ("https://no-such-host.invalid:8443", "is its name right"),
        ("127.0.0.1:8443", "write it as https://HOST:8443"),
    ],
)
def test_a_controller_that_is_not_there_is_reported_with_the_hint_that_fits(
    stranger: Cli, url: str, hint: str
) -> None:
    result = stranger("login", url, "--yes", "--password", "x")
    assert result.exit_code == 6, result.stderr
    assert hint in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("device", "list", "--ring", "purple", "--json"),
        ("device", "show", "--json"),
        ("device", "polish", "--json"),
        ("polish", "--json"),
        ("device", "token", "--json", "--site", "north", "--ttl", "soon"),
    ],
    ids=" ".join,
)
def test_with_json_a_misused_command_is_one_json_object_too(
    shoal: Cli, arguments: tuple[str, ...]
) -> None:
    result = shoal(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    said = msgspec.json.decode(result.stderr)
    assert said["code"] == "usage" or arguments[1] == "token"
    assert said["detail"]
    assert said["hint"] == said["mend"] != ""


def test_another_ca_than_the_pinned_one_is_refused(shoal: Cli, tmp_path: Path) -> None:
    from shoal.controller.fleet.io.ca import Authority

    Authority.create(tmp_path / "other", names=["localhost"], now=1_800_000_000)
    shoal.environment |= {"SHOAL_CA": str(tmp_path / "other" / "ca.pem")}
    result = shoal("device", "list")
    assert result.exit_code == 6
    assert "pinned" in result.stderr


def test_with_json_an_error_is_one_json_object_on_stderr(shoal: Cli) -> None:
    result = shoal("device", "show", "nobody", "--json")
    assert (result.exit_code, result.stdout) == (4, "")
    said = msgspec.json.decode(result.stderr)
    assert "nobody" in said["detail"]
    assert {"code", "hint", "mend"} <= set(said)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("device", "show", "nobody"), 4),
        (("release", "show", "nothing@1"), 4),
        (("release", "show", "nothing"), 2),
        (("rollout", "show", "nowhere"), 4),
        (("rollout", "start", "nothing@1"), 4),
        (("rollout", "start", "nothing@1", "--stage", "x:colour=red"), 2),
        (("rollout", "start", "nothing@1", "--stage", "x:percent=many"), 2),
        (("model", "train", "parts", "--dataset", "nothing"), 4),
        (("model", "train", "parts", "--dataset", "nothing", "--param", "x"), 2),
        (("operation", "show", "nothing"), 4),
        (("device", "list", "--ring", "purple"), 2),
        (("device", "token", "--site", "north", "--ttl", "soon"), 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_every_kind_of_mistake_has_its_exit_code(
    shoal: Cli, arguments: tuple[str, ...], code: int
) -> None:
    result = shoal(*arguments)
    assert result.exit_code == code, result.output
    assert result.stderr.strip()
