"""`shoal user` and `shoal token`, from the first password to the last revocation."""

from pathlib import Path

from cli.conftest import Cli

OWN = "a password of my own"


def test_a_new_user_chooses_a_password_at_login_and_an_admin_ends_it(
    shoal: Cli, tmp_path: Path
) -> None:
    made = shoal.json("user", "add", "ana", "--role", "operator")
    ana = Cli(tmp_path / "ana", shoal.controller)
    login = ("login", shoal.controller.url, "--yes", "--user", "ana")
    result = ana(*login, "--password", made["one_time_password"], given=f"{OWN}\n{OWN}\n")
    assert result.exit_code == 0, result.stderr
    assert ana.json("user", "sessions") == []
    assert ana("user", "list").exit_code == 3
    [token] = ana.json("token", "list")
    assert token["user"] == "ana"
    shoal.json("user", "role", "ana", "viewer", "--reason", "test")
    [found] = [u for u in shoal.json("user", "list") if u["name"] == "ana"]
    assert (found["role"], found["tokens"]) == ("viewer", 1)
    assert "ana" in shoal("user", "list").output
    assert "enable ana" in shoal("user", "disable", "ana").output
    assert ana("device", "list").exit_code == 3
    assert "enabled" in shoal("user", "enable", "ana").output
    assert shoal.json("user", "revoke", "ana") == {"sessions": 0, "tokens": 1}
    assert "one-time password" in shoal("user", "reset", "ana", "--yes").output
    assert "removed" in shoal("user", "remove", "ana", "--yes").output
    result = shoal("user", "role", "ana", "viewer")
    assert (result.exit_code, "shoal user list" in result.stderr) == (4, True)


def test_a_token_needs_the_password_and_has_a_scope_and_an_end(shoal: Cli) -> None:
    create = ("token", "create", "ci", "--role", "viewer", "--site", "north", "--ttl", "1h")
    assert shoal(*create, "--password", "wrong-wrong-wrong").exit_code == 3
    made = shoal.json(*create, "--password", shoal.controller.password)
    assert (made["role"], made["sites"]) == ("viewer", ["north"])
    assert 0 < made["expires_at"] - made["created_at"] <= 3600
    shoal.environment |= {"SHOAL_TOKEN": made["secret"]}
    assert shoal.json("device", "list", "--site", "north") == []
    result = shoal("device", "list")
    assert (result.exit_code, "site 'north'" in result.stderr) == (3, True)
    del shoal.environment["SHOAL_TOKEN"]
    assert "north" in shoal("token", "list").output
    assert shoal("token", "revoke", made["id"]).exit_code == 0


def test_a_changed_password_ends_other_tokens_and_keeps_this_one(shoal: Cli) -> None:
    first = shoal.controller.password
    try:
        result = shoal("user", "password", given=f"{first}\n{OWN}\n{OWN}\n")
        assert result.exit_code == 0, result.stderr
        assert "ended" in result.output
        assert shoal("device", "list").exit_code == 0
    finally:
        shoal("user", "password", given=f"{OWN}\n{first}\n{first}\n")


def test_an_exported_audit_log_is_verified_without_the_controller(
    shoal: Cli, tmp_path: Path
) -> None:
    file, head = str(tmp_path / "audit.jsonl"), str(tmp_path / "head.json")
    assert shoal.json("audit", "list", "--verb", "user.*", "--limit", "1")[0]["verb"]
    assert shoal("audit", "head", head).exit_code == 0
    assert "shoal audit verify" in shoal("audit", "export", file).output
    away = Cli(tmp_path / "away", shoal.controller)
    assert "whole" in away("audit", "verify", file, "--head", head).output
    lines = Path(file).read_text().splitlines(keepends=True)
    Path(file).write_text("".join([*lines[:1], *lines[2:]]))
    result = away("audit", "verify", file)
    assert (result.exit_code, "entry 2 is missing" in result.stderr) == (1, True)
