"""Taking in a folder that was carried here: verified as a whole, then copied, then handed over.

Nothing of a folder that is stale, foreign, tampered with or cut short is kept. What is believed
here is verified once more by the agent, against the same roots and floors, when it makes use of
it; whether the release fits this board is the agent's to say, and to report.
"""

import contextlib
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from shoal import bundle, offline_bundle, sealed_message, wire
from shoal.agent.host.disk import RESERVE
from shoal.agent.host.io.folder import DIRECTOR, JOURNAL, METADATA, MODELS, ROOT, read_trusted
from shoal.agent.installed.floors import Floors
from shoal.agent.installed.io.journal import read_floors
from shoal.agent.installed.io.slots import DiskSlots
from shoal.agent.offline.io.cache import Bearer, Carried, Refusal
from shoal.agent.offline.io.seal import open_parcel, root_fingerprint
from shoal.errors import (
    AbsentError,
    BundleError,
    MisdirectedError,
    ShoalError,
    StaleError,
    StorageError,
    TrustError,
)
from shoal.manifest import File
from shoal.manifest import parse as parse_manifest
from shoal.offline_bundle import Stick
from shoal.trust import (
    ImageRepository,
    Order,
    Orders,
    director_version,
    follow_roots,
    verify_orders,
)

#: Bytes of metadata, all together: it is in memory while it is looked at. Files of it.
_METADATA_LIMIT, _MOST_FILES = 16 << 20, 500
#: What a controller publishes (TUF, consistent snapshots); what else lies there is passed over.
_METADATA_NAME = re.compile(
    r"timestamp\.json|[0-9]{1,10}\.(root|snapshot|targets|(release|candidate)-[a-z0-9-]{1,63})\.json"
)
_AGAIN = "export it again: shoal bundle export"


class Station(NamedTuple):
    """Whom a folder is for. now_s: Unix seconds of this machine; user: who carries it."""

    folder: Path
    device: str
    profile: str
    user: str
    now_s: float


class Found(NamedTuple):
    """A folder that is believed.

    acked   messages that it says have arrived
    files   that this device needs of it
    """

    sealed: bytes
    made_s: float
    releases: list[str]
    acked: int
    files: list[File]
    metadata: dict[str, bytes]


def bring(station: Station, source: Stick) -> Found:
    """Verify `source` and copy what this device needs of it into the agent's folder.

    Raises SettingError for no folder of Shoal's, MisdirectedError for another device's or
    controller's, StaleError, UntrustedError, BundleError for what was tampered with or is not
    whole, ConflictError while another import runs, StorageError when a disk refuses. Nothing of
    it is used then; a folder that was not to be trusted is reported to the controller.
    """
    carried = Carried(station.folder)
    with carried.bringing():
        try:
            found = _believe(station, source)
            _copy(station, source, carried, found)
        except StaleError as error:
            raise StaleError(f"this folder is too old: {error.message}", _AGAIN) from error
        except TrustError as error:
            detail = f"{station.user} brought a folder that was refused: {error}"
            carried.refuse(Refusal(cause=error.code, detail=detail, severity="critical"))
            raise type(error)(error.message, error.hint or _AGAIN) from error
        except BundleError as error:
            detail = f"{station.user} brought a folder that is damaged: {error}"
            carried.refuse(Refusal(cause="folder-damaged", detail=detail, severity="warning"))
            raise
    return found


def _believe(station: Station, source: Stick) -> Found:
    label = source.label()
    if label.ca != root_fingerprint(station.folder):
        raise MisdirectedError("this folder is of another controller than this device's")
    floors = read_floors(station.folder / JOURNAL)
    now = max(station.now_s, floors.time_s)
    try:
        sealed = source.read(f"{offline_bundle.DOWN}/{station.device}.parcel", sealed_message.LIMIT)
    except AbsentError as error:
        whose = ", ".join(label.devices[:10]) or "nobody"
        raise MisdirectedError(f"this folder is for {whose}, not {station.device}") from error
    found = open_parcel(station.folder, sealed, station.device, now)
    told = [wire.decode_down(letter.kind, letter.payload) for letter in found.letters]
    orders = _orders(station, found, told, floors, now)
    metadata = _metadata(source)
    _check_images(station.folder, orders, metadata, floors, now)
    return Found(
        sealed=sealed,
        made_s=found.made_s,
        releases=[order.release for order in orders],
        acked=sum(len(m.seqs) for m in told if isinstance(m, wire.Ack)),
        files=[file for order in orders for file in _files(station, source, order)],
        metadata=metadata,
    )


