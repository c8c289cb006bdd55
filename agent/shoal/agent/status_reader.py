"""Read the device's status: from the running agent, else from the files in its folder."""

import http.client
import os
import shlex
import socket
import time
from pathlib import Path

import msgspec

from shoal.agent.host.io.config import load
from shoal.agent.host.io.database import open_database
from shoal.agent.host.io.facts import version_of
from shoal.agent.host.io.folder import ADDRESS, FOLDER, JOURNAL, OUTBOX, SOCKET, runs_as
from shoal.agent.installed.io.journal import read_records
from shoal.agent.installed.record import Record
from shoal.agent.status import DeviceStatus, model_status
from shoal.errors import StorageError

_TIMEOUT_S = 3.0


def read_status(folder: Path) -> DeviceStatus:
    """The status from the running agent, else from its files."""
    found = _request(folder) or _from_disk(folder)
    is_default = folder.absolute() == FOLDER
    return msgspec.structs.replace(found, folder="" if is_default else shlex.quote(str(folder)))


def _from_disk(folder: Path) -> DeviceStatus:
    device, faults = load(folder).device, []
    try:
        records, waiting = _read(folder)
    except StorageError as error:
        records, waiting, faults = {}, 0, [str(error)]
    return DeviceStatus(
        pid=runs_as(folder),
        read_only=not os.access(folder, os.W_OK),
        device=device.name,
        site=device.site,
        profile=device.profile,
        ring=device.ring,
        agent=version_of("shoal"),
        now_s=time.time(),
        running=False,
        waiting=waiting,
        models=[model_status(record, record.active) for record in records.values()],
        faults=faults,
    )


def _request(folder: Path) -> DeviceStatus | None:
    """The status from the running agent; None when none responds."""
    for connect in (_unix, _tcp, _fixed):
        try:
            connection = connect(folder)
            connection.request("GET", "/status")
            response = connection.getresponse()
            data = response.read(1 << 20)
            connection.close()
            if response.status == 200:
                found = msgspec.json.decode(data, type=DeviceStatus)
                if connect is not _fixed or found.device == load(folder).device.name:
                    return found
        except (OSError, http.client.HTTPException, ValueError, msgspec.MsgspecError):
            continue
    return None


def _unix(folder: Path) -> http.client.HTTPConnection:
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connected.settimeout(_TIMEOUT_S)
    try:
        connected.connect(str(folder / SOCKET))
    except OSError:
        connected.close()
        raise
    connection = http.client.HTTPConnection("localhost", timeout=_TIMEOUT_S)
    connection.sock = connected
    return connection


def _tcp(folder: Path) -> http.client.HTTPConnection:
    address = (folder / ADDRESS).read_text().removeprefix("http://")
    return http.client.HTTPConnection(address, timeout=_TIMEOUT_S)


def _fixed(folder: Path) -> http.client.HTTPConnection:
    """By the port of the settings: an agent on a read-only disk writes no address down."""
    endpoint = load(folder).endpoint
    if not endpoint.port:
        raise ConnectionRefusedError
    return http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=_TIMEOUT_S)


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
