"""What is found in the agent's own folder: whether it runs, and how it stands when it does not."""

import http.client
import shlex
import socket
import time
from pathlib import Path

import msgspec

from shoal.agent.host.io.config import Settings, load
from shoal.agent.host.io.database import open_database
from shoal.agent.host.io.facts import version_of
from shoal.agent.host.io.folder import ADDRESS, FOLDER, JOURNAL, OUTBOX, SOCKET
from shoal.agent.installed.io.journal import read_records
from shoal.agent.installed.record import Record
from shoal.agent.status import Standing, model_standing
from shoal.errors import StorageError

_TIMEOUT_S = 3.0


def read_standing(folder: Path) -> Standing:
    """How the device stands: asked of the running agent, else read from its files."""
    found = _ask(folder) or _from_disk(folder)
    elsewhere = folder.absolute() != FOLDER
    return msgspec.structs.replace(found, folder=shlex.quote(str(folder)) if elsewhere else "")


def _from_disk(folder: Path) -> Standing:
    settings = load(folder)
    try:
        records, waiting = _read(folder)
    except StorageError as error:
        return _from_files(settings, {}, 0, [str(error)])
    return _from_files(settings, records, waiting, [])


def _ask(folder: Path) -> Standing | None:
    """The running agent's own word; None when nobody answers."""
    for connect in (_unix, _tcp):
        try:
            connection = connect(folder)
            connection.request("GET", "/status")
            response = connection.getresponse()
            data = response.read(1 << 20)
            connection.close()
            if response.status == 200:
                return msgspec.json.decode(data, type=Standing)
        except (OSError, http.client.HTTPException, ValueError, msgspec.MsgspecError):
            continue
    return None


def _unix(folder: Path) -> http.client.HTTPConnection:
    plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    plain.settimeout(_TIMEOUT_S)
    try:
        plain.connect(str(folder / SOCKET))
    except OSError:
        plain.close()
        raise
    connection = http.client.HTTPConnection("localhost", timeout=_TIMEOUT_S)
    connection.sock = plain
    return connection


def _tcp(folder: Path) -> http.client.HTTPConnection:
    address = (folder / ADDRESS).read_text().removeprefix("http://")
    return http.client.HTTPConnection(address, timeout=_TIMEOUT_S)


def _read(folder: Path) -> tuple[dict[str, Record], int]:
    if not (folder / JOURNAL).exists():
        return {}, 0
    records = read_records(folder / JOURNAL)
    if not (folder / OUTBOX).exists():
        return records, 0
    outbox = open_database(folder / OUTBOX)
    waiting = outbox.table("row").count if "row" in outbox.table_names() else 0
    outbox.close()
    return records, waiting


def _from_files(
    settings: Settings, records: dict[str, Record], waiting: int, faults: list[str]
) -> Standing:
    device = settings.device
    return Standing(
        device=device.name,
        site=device.site,
        profile=device.profile,
        ring=device.ring,
        agent=version_of("shoal"),
        now_s=time.time(),
        running=False,
        waiting=waiting,
        models=[model_standing(record, record.active) for record in records.values()],
        faults=faults,
    )
