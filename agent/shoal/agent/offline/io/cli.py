"""`shoal-agent import` and `export`."""

import datetime
import getpass
import os
import time
from collections.abc import Callable
from pathlib import Path

from shoal.agent.host.io.config import load
from shoal.agent.host.io.facts import read_facts
from shoal.agent.host.io.folder import JOURNAL, give, lock
from shoal.agent.installed.io.journal import read_floors
from shoal.agent.offline.io.export import export_messages, request_inventory
from shoal.agent.offline.io.import_ import ImportTarget, import_bundle
from shoal.errors import SettingError
from shoal.offline_bundle import UP, OfflineBundle
from shoal.profile import detect


def import_folder(folder: Path, source: Path) -> list[str]:
    """Import the bundle in `source` for the agent in `folder`; lines for the user."""
    device = load(folder).device
    target = ImportTarget(
        folder=folder,
        device=device.name,
        profile=device.profile or detect(read_facts()).name,
        user=os.environ.get("SUDO_USER") or getpass.getuser(),
        now_s=time.time(),
    )
    found = import_bundle(target, OfflineBundle(source))
    made = datetime.datetime.fromtimestamp(found.made_s, datetime.UTC)
    copied = _size(sum(file.size for file in found.files))
    when = "now" if _is_running(folder) else "at its next start"
    what = f"from {made:%Y-%m-%d %H:%M} UTC: {', '.join(found.releases) or 'no release'}"
    return [
        f"{what}, {copied} copied; {_count(found.acked, 'message')} acknowledged",
        f"the agent processes it {when}; {source} is no longer needed; see:",
        f"shoal-agent status --folder {folder}",
    ]


def export_folder(folder: Path, target: Path, prepare: Callable[[], bytes]) -> list[str]:
    """Export the messages of the agent in `folder` into `target`; lines for the user.

    prepare   where no agent runs: numbers the outbox; the encoded inventory
    """
    device = load(folder).device.name
    if not target.is_dir():
        raise SettingError(f"no folder {target}", "is the medium mounted?")
    try:
        held = lock(folder)
    except SettingError:
        inventory = request_inventory(folder, time.monotonic, time.sleep)
    else:
        try:
            inventory = prepare()
        finally:
            give(folder, folder.iterdir())
            os.close(held)
    now_s = max(time.time(), read_floors(folder / JOURNAL).time_s)
    exported = export_messages(folder, device, inventory, OfflineBundle(target), now_s)
    files = f"{_count(exported.files, 'file')} of {target / UP / device}"
    return [
        f"{_count(exported.messages, 'message')} in {files}",
        "they stay here until the controller acknowledges them: shoal bundle import FOLDER",
    ]


def _count(number: int, one: str) -> str:
    """
    >>> _count(1, "file"), _count(0, "file")
    ('1 file', '0 files')
    """
    return f"{number} {one}{'' if number == 1 else 's'}"


def _size(count: int) -> str:
    """
    >>> _size(512), _size(20_480), _size(5 * 2**20)
    ('512 B', '20.0 KiB', '5.0 MiB')
    """
    if count < 1024:
        return f"{count} B"
    return f"{count / 2**10:.1f} KiB" if count < 2**20 else f"{count / 2**20:.1f} MiB"


def _is_running(folder: Path) -> bool:
    try:
        os.close(lock(folder))
    except SettingError:
        return True
    return False