def _orders(
    station: Station,
    found: sealed_message.Parcel,
    told: Sequence[wire.Message],
    floors: Floors,
    now: float,
) -> list[Order]:
    """Of the assignment in it: the same verification that the agent does."""
    root = newest_director(read_trusted(station.folder, DIRECTOR), found.roots)
    read: list[Orders] = [
        verify_orders(
            message.signed,
            director_root=root,
            device=station.device,
            floor=floors.assignment,
            now_s=now,
        )
        for message in told
        if isinstance(message, wire.Assignment)
    ]
    return read[-1].orders if read else []


def newest_director(trusted: bytes, roots: Sequence[bytes]) -> bytes:
    """Follow the director's roots, oldest first, from the one that is trusted; TrustError."""
    have = director_version(trusted)
    return follow_roots(trusted, [root for root in roots if director_version(root) > have])


def _metadata(source: Stick) -> dict[str, bytes]:
    """File name -> its bytes; BundleError before more is read than this device has room for."""
    found = [name.rpartition("/")[2] for name in source.names(offline_bundle.METADATA, ".json")]
    names = [name for name in found if _METADATA_NAME.fullmatch(name)]
    if len(names) > _MOST_FILES:
        raise BundleError(f"{len(names)} files of metadata, {_MOST_FILES} allowed", _AGAIN)
    read, left = dict[str, bytes](), _METADATA_LIMIT
    for name in names:
        read[name] = source.read(f"{offline_bundle.METADATA}/{name}", left)
        left -= len(read[name])
    return read


def _check_images(
    folder: Path, orders: Sequence[Order], metadata: dict[str, bytes], floors: Floors, now: float
) -> None:
    """TUF's own verification, on a copy of the agent's cache: nothing is learnt by looking."""

    def fetch(name: str) -> bytes:
        try:
            return metadata[name]
        except KeyError:
            raise AbsentError("metadata", name) from None

    scratch = Path(tempfile.mkdtemp(prefix="shoal-"))
    try:
        cache = scratch / METADATA
        with contextlib.suppress(FileNotFoundError):
            shutil.copytree(folder / METADATA, cache)
        images = ImageRepository(cache, read_trusted(folder, ROOT), fetch)
        images.refresh(now, floors.metadata)
        for order in orders:
            images.check(order)
    except TrustError:
        raise
    except ShoalError as error:
        raise BundleError(f"{offline_bundle.METADATA}: {error}", _AGAIN) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _files(station: Station, source: Stick, order: Order) -> list[File]:
    """The manifest, and what it names for this profile; none where it does not serve it."""
    name = f"{offline_bundle.BLOBS}/{order.sha256}"
    if not source.holds(name, order.length, order.sha256):
        raise BundleError(f"{name} is missing, or not what was signed", _AGAIN)
    own = File(name=bundle.MANIFEST, size=order.length, sha256=order.sha256)
    manifest = parse_manifest(source.read(name, order.length))
    try:
        files = manifest.files_for(station.profile)
    except BundleError:
        return [own]  # the agent says why, and tells the controller
    return [own, *(file for file in files if not _is_here(station.folder, order.model, file))]


def _is_here(folder: Path, model: str, file: File) -> bool:
    path = DiskSlots(folder / MODELS).held(model).get(file.sha256)
    if path is None:
        return False
    try:
        bundle.verify_file(path, file)
    except BundleError:
        return False
    return True


def _copy(station: Station, source: Stick, carried: Carried, found: Found) -> None:
    need = 2 * sum([*(file.size for file in found.files), *map(len, found.metadata.values())])
    free = shutil.disk_usage(station.folder).free
    if need + RESERVE > free:
        raise StorageError(
            f"{need / 2**20:.0f} MB needed, {free / 2**20:.0f} MB free", "make room on this disk"
        )
    carried.begin()
    for file in found.files:
        name = f"{offline_bundle.BLOBS}/{file.sha256}"
        try:
            carried.keep_blob(file.sha256, source.pieces(name, file.size))
        except BundleError as error:
            raise BundleError(f"{file.name}: {error.message}", _AGAIN) from error
    carried.keep_metadata(found.metadata)
    bearer = Bearer(user=station.user, made_s=found.made_s, brought_s=station.now_s)
    carried.complete(found.sealed, bearer)
