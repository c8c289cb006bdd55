"""The seam for plugins: loaded by name and not before, examples in the manual that are true."""

import importlib
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from feed_doubles import Recorder, feeds_of, running
from shoal import pipeline
from shoal.agent.doctor import examine
from shoal.agent.feeds.frames import Quality
from shoal.agent.feeds.io import plugins
from shoal.agent.feeds.io.interface import FeedSettings
from shoal.agent.host.io.config import Settings, Source, dump, load
from shoal.errors import SettingError
from waiting import eventually

MANUAL = (Path(__file__).parents[2] / "docs" / "sources-and-sinks.md").read_text()
LOADED_ON_DEMAND = ("pymodbus", "asyncua", "pyarrow", "PIL", "google.protobuf")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", MANUAL, re.DOTALL)


def every_example() -> dict[str, dict[str, Any]]:
    """sources.NAME or sinks.NAME -> its table, of every example in the manual."""
    found = {}
    for text in blocks("toml"):
        tables = tomllib.loads(text)
        for group in ("sources", "sinks"):
            found |= {f"{group}.{name}": t for name, t in tables.get(group, {}).items()}
    return found


@pytest.mark.parametrize("where", every_example())
def test_every_example_of_settings_in_the_manual_is_valid(where: str) -> None:
    table = every_example()[where]
    kind = plugins.load(f"shoal.{where.partition('.')[0]}", table["kind"])
    assert isinstance(plugins.settings_of(where, kind.Settings, table), FeedSettings)


@pytest.mark.parametrize("group", ["sources", "sinks"])
def test_every_built_in_plugin_has_an_example(group: str) -> None:
    shown = {t["kind"] for where, t in every_example().items() if where.startswith(group)}
    there = {entry.name for entry in importlib.metadata.entry_points(group=f"shoal.{group}")}
    assert there <= shown


def test_the_pipelines_in_the_manual_are_valid() -> None:
    text, image = blocks("json")
    line = pipeline.parse(text.encode())
    pipeline.check(line, [f"x{i}" for i in range(128 * 2)])
    assert json.loads(text)["stretch"]["samples"] == 128
    pipeline.check(pipeline.parse(image.encode()), [f"x{i}" for i in range(224 * 224 * 3)])


def test_the_plugin_in_the_manual_works_and_reconnects(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace: dict[str, Any] = {"__name__": "thermometer"}
    exec(blocks("python")[0].replace("wait(1.0)", "wait(0.01)"), namespace)
    entry = SimpleNamespace(name="thermometer", load=lambda: namespace["Thermometer"])

    class Found(list[Any]):
        def __getitem__(self, name: Any) -> Any:
            return entry

    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: Found([entry]))
    port = recorder.folder / "tty"
    feed = recorder.source("thermometer", port=str(port), retry_s=0.05)
    with running(feed):
        eventually(lambda: recorder.reported("No such file"), "the port is missed")
        port.write_text("21.5\n")
        eventually(lambda: recorder.newest == {"t": 21.5} or len(recorder.frames) > 1)
        assert recorder.frames[0].rows.tolist() == [[21.5]]
        eventually(lambda: recorder.frames[-1].quality is Quality.BAD, "nothing more comes")


#: Module that plugins imported before the agent had a folder for each domain -> where it is now.
OLD_NAMES = {
    "shoal.agent.faults": "shoal.agent.host.faults",
    "shoal.agent.frames": "shoal.agent.feeds.frames",
    "shoal.agent.io.feeds.connecting": "shoal.agent.feeds.io.connection",
    "shoal.agent.io.feeds.feed": "shoal.agent.feeds.io.interface",
}


