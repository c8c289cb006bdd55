"""TUF repositories of the controller: roles, keys, and signing of metadata.

Two roots over the same 2-of-3 root keys. The *image* repository lists the releases: targets
delegates ``release-<model>`` and ``candidate-<model>``, each its own paths and no other, and
``rounds``, whose paths no assignment may name. The *director* signs one assignment per device.
shoal.trust verifies it on the device; DESIGN section 5 has the table of roles.

timestamp.json is written last and decides what is current: after a power cut between two writes
the old repository is still complete, and the unfinished version is written again.

Sources: TUF specification 1.0.33, section 5.1 and 6.1 (writing consistent snapshots).
"""

import datetime
import fcntl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, TypeVar

import msgspec
from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]
from tuf.api.exceptions import RepositoryError
from tuf.api.exceptions import StorageError as TufStorageError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError

from shoal import epochs
from shoal import proof as proofs
from shoal.controller.host.io.files import write_durable
from shoal.controller.host.io.keys import KeyFolder
from shoal.errors import SettingError, StorageError
from shoal.federated import config as federated
from shoal.orders import Order
from shoal.trust import CANDIDATE, RELEASE, target_path

ROOTS = ("root-1", "root-2", "root-3")
ROOT_THRESHOLD = 2
#: Days until a role's metadata expires: DESIGN section 5.
DAYS = {
    "root": 365, "targets": 180, RELEASE: 90, CANDIDATE: 14, "snapshot": 7, "timestamp": 1,
    "director": 7,
}  # fmt: skip
#: Old versions of a role's metadata kept for devices in the middle of a refresh.
KEPT_VERSIONS = 8
NO_EPOCHS: Mapping[str, int] = MappingProxyType({})
_ORDER_OWN = ("path", "length", "sha256")
_S = TypeVar("_S", Root, Snapshot, Targets, Timestamp)


