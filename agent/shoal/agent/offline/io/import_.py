"""Import of an offline bundle: verified as a whole, then copied to the cache for the agent.

Nothing is kept of a bundle that is stale, of another controller, tampered with or incomplete. The
agent verifies the assignment again, against the same roots and floors, when it processes it; it
also decides, and reports, whether the release fits this device.
"""

import contextlib
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from shoal import bundle, offline_bundle, sealed_message, wire
from shoal.agent.host.io.folder import DIRECTOR, JOURNAL, METADATA, MODELS, ROOT, read_trusted
from shoal.agent.host.ports import RESERVE
from shoal.agent.installed.floors import Floors
from shoal.agent.installed.io.journal import read_floors
from shoal.agent.installed.io.slots import DiskSlots
from shoal.agent.offline.io.cache import ImportRecord, OfflineCache, Rejection
from shoal.agent.offline.io.seal import open_sealed, root_fingerprint
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
from shoal.offline_bundle import OfflineBundle
from shoal.orders import Order, Orders
from shoal.trust import (
    ImageRepository,
    director_signers,
    director_version,
    follow_roots,
    verify_orders,
)

#: Total bytes of metadata, which is verified in memory; files of it.
_METADATA_LIMIT, _MOST_FILES = 16 << 20, 500
#: Names that a controller publishes (TUF, consistent snapshots); other files are ignored.
_METADATA_NAME = re.compile(
    r"timestamp\.json|[0-9]{1,10}\.(root|snapshot|targets|(release|candidate)-[a-z0-9-]{1,63})\.json"
)
_AGAIN = "export it again: shoal bundle export"


class ImportTarget(NamedTuple):
    """The device that imports. now_s: Unix seconds of this machine; user: who runs the import."""

    folder: Path
    device: str
    profile: str
    user: str
    now_s: float


class VerifiedBundle(NamedTuple):
    """A verified offline bundle.

    acked   messages that it acknowledges
    files   that this device needs from it
    """

    sealed: bytes
    made_s: float
    releases: list[str]
    acked: int
    files: list[File]
    metadata: dict[str, bytes]


def import_bundle(target: ImportTarget, source: OfflineBundle) -> VerifiedBundle:
    """Verify an offline bundle and copy the files that this device needs into the agent's folder.

    Raises SettingError for a folder that is no bundle, MisdirectedError for another device's or
    controller's, StaleError, UntrustedError, BundleError for a tampered or incomplete one,
    ConflictError while another import runs, StorageError when a disk refuses. Nothing of it is
    used then; an untrusted or damaged bundle is reported to the controller.
    """
    cache = OfflineCache(target.folder)
    with cache.lock():
        try:
            found = _verify(target, source)
            _copy(target, source, cache, found)
        except StaleError as error:
            raise StaleError(f"this bundle is too old: {error.message}", _AGAIN) from error
        except TrustError as error:
            detail = f"{target.user} imported a bundle that was refused: {error}"
            cache.reject(Rejection(cause=error.code, detail=detail, severity="critical"))
            raise type(error)(error.message, error.hint or _AGAIN) from error
        except BundleError as error:
            detail = f"{target.user} imported a bundle that is damaged: {error}"
            cache.reject(Rejection(cause="folder-damaged", detail=detail, severity="warning"))
            raise
    return found


def _verify(target: ImportTarget, source: OfflineBundle) -> VerifiedBundle:
    label = source.label()
    if label.ca != root_fingerprint(target.folder):
        raise MisdirectedError("this bundle is of another controller than this device's")
    floors = read_floors(target.folder / JOURNAL)
    now = max(target.now_s, floors.time_s)
    try:
        sealed = source.read(f"{offline_bundle.DOWN}/{target.device}.parcel", sealed_message.LIMIT)
    except AbsentError as error:
        devices = ", ".join(label.devices[:10]) or "no device"
        raise MisdirectedError(f"this bundle is for {devices}, not {target.device}") from error
    found = open_sealed(target.folder, sealed, target.device, now)
    received = [wire.decode_down(message.kind, message.payload) for message in found.letters]
    orders = _orders(target, found, received, floors, now)
    metadata = _metadata(source)
    _check_images(target.folder, orders, metadata, floors, now)
    return VerifiedBundle(
        sealed=sealed,
        made_s=found.made_s,
        releases=[order.release for order in orders if not order.removes],
        acked=sum(len(m.seqs) for m in received if isinstance(m, wire.Ack)),
        files=[file for order in orders for file in _files(target, source, order)],
        metadata=metadata,
    )


