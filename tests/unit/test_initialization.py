"""`init`: what it makes, that it may be cut short, and what it refuses."""

import json
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

from shoal.controller.__main__ import main
from shoal.controller.doctor import run_checks, worst_state
from shoal.controller.host import settings
from shoal.controller.initialization import InitOptions, as_toml, make_folder
from shoal.errors import SettingError, StorageError

NOW = 1_800_000_000.0


def init(folder, *options):
    return CliRunner().invoke(main, ["init", "--folder", str(folder), *options])


def test_init_makes_all_and_prints_the_password_once(tmp_path):
    folder = tmp_path / "controller"
    made = init(folder, "--json", "--port", "18443", "--window-s", "2")
    assert made.exit_code == 0, made.output
    facts = json.loads(made.output)
    assert facts["url"] == "https://localhost:18443"
    assert len(facts["admin_password"]) >= 20
    assert len(facts["ca_fingerprint"]) == 64
    assert settings.load(folder).fleet.window_s == 2
    kept = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert not any(facts["admin_password"].encode() in data for data in kept)
    again = init(folder)
    assert again.exit_code == 1
    assert "controller already" in again.output


def test_nothing_secret_is_readable_by_others(tmp_path):
    assert init(tmp_path / "controller").exit_code == 0
    folder = tmp_path / "controller"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    secrets = [*folder.glob("pki/*.key"), *folder.glob("keys/*")]
    assert len(secrets) > 6
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}


def test_an_init_that_was_cut_short_is_just_run_again(tmp_path):
    folder = tmp_path / "controller"
    make_folder(folder, InitOptions(), NOW)
    before = (
        (folder / "pki" / "ca.pem").read_bytes(),
        (folder / "keys" / "capability.key").read_bytes(),
    )
    assert init(folder).exit_code == 0
    after = (
        (folder / "pki" / "ca.pem").read_bytes(),
        (folder / "keys" / "capability.key").read_bytes(),
    )
    assert before == after


def test_a_name_for_others_binds_all_addresses_and_comes_first(tmp_path):
    network = make_folder(tmp_path / "a", InitOptions(names=["shoal.example"]), NOW).network
    assert (network.host, network.names) == ("0.0.0.0", ["shoal.example", "localhost", "127.0.0.1"])
    assert make_folder(tmp_path / "b", InitOptions(), NOW).network.host == "127.0.0.1"
    asked = InitOptions(names=["shoal.example"], host="192.0.2.1")
    assert make_folder(tmp_path / "c", asked, NOW).network.host == "192.0.2.1"


@pytest.mark.parametrize(
    ("names", "host"),
    [(["::1"], "::1"), (["localhost"], "127.0.0.1"), (["fd00::5"], "::"), (["[fd00::5]"], "::"),
     (["factory.example", "fd00::5"], "::"), (["10.0.0.5"], "0.0.0.0")],
)  # fmt: skip
def test_the_address_to_bind_is_of_the_family_of_the_names(
    tmp_path: Path, names: list[str], host: str
) -> None:
    made = make_folder(tmp_path / "controller", InitOptions(names=names), NOW).network
    assert (made.host, made.names[0]) == (host, names[0].strip("[]"))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (InitOptions(port=0), "port"),
        (InitOptions(port=8883), "twice"),
        (InitOptions(names=["https://shoal.example"]), "https://shoal.example"),
        (InitOptions(names=["fe80::1%eth0"]), "one interface"),
        (InitOptions(names=["shoal.example:8443"]), "shoal.example:8443"),
        (InitOptions(mqtt=70_000), "port"),
        (InitOptions(window_s=0), "window"),
        (InitOptions(baseline_windows=1), "baseline"),
        (InitOptions(broker="mqtt://plain"), "mqtts://"),
    ],
)
def test_an_impossible_wish_is_named_and_nothing_is_made(tmp_path, options, named):
    with pytest.raises(SettingError, match=named):
        make_folder(tmp_path / "controller", options, NOW)
    assert not (tmp_path / "controller").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        make_folder(tmp_path / "file" / "controller", InitOptions(), NOW)


def test_every_setting_is_in_the_file_it_writes(tmp_path):
    wanted = make_folder(tmp_path / "controller", InitOptions(), NOW)
    text = as_toml(wanted)
    parts = [getattr(wanted, name) for name in wanted.__struct_fields__ if name != "database"]
    for part in parts:
        assert all(f"\n{name} = " in text for name in part.__struct_fields__)


def test_serving_a_folder_that_was_never_initialised_names_the_command(tmp_path):
    found = CliRunner().invoke(main, ["serve", "--folder", str(tmp_path)])
    assert found.exit_code == 1
    assert "shoal-controller init" in found.output


def test_doctor_finds_nothing_wrong_with_a_new_controller_and_names_what_is_missing(tmp_path):
    folder = tmp_path / "controller"
    assert init(folder, "--broker", "mqtts://127.0.0.1:1").exit_code == 0
    (folder / "pki" / "server.crt").unlink()
    checks = {check.name: check for check in run_checks(folder, NOW)}
    assert checks["settings"].state == checks["database"].state == checks["signing"].state == "ok"
    assert checks["certificate server"].state == "error"
    assert "server.crt" in checks["certificate server"].detail
    assert "refused" in checks["broker"].detail
    assert worst_state(list(checks.values())) == "error"


def test_doctor_counts_the_days_of_every_certificate(tmp_path):
    make_folder(tmp_path / "controller", InitOptions(), NOW)
    far = {check.name: check for check in run_checks(tmp_path / "controller", NOW + 360 * 86_400)}
    assert far["certificate server"].state == "warning"
    gone = {check.name: check for check in run_checks(tmp_path / "controller", NOW + 400 * 86_400)}
    assert gone["certificate server"].state == "error"
    assert "serve makes a new one" in gone["certificate server"].detail