class Signer:
    """Signs with the keys of the controller in `folder`; safe across threads and processes.

    audit_head   id and hash of the audit log's newest entry, which every timestamp signs

    Every method raises SettingError if a key is missing, and StorageError if a write fails.
    """

    def __init__(
        self,
        folder: Path,
        clock: Callable[[], float] = time.time,
        audit_head: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self.keys = KeyFolder(folder / "keys")
        self.metadata_folder = folder / "repository" / "metadata"
        self._lock = folder / "repository" / ".lock"
        self._director = folder / "repository" / "director"
        self._clock = clock
        self._audit_head = audit_head

    @classmethod
    def create(
        cls,
        folder: Path,
        clock: Callable[[], float] = time.time,
        audit_head: Callable[[], Mapping[str, Any]] = dict,
    ) -> Self:
        """Make every key and the first metadata; existing ones are kept."""
        signer = cls(folder, clock, audit_head)
        for made in (signer.metadata_folder, signer._director):
            made.mkdir(parents=True, exist_ok=True)
        with signer._guarded():
            if not (signer.metadata_folder / "timestamp.json").exists():
                signer._begin()
        return signer

    @classmethod
    def open(
        cls,
        folder: Path,
        clock: Callable[[], float] = time.time,
        audit_head: Callable[[], Mapping[str, Any]] = dict,
    ) -> Self:
        """The signer of an existing controller; SettingError if there is none."""
        signer = cls(folder, clock, audit_head)
        if not (signer.metadata_folder / "timestamp.json").exists():
            raise SettingError(f"no release metadata in {folder}", "run: shoal-controller init")
        return signer

    @property
    def root(self) -> bytes:
        """Newest root.json of the image repository."""
        return _newest(self.metadata_folder, "root").read_bytes()

    @property
    def director_root(self) -> bytes:
        """Newest root.json of the director."""
        return _newest(self._director, "root").read_bytes()

    @property
    def roots(self) -> dict[int, bytes]:
        """Version -> root metadata of the image repository, from the first on."""
        folder = self.metadata_folder
        return {n: (folder / f"{n}.root.json").read_bytes() for n in _versions(folder, "root")}

    def director_roots(self, after: int, limit: int = 32) -> list[bytes]:
        """Root metadata of the director that is newer than version `after`, oldest first."""
        found = []
        for version in range(after + 1, after + 1 + limit):
            path = self._director / f"{version}.root.json"
            if not path.exists():
                break
            found.append(path.read_bytes())
        return found

    @property
    def timestamp(self) -> bytes:
        """Current timestamp.json, also published over MQTT."""
        return (self.metadata_folder / "timestamp.json").read_bytes()

    def add_target(self, role: str, model: str, version: int, manifest: bytes) -> str:
        """List a release's manifest under `role`, "release" or "candidate"; its target path."""
        path = target_path(role, model, version)
        name = f"{role}-{model}"
        with self._guarded():
            self._delegate(model)
            targets = self._read(Targets, name)
            targets.signed.targets[path] = TargetFile.from_data(path, manifest, ["sha256"])
            self._publish({name: targets})
        return path

    def remove_target(self, model: str, version: int) -> None:
        """List a release's manifest under no role any more; a repeat changes nothing."""
        with self._guarded():
            meta = self._current_snapshot().signed.meta
            changed = {}
            for role in (RELEASE, CANDIDATE):
                name = f"{role}-{model}"
                if f"{name}.json" not in meta:
                    continue
                targets = self._read(Targets, name)
                if targets.signed.targets.pop(target_path(role, model, version), None):
                    changed[name] = targets
            if changed:
                self._publish(changed)

    def revoke_target(self, model: str, version: int) -> int:
        """Revoke a release in the model's next security epoch; that epoch. A repeat changes
        nothing."""
        with self._guarded():
            self._delegate(model)
            roles = {f"{role}-{model}": role for role in (RELEASE, CANDIDATE)}
            changed = {name: self._read(Targets, name) for name in roles}
            known = [epochs.read(one.signed.unrecognized_fields) for one in changed.values()]
            if all(version in one.revoked for one in known):
                return max(one.epoch for one in known)
            after = epochs.SecurityEpoch().after(version, known)
            for name, targets in changed.items():
                targets.signed.targets.pop(target_path(roles[name], model, version), None)
                epochs.write(targets.signed.unrecognized_fields, after)
            self._publish(changed)
            return after.epoch

    def proof(self, role: str, model: str, version: int) -> bytes:
        """The metadata that lists a release's manifest under `role`: shoal.proof."""
        with self._guarded():
            return proofs.encode(
                proofs.Proof(
                    path=target_path(role, model, version),
                    targets=self._read(Targets, "targets").to_bytes(),
                    role=self._read(Targets, f"{role}-{model}").to_bytes(),
                )
            )

    def key_id(self, role: str, model: str) -> str:
        """Id of the public key that signs `role` of `model`."""
        return self.keys.get(f"{role}-{model}").public_key.keyid

    def refresh_timestamps(self, now: float) -> list[str]:
        """Renew metadata past half of its lifetime if its key is available; the role names."""
        with self._guarded():
            snapshot = self._current_snapshot()
            names = [name.removesuffix(".json") for name in snapshot.signed.meta]
            stale = {
                name: metadata
                for name in names
                if self._is_due(name, (metadata := self._read(Targets, name)).signed, now)
                and self.keys.find(name)
            }
            timestamp = self._load(Timestamp, "timestamp.json")
            renewed = list(stale)
            if stale or self._is_due("snapshot", snapshot.signed, now):
                self._publish(stale, now)
                renewed += ["snapshot", "timestamp"]
            elif self._is_due("timestamp", timestamp.signed, now):
                self._stamp(snapshot.signed.version, now)
                renewed.append("timestamp")
            return renewed + self._renew_roots(now)

    def renew_timestamp(self, now: float) -> bytes:
        """Sign a new timestamp.json, with the head of the audit log as it is now."""
        with self._guarded():
            self._stamp(self._current_snapshot().signed.version, now)
        return self.timestamp

    def expiries(self) -> dict[str, float]:
        """When signed metadata expires, Unix seconds: the roots, timestamp, snapshot, targets, and
        the first of the models' roles."""
        snapshot = self._current_snapshot().signed
        names = [name.removesuffix(".json") for name in snapshot.meta]
        roles = {name: self._read(Targets, name).signed.expires.timestamp() for name in names}
        found = {"targets": roles.pop("targets")} if "targets" in roles else {}
        if roles:
            found["releases"] = min(roles.values())
        for name, root in (("root", self.root), ("director-root", self.director_root)):
            found[name] = Metadata[Root].from_bytes(root).signed.expires.timestamp()
        timestamp = self._load(Timestamp, "timestamp.json").signed
        found["timestamp"] = timestamp.expires.timestamp()
        return found | {"snapshot": snapshot.expires.timestamp()}

    def folder_metadata(self, models: Sequence[str], now: float) -> dict[str, bytes]:
        """File name -> all metadata that an offline device needs for these models.

        Snapshot and timestamp are renewed, and this timestamp is valid as long as the snapshot, to
        allow for transport. The published one is valid for a day.
        """
        with self._guarded():
            self._publish({}, now)
            snapshot = self._current_snapshot()
            roles = {f"{role}-{model}" for model in models for role in (RELEASE, CANDIDATE)}
            meta = snapshot.signed.meta
            wanted = ["targets", *(r for r in sorted(roles) if f"{r}.json" in meta)]
            names = [f"{meta[f'{name}.json'].version}.{name}.json" for name in wanted]
            names += [f"{version}.root.json" for version in _versions(self.metadata_folder, "root")]
            names.append(f"{snapshot.signed.version}.snapshot.json")
            files = {name: (self.metadata_folder / name).read_bytes() for name in names}
            timestamp = self._load(Timestamp, "timestamp.json")
            timestamp.signed.expires = snapshot.signed.expires
            timestamp.sign(self.keys.get("timestamp"))
            return {"timestamp.json": timestamp.to_bytes(), **files}

    def sign_orders(
        self,
        device: str,
        version: int,
        orders: Sequence[Order],
        now: float,
        epochs: Mapping[str, int] = NO_EPOCHS,
    ) -> bytes:
        """The assignment of one device as shoal.trust.verify_orders reads it.

        version   strictly rising per device
        epochs    model -> security epoch, of models of which a release was revoked
        """
        custom = {"device": device, "signed_s": int(now), **({"epochs": epochs} if epochs else {})}
        targets = Targets(
            version=version,
            expires=_expiry("director", now),
            targets={order.path: _order_target(order) for order in orders},
            unrecognized_fields={"shoal": custom},
        )
        metadata = Metadata(targets)
        metadata.sign(self.keys.get("director"))
        return metadata.to_bytes()

    def sign_round(self, config: federated.Config, now: float) -> bytes:
        """A round's config as shoal.federated.config.verify_config reads it."""
        with self._guarded():
            self._delegate_rounds()
        metadata = Metadata(federated.targets_of(config, now))
        metadata.sign(self.keys.get(federated.ROLE))
        return metadata.to_bytes()

    # --- creating ---------------------------------------------------------------------------

    def _begin(self) -> None:
        online = {role: self.keys.make(role) for role in ("snapshot", "timestamp", "director")}
        targets = self.keys.make("targets")
        self._make_root(
            self.metadata_folder,
            {
                "targets": targets.public_key,
                "snapshot": online["snapshot"].public_key,
                "timestamp": online["timestamp"].public_key,
            },
        )
        director = online["director"].public_key
        online_roles = ("targets", "snapshot", "timestamp")
        self._make_root(self._director, dict.fromkeys(online_roles, director))
        self._publish({"targets": Metadata(Targets())})

    def _make_root(self, folder: Path, keys: dict[str, SSlibKey]) -> None:
        root = Root(consistent_snapshot=True)
        for name in ROOTS:
            root.add_key(self.keys.make(name).public_key, Root.type)
        root.roles[Root.type].threshold = ROOT_THRESHOLD
        for role, key in keys.items():
            root.add_key(key, role)
        self._write_root(folder, Metadata(root), self._clock())

    def _write_root(self, folder: Path, metadata: Metadata[Root], now: float) -> None:
        metadata.signed.expires = _expiry("root", now)
        metadata.signatures.clear()
        for name in ROOTS:
            signer = self.keys.find(name)
            if signer is not None:
                metadata.sign(signer, append=True)
        metadata.verify_delegate(Root.type, metadata)
        _write(folder / f"{metadata.signed.version}.root.json", metadata)

    def _renew_roots(self, now: float) -> list[str]:
        renewed = []
        available = sum(self.keys.find(name) is not None for name in ROOTS)
        for name, folder in (("root", self.metadata_folder), ("director-root", self._director)):
            metadata = Metadata[Root].from_file(str(_newest(folder, "root")))
            if available >= ROOT_THRESHOLD and self._is_due("root", metadata.signed, now):
                metadata.signed.version += 1
                self._write_root(folder, metadata, now)
                renewed.append(name)
        return renewed

    def _delegate(self, model: str) -> None:
        targets, roles = self._delegations()
        if f"{RELEASE}-{model}" in roles:
            return
        changed: dict[str, Metadata[Targets]] = {"targets": targets}
        for role in (RELEASE, CANDIDATE):
            name = f"{role}-{model}"
            paths = [f"{role}/{model}/*/manifest.json"]
            roles[name] = DelegatedRole(name, [], 1, terminating=True, paths=paths)
            targets.signed.add_key(self.keys.make(name).public_key, name)
            changed[name] = Metadata(Targets(version=1))
        self._publish(changed)

    def _delegate_rounds(self) -> None:
        """Delegate round configs; its metadata lists none: each config is signed by itself."""
        targets, roles = self._delegations()
        name = federated.ROLE
        if name not in roles:
            paths = [f"{name}/*/*/*"]
            roles[name] = DelegatedRole(name, [], 1, terminating=True, paths=paths)
            targets.signed.add_key(self.keys.make(name).public_key, name)
            self._publish({"targets": targets})

    def _delegations(self) -> tuple[Metadata[Targets], dict[str, DelegatedRole]]:
        """The top-level targets, and its mutable delegated roles."""
        targets = self._read(Targets, "targets")
        targets.signed.delegations = targets.signed.delegations or Delegations({}, {})
        roles = targets.signed.delegations.roles
        assert roles is not None  # we never write succinct roles
        return targets, roles

    # --- writing --------------------------------------------------------------------------

    def _publish(
        self,
        changed: dict[str, Metadata[Targets]],
        now: float | None = None,
    ) -> None:
        """Sign the changed roles under their next versions, then snapshot, then timestamp."""
        now = self._clock() if now is None else now
        snapshot = self._current_snapshot()
        meta = snapshot.signed.meta
        for name, targets in changed.items():
            known = meta.get(f"{name}.json")
            targets.signed.version = known.version + 1 if known else 1
            self._sign(name, targets, now)
            meta[f"{name}.json"] = MetaFile(targets.signed.version)
        snapshot.signed.version += 1
        self._sign("snapshot", snapshot, now)
        self._stamp(snapshot.signed.version, now)
        for name in ("snapshot", *changed):
            self._prune(name)

    def _stamp(self, snapshot_version: int, now: float) -> None:
        before = self._current_timestamp()
        version = before.signed.version + 1 if before else 1
        fields = {"shoal": {"audit": dict(head)}} if (head := self._audit_head()) else {}
        timestamp = Metadata(
            Timestamp(
                version=version,
                snapshot_meta=MetaFile(snapshot_version),
                unrecognized_fields=fields,
            )
        )
        timestamp.signed.expires = _expiry("timestamp", now)
        timestamp.sign(self.keys.get("timestamp"))
        _write(self.metadata_folder / "timestamp.json", timestamp)

    def _sign(self, name: str, metadata: Metadata[_S], now: float) -> None:
        metadata.signed.expires = _expiry(name, now)
        metadata.sign(self.keys.get(name))
        _write(self.metadata_folder / f"{metadata.signed.version}.{name}.json", metadata)

    def _prune(self, name: str) -> None:
        versions = _versions(self.metadata_folder, name)
        for version in versions[:-KEPT_VERSIONS]:
            (self.metadata_folder / f"{version}.{name}.json").unlink(missing_ok=True)

    # --- reading --------------------------------------------------------------------------

    def _current_timestamp(self) -> Metadata[Timestamp] | None:
        """None before the very first was written."""
        if not (self.metadata_folder / "timestamp.json").exists():
            return None
        return self._load(Timestamp, "timestamp.json")

    def _current_snapshot(self) -> Metadata[Snapshot]:
        timestamp = self._current_timestamp()
        if timestamp is None:
            nothing = Snapshot(meta={})
            nothing.version = 0
            return Metadata(nothing)
        return self._load(Snapshot, f"{timestamp.signed.snapshot_meta.version}.snapshot.json")

    def _read(self, kind: type[_S], name: str) -> Metadata[_S]:
        version = self._current_snapshot().signed.meta[f"{name}.json"].version
        return self._load(kind, f"{version}.{name}.json")

    def _load(self, kind: type[_S], file: str) -> Metadata[_S]:
        try:
            metadata = Metadata.from_file(str(self.metadata_folder / file))
        except (TufStorageError, DeserializationError) as error:
            raise StorageError(
                f"release metadata {file}: {error}", "restore repository/ from a backup"
            ) from error
        if not isinstance(metadata.signed, kind):
            raise StorageError(f"release metadata {file} is no {kind.type}")
        return metadata

    def _is_due(self, name: str, signed: Signed, now: float) -> bool:
        return signed.expires.timestamp() - now < _days(name) * 86_400 / 2

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """One writer at a time, across processes; OSError becomes StorageError."""
        try:
            with self._lock.open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise StorageError(f"release metadata: {error}", "free some disk space") from error
        except RepositoryError as error:
            raise StorageError(f"release metadata: {error}") from error


def _days(name: str) -> int:
    return DAYS.get(name) or DAYS[name.partition("-")[0]]


def _expiry(name: str, now: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(now, datetime.UTC) + datetime.timedelta(days=_days(name))


def _order_target(order: Order) -> TargetFile:
    """Whole seconds: TUF's canonical JSON knows no fractions."""
    custom = {k: v for k, v in msgspec.to_builtins(order).items() if k not in _ORDER_OWN}
    whole = {k: int(v) if isinstance(v, float) else v for k, v in custom.items()}
    return TargetFile(order.length, {"sha256": order.sha256}, order.path, {"custom": whole})


def _write(path: Path, metadata: Metadata[_S]) -> None:
    write_durable(path, metadata.to_bytes())


def _versions(folder: Path, name: str) -> list[int]:
    return sorted(
        int(path.name.partition(".")[0])
        for path in folder.glob(f"*.{name}.json")
        if path.name.partition(".")[0].isdecimal()
    )


def _newest(folder: Path, name: str) -> Path:
    return folder / f"{_versions(folder, name)[-1]}.{name}.json"
