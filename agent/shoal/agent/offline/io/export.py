"""Export of this device's messages into an offline bundle, to be imported at the controller.

Exported messages stay in the outbox, since a bundle may be lost. They leave it when the controller
acknowledges them, in its next bundle or through the broker.
"""

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from shoal import offline_bundle, sealed_message
from shoal.agent.host.io.folder import OUTBOX, READY, WANTED
from shoal.agent.offline.io.seal import root_fingerprint, seal
from shoal.agent.telemetry.io.outbox_store import read_messages
from shoal.durable import write_durable
from shoal.errors import LinkError, MisdirectedError, SettingError
from shoal.offline_bundle import OfflineBundle
from shoal.sealed_message import BatchMessage, MessageBatch

_TIMEOUT_S, _POLL_S = 60.0, 0.1


class Exported(NamedTuple):
    """Number of files written, and of messages in them."""

    files: int
    messages: int


def request_inventory(
    folder: Path, monotonic: Callable[[], float], sleep: Callable[[float], None]
) -> bytes:
    """Have the running agent number its outbox; its inventory, encoded for the wire.

    LinkError when it does not respond.
    """
    ready, wanted = folder / READY, folder / WANTED
    ready.unlink(missing_ok=True)
    write_durable(wanted, b"")
    end = monotonic() + _TIMEOUT_S
    while not ready.exists():
        if monotonic() > end:
            wanted.unlink(missing_ok=True)
            raise LinkError("the agent does not respond", "see its log, or stop it and try again")
        sleep(_POLL_S)
    data = ready.read_bytes()
    ready.unlink()
    return data


def export_messages(
    folder: Path, device: str, inventory: bytes, target: OfflineBundle, now_s: float
) -> Exported:
    """Write `inventory` and every numbered message into `target`, sealed as this device.

    Raises MisdirectedError for a folder of another controller, StorageError when a disk refuses.
    """
    try:
        label = target.label()
        if label.ca != root_fingerprint(folder):
            raise MisdirectedError("this bundle is of another controller than this device's")
    except SettingError:
        pass  # an empty folder
    trip, written, messages = secrets.token_hex(4), 0, 0
    portions = sealed_message.batches(_messages(folder, inventory))
    some: list[BatchMessage] | None = next(portions)
    while some is not None:
        following = next(portions, None)
        written, messages = written + 1, messages + len(some)
        made = MessageBatch(
            device=device,
            made_s=now_s,
            trip=trip,
            letters=some,
            part=written,
            parts=0 if following is not None else written,
        )
        target.write(f"{offline_bundle.UP}/{device}/{made.name}", seal(folder, made))
        some = following
    return Exported(written, messages)


def _messages(folder: Path, inventory: bytes) -> Iterator[BatchMessage]:
    yield BatchMessage("inventory", inventory)
    if (folder / OUTBOX).exists():
        for message in read_messages(folder / OUTBOX):
            yield BatchMessage(message.kind, message.payload)