def _orders(
    target: ImportTarget,
    found: sealed_message.MessageBatch,
    received: Sequence[wire.Message],
    floors: Floors,
    now: float,
) -> list[Order]:
    """Orders of the assignment in it, verified as the agent does."""
    root = newest_director(read_trusted(target.folder, DIRECTOR), found.roots)
    read: list[Orders] = [
        verify_orders(
            message.signed,
            director_root=root,
            device=target.device,
            floor=floors.of_assignments(director_signers(root)),
            now_s=now,
        )
        for message in received
        if isinstance(message, wire.Assignment)
    ]
    return read[-1].orders if read else []


def newest_director(trusted: bytes, roots: Sequence[bytes]) -> bytes:
    """Follow the director's roots, oldest first, from the one that is trusted; TrustError."""
    have = director_version(trusted)
    return follow_roots(trusted, [root for root in roots if director_version(root) > have])


def _metadata(source: OfflineBundle) -> dict[str, bytes]:
    """Metadata files by name; BundleError above the limits of number and size."""
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
    """TUF verification on a copy of the agent's metadata cache, which stays as it is."""

    def fetch(name: str) -> bytes:
        try:
            return metadata[name]
        except KeyError:
            raise AbsentError("metadata", name) from None

    scratch = Path(tempfile.mkdtemp(prefix="shoal-"))
    try:
        copied = scratch / METADATA
        with contextlib.suppress(FileNotFoundError):
            shutil.copytree(folder / METADATA, copied)
        images = ImageRepository(copied, read_trusted(folder, ROOT), fetch)
        images.refresh(now, floors.seen)
        for order in orders:
            if not order.removes:
                images.check(order)
    except TrustError:
        raise
    except ShoalError as error:
        raise BundleError(f"{offline_bundle.METADATA}: {error}", _AGAIN) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _files(target: ImportTarget, source: OfflineBundle, order: Order) -> list[File]:
    """The manifest, and the files for this profile that the device lacks; none for a removal."""
    if order.removes:
        return []
    name = f"{offline_bundle.BLOBS}/{order.sha256}"
    if not source.holds(name, order.length, order.sha256):
        raise BundleError(f"{name} is missing, or not what was signed", _AGAIN)
    own = File(name=bundle.MANIFEST, size=order.length, sha256=order.sha256)
    manifest = parse_manifest(source.read(name, order.length))
    try:
        files = manifest.files_for(target.profile)
    except BundleError:
        return [own]  # it does not fit this profile: the agent reports why
    return [own, *(file for file in files if not _is_installed(target.folder, order.model, file))]


def _is_installed(folder: Path, model: str, file: File) -> bool:
    path = DiskSlots(folder / MODELS).held(model).get(file.sha256)
    return path is not None and bundle.is_valid(path, file)


def _copy(
    target: ImportTarget, source: OfflineBundle, cache: OfflineCache, found: VerifiedBundle
) -> None:
    need = 2 * sum([*(file.size for file in found.files), *map(len, found.metadata.values())])
    free = shutil.disk_usage(target.folder).free
    if need + RESERVE > free:
        raise StorageError(
            f"{need / 2**20:.0f} MB needed, {free / 2**20:.0f} MB free", "make room on this disk"
        )
    cache.begin()
    for file in found.files:
        name = f"{offline_bundle.BLOBS}/{file.sha256}"
        try:
            cache.add_blob(file.sha256, source.pieces(name, file.size))
        except BundleError as error:
            raise BundleError(f"{file.name}: {error.message}", _AGAIN) from error
    cache.replace_metadata(found.metadata)
    record = ImportRecord(user=target.user, made_s=found.made_s, brought_s=target.now_s)
    cache.commit(found.sealed, record)
