"""Archive of a release: one file with everything that proves it, for a machine without a network.

    manifest.json, and every file that it names    the release
    proof.json                                     signed metadata that lists the manifest
    root/<version>.root.json                       root metadata, from the first on

A ZIP file of stored (not compressed) entries in no folder but `root/`: what it holds is never
larger than it is, and only what the manifest names is read.

Sources: PKWARE APPNOTE 6.3.10 (ZIP); TUF specification 1.0.33, 5.3 (chain of roots).
"""

import hashlib
import io
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import msgspec
from tuf.api.metadata import Metadata, Root

from shoal import bundle, provenance, trust
from shoal import manifest as manifests
from shoal import proof as proofs
from shoal.errors import BundleError, TrustError, UntrustedError
from shoal.manifest import File, Manifest
from shoal.provenance import Statement

PROOF, ROOTS = "proof.json", "root/"
_PIECE, _MOST_ENTRIES, _MOST_ROOTS, _ROOT_LIMIT = 1 << 20, 2_000, 256, 262_144
_AGAIN = "export it again: shoal release export MODEL@N FILE"
#: Date of every entry: the same release makes the same file.
_DATE = (1980, 1, 1, 0, 0, 0)


class VerifiedRelease(NamedTuple):
    """A release that an archive was proved to hold.

    role         that signed it: release or candidate
    epoch        security epoch of the metadata that lists it
    root         version of the root metadata that its keys were proved by
    statement    its provenance; None in a release packed before there was any
    expires_s    Unix seconds until which devices install it by this metadata
    """

    manifest: Manifest
    role: str
    sha256: str
    epoch: int
    root: int
    statement: Statement | None
    expires_s: float


def write(
    manifest: bytes, proof: bytes, roots: Mapping[int, bytes], path_of: Callable[[str], Path]
) -> Iterator[bytes]:
    """Bytes of an archive, a piece at a time. path_of: SHA-256 -> path of a file of the release."""
    sink = _Sink()
    with zipfile.ZipFile(cast(IO[bytes], sink), "w", zipfile.ZIP_STORED) as archive:
        small = {bundle.MANIFEST: manifest, PROOF: proof}
        small |= {f"{ROOTS}{version}.root.json": data for version, data in sorted(roots.items())}
        for name, data in small.items():
            archive.writestr(_entry(name, len(data)), data)
        files = {file.name: file for file in manifests.parse(manifest).files()}
        for file in files.values():
            with archive.open(_entry(file.name, file.size), "w") as target:
                for piece in _pieces(path_of(file.sha256)):
                    target.write(piece)
                    yield sink.take()
    yield sink.take()


def verify(path: Path, root: bytes) -> VerifiedRelease:
    """Prove the archive at `path` by root metadata that is trusted, without a network.

    Verified in this order: the chain of roots from `root` on (each by its predecessor); targets and
    role by the newest root; the manifest by the role's hash; every file by the manifest; the
    provenance against the manifest. UntrustedError for what no key of root leads to,
    ProvenanceError, BundleError for a damaged file. Expiry is for the caller to judge.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _verify(_Entries(archive, path), root)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise BundleError(f"{path} is no archive of a release: {error}", _AGAIN) from error


class _Sink(io.RawIOBase):
    """A file that is written and never read back: `take` gives what was written since."""

    def __init__(self) -> None:
        super().__init__()
        self._written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self._written += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self._written)
        self._written.clear()
        return taken


class _Entries:
    """Entries of an archive by name, read with a bound."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self._archive, self._path = archive, path
        every = archive.infolist()
        self._named = {one.filename: one for one in every}
        if len(every) > _MOST_ENTRIES or len(self._named) < len(every):
            raise BundleError(f"{path}: too many entries, or two of one name", _AGAIN)
        for one in every:
            if one.compress_type != zipfile.ZIP_STORED or one.file_size > one.compress_size:
                raise BundleError(f"{path}: {one.filename[:100]!r} is compressed", _AGAIN)

    @property
    def names(self) -> set[str]:
        return set(self._named)

    def read(self, name: str, limit: int) -> bytes:
        with self.open(name) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise BundleError(f"{self._path}: {name} has more than {limit} bytes", _AGAIN)
        return data

    def open(self, name: str) -> IO[bytes]:
        if name not in self._named:
            raise BundleError(f"{self._path}: {name} is missing", _AGAIN)
        return self._archive.open(self._named[name])


def _verify(entries: _Entries, root: bytes) -> VerifiedRelease:
    version, newest = _newest_root(entries, root)
    try:
        listed = proofs.verify(entries.read(PROOF, proofs.LIMIT), newest)
    except UntrustedError as error:
        raise UntrustedError(
            error.message, "is the root.json that you gave of the controller that made it?"
        ) from error
    data = entries.read(bundle.MANIFEST, manifests.LIMIT)
    if (len(data), hashlib.sha256(data).hexdigest()) != (listed.length, listed.sha256):
        raise UntrustedError(f"{bundle.MANIFEST} is not the one that was signed as {listed.path}")
    manifest = manifests.parse(data)
    role = listed.path.partition("/")[0]
    if listed.path != trust.target_path(role, manifest.model, manifest.version):
        raise UntrustedError(f"{manifest.release} is not what was signed as {listed.path}")
    files = {file.name: file for file in manifest.files()}
    roots = {name for name in entries.names if name.startswith(ROOTS)}
    if extra := sorted(entries.names - files.keys() - roots - {bundle.MANIFEST, PROOF}):
        raise BundleError(f"{extra[0][:100]!r} is no file of {manifest.release}", _AGAIN)
    for file in files.values():
        _check(entries, file, manifest)
    statement = None
    if manifest.provenance is not msgspec.UNSET:
        said = entries.read(manifest.provenance.name, provenance.LIMIT)
        statement = provenance.verify(said, manifest)
    return VerifiedRelease(
        manifest, role, listed.sha256, listed.epoch, version, statement, listed.expires_s
    )


def _newest_root(entries: _Entries, root: bytes) -> tuple[int, Root]:
    """The newest root of the archive that a chain of signatures leads to, and its version."""
    version = trust.director_version(root)
    for _ in range(_MOST_ROOTS):
        name = f"{ROOTS}{version + 1}.root.json"
        if name not in entries.names:
            break
        try:
            root = trust.follow_roots(root, [entries.read(name, _ROOT_LIMIT)])
        except TrustError as error:
            raise UntrustedError(f"{name} is not signed by the keys of root {version}") from error
        version += 1
    return version, Metadata[Root].from_bytes(root).signed


def _check(entries: _Entries, file: File, manifest: Manifest) -> None:
    digest, size = hashlib.sha256(), 0
    with entries.open(file.name) as opened:
        while piece := opened.read(_PIECE):
            digest.update(piece)
            size += len(piece)
    if (size, digest.hexdigest()) != (file.size, file.sha256):
        raise BundleError(
            f"{file.name} of {manifest.release} does not match its signed hash", _AGAIN
        )


def _entry(name: str, size: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _DATE)
    entry.file_size, entry.external_attr = size, 0o644 << 16
    return entry


def _pieces(path: Path) -> Iterable[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece
