"""Firmware profiles: the built-in ones, and a folder of one's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.errors import SettingError
from shoal.profile import FURTHER, detect, folder, load_profiles, profile

OWN = """
title = "Press controller"
variants = ["fp32"]

[match]
arch = "aarch64"
cpu_part = "0xd0b"
soc = "ours"

[budget]
rss_mb = 100
p99_ms = 12.0
model_mb = 10.0
cpu_pct = 50
temp_c = 80
"""


@pytest.fixture(autouse=True)
def read_anew() -> Iterator[None]:
    load_profiles.cache_clear()
    yield
    load_profiles.cache_clear()


def test_a_folder_of_ones_own_adds_a_profile_which_is_detected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built_in = set(load_profiles())
    (tmp_path / "press.toml").write_text(OWN)
    monkeypatch.setenv(FURTHER, str(tmp_path))
    load_profiles.cache_clear()
    assert set(load_profiles()) == built_in | {"press"}
    assert detect({"arch": "aarch64", "cpu_part": "0xd0b", "soc": "ours"}).name == "press"
    assert profile("press").gate == profile("generic").gate  # from defaults.toml


def test_a_file_with_the_name_of_a_built_in_profile_replaces_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (folder() / "rpi4.toml").read_text()
    (tmp_path / "rpi4.toml").write_text(text.replace("p99_ms = 80.0", "p99_ms = 81.0"))
    monkeypatch.setenv(FURTHER, str(tmp_path))
    assert profile("rpi4").budget.p99_ms == 81.0


def test_a_folder_that_is_not_there_is_an_error_that_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FURTHER, str(tmp_path / "nowhere"))
    with pytest.raises(SettingError, match=f"{FURTHER}.*nowhere"):
        load_profiles()