@pytest.mark.parametrize("old", OLD_NAMES)
def test_an_old_module_name_warns_and_names_the_new_one(
    old: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(DeprecationWarning, match=f"{old} .* import {OLD_NAMES[old]}$"):
        module = importlib.import_module(old)
    current = importlib.import_module(OLD_NAMES[old])
    assert module.__all__
    assert {id(getattr(module, name)) for name in module.__all__} <= set(
        map(id, vars(current).values())
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_plugin_that_imports_the_old_names_still_works(recorder: Recorder) -> None:
    text = blocks("python")[0].replace("wait(1.0)", "wait(0.01)")
    text = text.replace("ReconnectingFeed", "Connecting")
    for old, new in OLD_NAMES.items():
        text = text.replace(f"from {new} import", f"from {old} import")
    namespace: dict[str, Any] = {"__name__": "thermometer"}
    exec(text, namespace)
    (recorder.folder / "tty").write_text("21.5\n")
    settings = namespace["ThermometerSettings"](
        kind="thermometer", port=str(recorder.folder / "tty")
    )
    feed = namespace["Thermometer"](settings, recorder.context("thermometer"), recorder.emit)
    with running(feed):
        eventually(lambda: recorder.frames, "a reading")
    assert recorder.frames[0].rows.tolist() == [[21.5]]


def test_no_library_is_loaded_for_a_plugin_that_agent_toml_does_not_name() -> None:
    code = (
        "import sys, shoal.agent.feeds.io.runner, shoal.agent.feeds.io.plugins as p\n"
        "p.load('shoal.sources', 'replay'); p.load('shoal.sources', 'mqtt')\n"
        "print([m for m in sys.argv[1:] if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *LOADED_ON_DEMAND], capture_output=True, text=True
    )
    assert run.stdout.strip() == "[]", run.stderr


@pytest.mark.parametrize(
    ("kind", "library", "extra", "table"),
    [("modbus", "pymodbus", "modbus", {"host": "h", "tags": [{"name": "a", "address": 1}]}),
     ("opcua", "asyncua", "opcua", {"url": "opc.tcp://h", "tags": [{"name": "a", "node": "i=1"}]}),
     ("images", "PIL", "images", {"path": "x", "width": 1, "height": 1})],
)  # fmt: skip
def test_a_missing_library_is_named_with_the_extra_to_install(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, kind: str, library: str, extra: str,
    table: dict[str, Any],
) -> None:  # fmt: skip
    def absent(module: str) -> Any:
        raise ImportError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(plugins.importlib, "import_module", absent)
    with pytest.raises(SettingError, match=rf"{library}.*not installed.*agent-{extra}"):
        recorder.source(kind, **table)


def test_a_wrong_setting_is_refused_at_the_start(recorder: Recorder) -> None:
    tables: dict[str, Any] = {"plc": {"kind": "mqtt", "url": "mqtt://h", "topic": "t"}}
    with pytest.raises(SettingError, match=r"agent.toml: sources\.plc.*topic"):
        feeds_of(recorder, {}, tables)
    with pytest.raises(SettingError, match=r"no '' among shoal.sinks"):
        feeds_of(recorder, {}, {}, {"out": {}})


def test_the_doctor_builds_every_feed_and_reports_what_is_wrong(tmp_path: Path) -> None:
    def found(**tables: Any) -> Any:
        settings = Settings(source=Source(path="rows.csv"), **tables)
        return next(f for f in examine(tmp_path, settings) if f.check == "feeds")

    good = found(sinks={"out": {"kind": "mqtt", "url": "mqtt://h"}})
    assert (good.passed, good.detail) == (True, "1 sources and 1 sinks can be built")
    bad = found(sources={"plc": {"kind": "modbus", "tags": []}})
    assert not bad.passed
    assert "sources.plc" in bad.detail


def test_enrolling_again_keeps_sources_and_sinks(tmp_path: Path) -> None:
    settings = Settings(
        sources={"plc 1": {"kind": "modbus", "tags": [{"name": "a", "bit": 1}], "unit": 7}},
        sinks={"out": {"kind": "opcua", "nodes": {"label": "ns=2;s=L"}, "keep": 5}},
    )
    text = dump(settings)
    found = tomllib.loads(text)
    assert found["sources"] == settings.sources
    assert found["sinks"] == settings.sinks
    (tmp_path / "agent.toml").write_text(text.replace('name = ""', 'name = "a"'))
    assert load(tmp_path).sinks == settings.sinks
