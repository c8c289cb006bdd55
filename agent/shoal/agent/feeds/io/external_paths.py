"""Paths outside of the agent's folder that sources and sinks of agent.toml use."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from shoal.agent.feeds.io.plugins import SINKS, SOURCES, settings_of
from shoal.agent.feeds.io.plugins import load as plugin
from shoal.agent.host.io.config import load
from shoal.agent.host.io.folder import SETTINGS
from shoal.agent.host.unit import Outside


def outside(folder: Path) -> Outside:
    """The paths, for the agent in `folder` (absolute); none without an agent.toml.

    Raises SettingError for a source or sink with impossible settings.
    """
    if not (folder / SETTINGS).exists():
        return Outside()
    settings = load(folder)
    short = {"source": msgspec.structs.asdict(settings.source)} if settings.source else {}
    reads, writes = set[str](), set[str]()
    for group, tables in ((SOURCES, short | settings.sources), (SINKS, settings.sinks)):
        for name, table in tables.items():
            touched = _touched(group, name, table)
            reads |= _absolute(folder, touched.reads)
            writes |= _absolute(folder, touched.writes)
    return Outside(tuple(sorted(reads - writes)), tuple(sorted(writes)))


def _touched(group: str, name: str, table: Mapping[str, Any]) -> Any:
    kind = str(table.get("kind", "replay"))
    where = f"{group.partition('.')[2]}.{name}"
    return settings_of(where, plugin(group, kind).Settings, table).touches()


def _absolute(folder: Path, paths: tuple[str, ...]) -> set[str]:
    """Absolute forms of `paths`, without those in `folder`."""
    found = {os.path.normpath(folder / path) for path in paths if path}
    return {path for path in found if not Path(path).is_relative_to(folder)}
