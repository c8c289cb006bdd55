"""Files of a release in one folder, verified against the signed manifest before they are read."""

import hashlib
import io
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from shoal import manifest as manifests
from shoal import provenance
from shoal.errors import BundleError
from shoal.golden import LIMIT as GOLDEN_LIMIT
from shoal.golden import GoldenTensors
from shoal.manifest import File, Manifest
from shoal.sketch import MAX_EDGES, MAX_FEATURES, References
from shoal.validation_errors import decode_errors_as

MANIFEST = "manifest.json"
_CHUNK = 1 << 20
_REFERENCE_LIMIT = 16 << 20


class Golden(msgspec.Struct, frozen=True):
    """Golden vectors: inputs, and the expected outputs of each variant on any CPU.

    inputs    float32 (n, F)
    outputs   variant name -> float32 (n, C)
    """

    inputs: npt.NDArray[np.float32]
    outputs: dict[str, npt.NDArray[np.float32]]

    def to_bytes(self) -> bytes:
        out = io.BytesIO()
        named = {f"output:{k}": v for k, v in self.outputs.items()}
        np.savez_compressed(out, inputs=self.inputs, **named)  # type: ignore[arg-type]
        return out.getvalue()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hex, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def describe(name: str, data: bytes) -> File:
    """The File entry of `data`."""
    size, length = len(data), manifests.piece_size(len(data))
    pieces = [data[start : start + length] for start in range(0, size, length)]
    chunks = [hashlib.sha256(piece).hexdigest() for piece in pieces] if len(pieces) > 1 else []
    return File(name=name, size=size, sha256=hashlib.sha256(data).hexdigest(), chunks=chunks)


def describe_file(name: str, path: Path) -> File:
    """The File entry of the file at `path`, read a piece at a time."""
    size = path.stat().st_size
    whole, chunks = hashlib.sha256(), []
    with path.open("rb") as file:
        while piece := file.read(manifests.piece_size(size)):
            whole.update(piece)
            chunks.append(hashlib.sha256(piece).hexdigest())
    chunks = chunks if len(chunks) > 1 else []
    return File(name=name, size=size, sha256=whole.hexdigest(), chunks=chunks)


def verify_file(path: Path, file: File) -> None:
    """Raise BundleError unless the file at `path` has the size and hash in the manifest."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise BundleError(f"{file.name} is missing from {path.parent}") from error
    if size != file.size or sha256_of(path) != file.sha256:
        raise BundleError(f"{file.name} in {path.parent} does not match its signed hash")


def is_valid(path: Path, file: File) -> bool:
    """Whether the file at `path` has the size and hash in the manifest."""
    try:
        verify_file(path, file)
    except BundleError:
        return False
    return True


def accept(part: Path, target: Path, file: File) -> None:
    """Rename a verified download to `target`; BundleError, and it is deleted, when it differs."""
    try:
        verify_file(part, file)
    except BundleError:
        part.unlink()
        raise
    part.replace(target)


def verify(folder: Path, profile: str) -> Manifest:
    """Verify every file for `profile` in `folder` by hash; return the manifest.

    The manifest itself was verified against TUF's hash before it was written there.
    """
    manifest = read_manifest(folder)
    for file in manifest.files_for(profile):
        verify_file(folder / file.name, file)
    return manifest


def verify_provenance(folder: Path, manifest: Manifest) -> None:
    """ProvenanceError where the provenance in a verified folder contradicts the manifest.

    Releases packed before there was any have none, and pass.
    """
    if manifest.provenance is not msgspec.UNSET:
        data = _bounded(folder / manifest.provenance.name, provenance.LIMIT)
        provenance.verify(data, manifest)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest in `folder`; BundleError if it is missing or invalid."""
    try:
        data = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise BundleError(f"no {MANIFEST} in {folder}") from error
    return manifests.parse(data)


def read_references(folder: Path, manifest: Manifest) -> References:
    """The reference sketches of a verified bundle."""
    data = _bounded(folder / manifest.reference.name, _REFERENCE_LIMIT)
    with decode_errors_as(lambda cause: BundleError(f"{manifest.reference.name}: {cause}")):
        references = msgspec.json.decode(data, type=References)
    for features in (references.inputs.features, references.outputs.features):
        if len(features) > MAX_FEATURES or any(len(f.edges) > MAX_EDGES for f in features):
            raise BundleError(f"{manifest.reference.name}: too many features or edges")
    return references


def read_golden(folder: Path, manifest: Manifest) -> Golden:
    """The golden vectors of a verified bundle; BundleError if they are invalid."""
    data = _bounded(folder / manifest.golden.name, GOLDEN_LIMIT)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            inputs = arrays["inputs"].astype(np.float32)
            outputs = {
                key.removeprefix("output:"): arrays[key].astype(np.float32)
                for key in arrays.files
                if key.startswith("output:")
            }
    except (ValueError, KeyError, OSError) as error:
        raise BundleError(f"{manifest.golden.name}: {error}") from error
    if inputs.ndim != 2 or any(len(v) != len(inputs) for v in outputs.values()):
        raise BundleError(f"{manifest.golden.name}: inputs and outputs are not of one length")
    return Golden(inputs, outputs)


def read_golden_tensors(folder: Path, manifest: Manifest) -> GoldenTensors:
    """The golden vectors of a verified bundle of tensors; BundleError if they are invalid."""
    data = _bounded(folder / manifest.golden.name, GOLDEN_LIMIT)
    with decode_errors_as(lambda cause: BundleError(f"{manifest.golden.name}: {cause}")):
        return msgspec.msgpack.decode(data, type=GoldenTensors)


def _bounded(path: Path, limit: int) -> bytes:
    size = path.stat().st_size
    if size > limit:
        raise BundleError(f"{path.name}: {size} bytes, {limit} allowed")
    return path.read_bytes()
