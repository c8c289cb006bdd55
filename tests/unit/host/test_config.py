"""agent.toml: what is wrong in it is named; what is written is read back."""

from pathlib import Path

import pytest

from shoal.agent.host.io.config import (
    Controller,
    Device,
    Settings,
    Source,
    Update,
    dump,
    is_written,
    load,
)
from shoal.errors import SettingError

KNOWN = "ab" * 32


def settings_of(folder: Path, text: str) -> Settings:
    (folder / "agent.toml").write_text(text)
    return load(folder)


def test_everything_but_the_name_has_a_default(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, '[device]\nname = "cam-1"\n')
    assert settings == Settings(device=Device(name="cam-1"))
    assert settings.endpoint.host == "127.0.0.1"


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    settings = Settings(
        device=Device(name="cam-1", site='a "quoted" one', labels={"hall": "B\n2", "x y": "\\"}),
        controller=Controller(url="https://h:1", broker="mqtts://h:2", artifacts="https://h:3"),
        source=Source(path="/data/x.csv", label="digit", rate_hz=12.5),
        update=Update(observe_s=8.0),
        log_level="DEBUG",
    )
    assert settings_of(tmp_path, dump(settings)) == settings


WRONG = {
    "[device]\n": "device name",
    '[device]\nname = "Cam 1"\n': "Cam 1",
    '[device]\nname = "a"\nring = "beta"\n': "device.ring",
    '[device]\nname = "a"\nspeed = 1\n': "speed",
    "[device]\nname = 3\n": "device.name",
    '[device]\nname = "a"\n[endpoint]\nport = "x"\n': "endpoint.port",
    '[device]\nname = "a"\n[outbox]\nlimit_mb = 0\n': "outbox.limit_mb",
    '[device]\nname = "a"\n[update]\nobserve_s = -1\n': "update.observe_s",
    '[device]\nname = "a"\n[source]\nkind = "kafka"\npath = "x"\n': "kafka",
    '[device]\nname = "a"\n[source]\n': "source.path",
    '[device]\nname = "a"\n[learning]\ngraphs = "ab"\n': "learning.graphs",
    '[device]\nname = "a"\n[learning]\ngraphs = [7]\n': "learning.graphs",
    f'[device]\nname = "a"\n[learning]\ngraphs = ["{KNOWN}", "{KNOWN[:63]}"]\n': KNOWN[:63] + "'",
    f'[device]\nname = "a"\n[learning]\ngraphs = ["{KNOWN.upper()}"]\n': KNOWN.upper(),
    f'[device]\nname = "a"\n[learning]\ngraphs = ["sha256:{KNOWN}"]\n': "sha256:",
    "[device\n": "agent.toml",
    "[nonsense]\n": "nonsense",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_named(text: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=WRONG[text]):
        settings_of(tmp_path, text)


def test_the_hint_for_a_graph_that_is_no_hash_names_where_to_find_it(tmp_path: Path) -> None:
    with pytest.raises(SettingError) as wrong:
        settings_of(tmp_path, '[device]\nname = "a"\n[learning]\ngraphs = ["digits.onnx"]\n')
    assert "64 lowercase hex digits" in wrong.value.hint
    assert "shoal round plan" in wrong.value.hint


def test_pinned_graphs_are_limits_of_the_device_and_without_any_every_signed_one_is_run(
    tmp_path: Path,
) -> None:
    settings = settings_of(tmp_path, f'[device]\nname = "a"\n[learning]\ngraphs = ["{KNOWN}"]\n')
    assert settings.learning.limits().graphs == {KNOWN}
    assert settings_of(tmp_path, dump(settings)) == settings
    assert Settings().learning.limits().graphs == frozenset()


def test_the_hint_for_a_folder_that_never_enrolled_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="shoal-agent enroll"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_file_says_so_and_how_to_come_back(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingError, match=r"agent.toml is empty.*shoal-agent enroll"):
        settings_of(tmp_path, text)
    assert not is_written(tmp_path), "enrolment writes it anew"


def test_a_file_that_is_no_text_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_bytes(b"\xff\x00\x00")
    with pytest.raises(SettingError, match=r"agent.toml"):
        load(tmp_path)
