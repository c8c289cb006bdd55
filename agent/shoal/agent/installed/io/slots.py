"""The two slots of each model on disk (A/B), and the stage for downloads.

    models/<model>/a/ b/      the files of a release each, with its manifest and the proof that it
                              was signed (shoal.proof); one serves
    models/<model>/current    link to the serving slot, for users and other programs
    models/<model>/stage/     files being downloaded: <sha256>.part, then the file's name

A slot is created by one rename of a verified and synced stage, so a slot is never incomplete. The
journal, not the link, decides which slot serves.
"""

import contextlib
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec

from shoal import bundle
from shoal.agent.installed.record import Slot
from shoal.durable import sync, translated, write_durable
from shoal.errors import BundleError
from shoal.manifest import File, Manifest, check_model, is_model
from shoal.manifest import parse as parse_manifest

_LINK, _SLOT, _PROOF = "current", "slot.json", "proof.json"
#: Bytes of a proof at most.
PROOF_LIMIT = 4 << 20
_HINT = "free disk space, or check the disk"
#: Endings of partial downloads, named by the file's hash (io/download.py).
_PARTS = (".part", ".delta", ".whole")


class DiskSlots:
    """Slots under one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._verified: dict[str, list[object]] = {}

    def path(self, model: str, slot: str) -> Path:
        """Folder of one slot, or of the "stage"."""
        return self._folder / check_model(model) / slot

    def read_manifest(self, model: str, slot: str) -> Manifest:
        return bundle.read_manifest(self.path(model, slot))

    def put_manifest(self, model: str, data: bytes, proof: bytes = b"") -> None:
        """Start a stage with a verified manifest and the proof that it was signed.

        Files of it that are present are kept, all others are deleted.
        """
        stage = self.path(model, "stage")
        files = {file.name: file for file in parse_manifest(data).files()}
        parts = {file.sha256 + end for file in files.values() for end in _PARTS}
        with translated(stage, _HINT):
            stage.mkdir(parents=True, exist_ok=True)
            for path in list(stage.iterdir()):
                file = files.get(path.name)
                if path.name not in parts and not (file and bundle.is_valid(path, file)):
                    path.unlink()  # of a superseded order
            if proof:
                write_durable(stage / _PROOF, proof)
            write_durable(stage / bundle.MANIFEST, data)

    def put_proof(self, model: str, slot: str, proof: bytes) -> None:
        """Replace the proof of a slot: another role has signed the same release."""
        path = self.path(model, slot) / _PROOF
        with translated(path, _HINT):
            write_durable(path, proof)

    def proof(self, model: str, slot: str) -> bytes:
        """The proof beside a slot's files; b"" where there is none that can be read."""
        path = self.path(model, slot) / _PROOF
        with contextlib.suppress(OSError):
            return path.read_bytes() if path.stat().st_size <= PROOF_LIMIT else b""
        return b""

    def proven(self, model: str, slot: str, sha256: str, length: int) -> Manifest:
        """The manifest of a slot, held against its signed hash and length; BundleError."""
        path = self.path(model, slot) / bundle.MANIFEST
        bundle.verify_file(path, File(name=bundle.MANIFEST, size=length, sha256=sha256))
        return bundle.read_manifest(path.parent)

    def staged(self, model: str, sha256: str) -> Manifest:
        """The stage's manifest; BundleError unless its hash is `sha256`."""
        stage = self.path(model, "stage")
        path = stage / bundle.MANIFEST
        if not path.is_file() or bundle.sha256_of(path) != sha256:
            raise BundleError(f"{path} is not the manifest that was ordered")
        return bundle.read_manifest(stage)

    def reuse(self, model: str, file: File) -> bool:
        """Whether the stage has `file`, verified; it is copied from a slot that has it."""
        target = self.path(model, "stage") / file.name
        if bundle.is_valid(target, file):
            return True
        source = self.held(model).get(file.sha256)
        if source is None:
            return False
        with translated(target, _HINT):
            shutil.copyfile(source, target)
        return bundle.is_valid(target, file)

    def verify_stage(self, model: str, sha256: str, profile: str) -> None:
        """BundleError unless the stage is the ordered release; a damaged file is deleted.

        ProvenanceError where its files are what was signed, and its provenance contradicts them.
        """
        stage = self.path(model, "stage")
        manifest = self.staged(model, sha256)
        for file in manifest.files_for(profile):
            try:
                bundle.verify_file(stage / file.name, file)
            except BundleError:
                (stage / file.name).unlink(missing_ok=True)
                raise
        bundle.verify_provenance(stage, manifest)
        self._verified[model] = _fingerprint(stage)

    def install(self, model: str, slot: str, sha256: str, profile: str) -> None:
        """Rename the stage to the slot, durably. Repeatable: a slot with the release is left as is.

        The stage was made durable by `keep`. It is verified here, unless this process has verified
        it and no file has changed since. `verify` checks the slot before it serves.
        """
        stage, target = self.path(model, "stage"), self.path(model, slot)
        if not stage.exists() and self._holds(target, sha256, profile):
            self._sync_parents(target)  # the process was killed between rename and sync
            return
        if not stage.is_dir() or self._verified.pop(model, None) != _fingerprint(stage):
            self.verify_stage(model, sha256, profile)
        names = {f.name for f in self.staged(model, sha256).files_for(profile)}
        names |= {bundle.MANIFEST, _PROOF}
        with translated(target, _HINT):
            for file in [path for path in stage.iterdir() if path.name not in names]:
                file.unlink()  # of a superseded order
            if target.exists():
                old = target.with_name(f"{slot}.old")
                shutil.rmtree(old, ignore_errors=True)
                target.rename(old)
                shutil.rmtree(old, ignore_errors=True)
            stage.rename(target)
            sync(target.parent)

    def verify(self, slot: Slot, profile: str) -> None:
        """BundleError unless the manifest has the hash that was signed, by the slot's record, and
        every file the hash in the manifest."""
        folder = self.path(slot.model, slot.slot)
        if _hash(folder / bundle.MANIFEST) != slot.sha256:
            raise BundleError(f"{folder / bundle.MANIFEST} is not the manifest that was signed")
        manifest = bundle.verify(folder, profile)
        variant = manifest.variant(slot.variant)
        if manifest.release != slot.release or variant.file.sha256 != slot.model_sha256:
            raise BundleError(f"slot {slot.slot} of {slot.model} does not hold {slot.release}")

    def point(self, model: str, slot: Slot | None) -> None:
        """Switch the link atomically and write slot.json into the slot; None: remove the link."""
        link = self._folder / check_model(model) / _LINK
        with translated(link, _HINT):
            if slot is None:
                link.unlink(missing_ok=True)
            else:
                write_durable(link.with_name(slot.slot) / _SLOT, msgspec.json.encode(slot))
                if not link.is_symlink() or str(link.readlink()) != slot.slot:
                    new = link.with_name(f"{_LINK}.new")
                    new.unlink(missing_ok=True)
                    new.symlink_to(slot.slot)
                    new.replace(link)
            sync(link.parent)

    def found(self) -> list[Slot]:
        """The slots that the links point at, by their own records, which nobody has signed."""
        found = [(model, self.record(model, self.pointed(model))) for model in self._models()]
        return [slot for _, slot in found if slot is not None]

    def record(self, model: str, slot: str) -> Slot | None:
        """The record in a slot that serves or served; None where there is none of this slot."""
        if slot not in ("a", "b"):
            return None
        try:
            found = msgspec.json.decode((self.path(model, slot) / _SLOT).read_bytes(), type=Slot)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None
        return found if (found.model, found.slot) == (model, slot) else None

    def pointed(self, model: str) -> str:
        """The slot that the link points at, "" for none."""
        link = self._folder / check_model(model) / _LINK
        return str(link.readlink()) if link.is_symlink() else ""

    def remove(self, model: str) -> None:
        """Delete a model's link, then its slots and stage, durably; repeatable.

        Each slot is renamed before it is deleted, so that a slot is never incomplete.
        """
        folder = self._folder / check_model(model)
        if not folder.is_dir():
            return
        self.point(model, None)
        with translated(folder, _HINT):
            for slot in ("a", "b"):
                old = folder / f"{slot}.old"
                if (folder / slot).exists():
                    shutil.rmtree(old, ignore_errors=True)
                    (folder / slot).rename(old)
                if old.exists():
                    shutil.rmtree(old)
            self.clean(model)
            with contextlib.suppress(OSError):  # something of another program is in it
                folder.rmdir()
            sync(folder if folder.is_dir() else self._folder)

    def clean(self, model: str) -> None:
        """Delete the stage and the leftovers of an interrupted install or link switch."""
        folder = self._folder / check_model(model)
        for name in ("stage", "a.old", "b.old"):
            shutil.rmtree(folder / name, ignore_errors=True)
        for path in (*folder.glob("*.new"), *folder.glob("[ab]/*.new")):
            with contextlib.suppress(OSError):
                path.unlink()

    def sweep(self, busy: Collection[str]) -> None:
        """Clean every model folder except those `busy` with an update."""
        for model in self._models():
            if model not in busy:
                self.clean(model)

    def missing(self, model: str, files: Sequence[File]) -> int:
        """Bytes of `files` that are missing in the stage: disk space that a download needs."""
        stage = self.path(model, "stage")
        lacking = [file for file in files if not bundle.is_valid(stage / file.name, file)]
        have = (_size(stage / f"{file.sha256}.part") for file in lacking)
        return sum(max(0, file.size - got) for file, got in zip(lacking, have, strict=True))

    def size(self, model: str, slot: str) -> int:
        """Bytes of a slot: disk space that `drop` frees."""
        return sum(_size(path) for path in self.path(model, slot).glob("*"))

    def drop(self, model: str, slot: str) -> None:
        """Delete the slot that the update will overwrite."""
        shutil.rmtree(self.path(model, slot), ignore_errors=True)

    def held(self, model: str) -> dict[str, Path]:
        """sha256 -> path of every file in either slot, as their manifests say; not verified."""
        found = {}
        for slot in ("a", "b"):
            folder = self.path(model, slot)
            with contextlib.suppress(BundleError):
                for file in bundle.read_manifest(folder).files():
                    if (folder / file.name).is_file():
                        found[file.sha256] = folder / file.name
        return found

    def present(self) -> set[str]:
        """sha256 of every file in any slot of any model."""
        return {sha256 for model in self._models() for sha256 in self.held(model)}

    def free_bytes(self) -> int:
        with translated(self._folder, _HINT):
            self._folder.mkdir(parents=True, exist_ok=True)
            return shutil.disk_usage(self._folder).free

    def keep(self, model: str) -> None:
        """Sync the stage: a finished download survives a power cut."""
        stage = self.path(model, "stage")
        with translated(stage, _HINT):
            for file in stage.iterdir():
                sync(file)
            sync(stage)
        self._sync_parents(stage)

    def _models(self) -> list[str]:
        """Names of the models that have a folder."""
        return sorted(path.name for path in self._folder.glob("*/") if is_model(path.name))

    def _sync_parents(self, slot: Path) -> None:
        """Sync the folders above the slot, so that its name survives a power cut."""
        with translated(slot, _HINT):
            for folder in (slot.parent, self._folder, self._folder.parent):
                sync(folder)

    def _holds(self, folder: Path, sha256: str, profile: str) -> bool:
        try:
            bundle.verify(folder, profile)
        except BundleError:
            return False
        return bundle.sha256_of(folder / bundle.MANIFEST) == sha256


def _hash(path: Path) -> str:
    try:
        return bundle.sha256_of(path)
    except OSError:
        return ""


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _fingerprint(folder: Path) -> list[object]:
    """A fingerprint that changes when any file in `folder` is written or replaced."""
    with translated(folder, _HINT):
        seen = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    return [(name, it.st_ino, it.st_size, it.st_mtime_ns, it.st_ctime_ns) for name, it in seen]
