"""TUF repositories, valid and forged, that tests sign with python-tuf itself."""

import datetime
import hashlib
from collections.abc import Callable, Sequence

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from shoal import epochs
from shoal.errors import AbsentError
from shoal.orders import Order
from shoal.trust import target_path

NOW = 1_800_000_000.0
DAY = 86_400.0


def expiry(now: float, days: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(now + days * DAY, datetime.UTC).replace(microsecond=0)


class Repository:
    """An image repository and a director, in memory. `files` is what a server would hold.

    keys may be replaced, versions set and metadata days shortened to play an attacker.
    """

    def __init__(self, now: float = NOW) -> None:
        self.now = now
        roles = ("root", "targets", "snapshot", "timestamp", "director", "intruder")
        self.keys = {role: CryptoSigner.generate_ed25519() for role in roles}
        self.files: dict[str, bytes] = {}
        self.version = {"targets": 0, "snapshot": 0, "timestamp": 0}
        self.days = {"root": 365.0, "targets": 180.0, "snapshot": 7.0, "timestamp": 1.0}
        self.releases: dict[str, dict[str, TargetFile]] = {}
        self.epochs: dict[str, epochs.SecurityEpoch] = {}
        self.root = self._root(1, ("timestamp", "snapshot", "targets"), signers=("root",))
        self.director_root = self._director_root()
        self.files["1.root.json"] = self.root
        self.publish()

    def add(self, role: str, model: str, version: int, manifest: bytes) -> Order:
        """Sign a release; the order that would name it."""
        path = target_path(role, model, version)
        name = f"{role}-{model}"
        self.keys.setdefault(name, CryptoSigner.generate_ed25519())
        self.releases.setdefault(name, {})[path] = TargetFile.from_data(path, manifest, ["sha256"])
        self.publish()
        sha256 = hashlib.sha256(manifest).hexdigest()
        return Order(
            model=model,
            version=version,
            path=path,
            length=len(manifest),
            sha256=sha256,
            rollout="r-1",
            attempt=1,
        )

    def revoke(self, model: str, version: int) -> None:
        """Revoke a release in the model's next security epoch, as the controller does."""
        for name in (f"release-{model}", f"candidate-{model}"):
            self.releases.get(name, {}).pop(target_path(name.partition("-")[0], model, version), 0)
            self.epochs[name] = self.epochs.get(name, epochs.SecurityEpoch()).after(version)
        self.publish()

    def publish(self, signer: Callable[[str], str] = lambda role: role) -> None:
        """Write every role's metadata as a new version."""
        targets = Targets(expires=self._expiry("targets"))
        targets.delegations = Delegations({}, {})
        meta = {}
        for name, listed in self.releases.items():
            role, _, model = name.partition("-")
            delegated = DelegatedRole(name, [], 1, True, paths=[f"{role}/{model}/*/manifest.json"])
            targets.delegations.roles[name] = delegated  # type: ignore[index]
            targets.add_key(self.keys[name].public_key, name)
            child = Targets(version=self._next(name), expires=self._expiry("targets"))
            child.targets = dict(listed)
            if name in self.epochs:
                epochs.write(child.unrecognized_fields, self.epochs[name])
            meta[f"{name}.json"] = self._write(name, child, signer(name))
        targets.version = self._next("targets")
        meta["targets.json"] = self._write("targets", targets, signer("targets"))
        snapshot = Snapshot(version=self._next("snapshot"), expires=self._expiry("snapshot"))
        snapshot.meta = meta
        self.stamp(self._write("snapshot", snapshot, signer("snapshot")), signer("timestamp"))

    def stamp(self, snapshot: MetaFile, signer: str = "timestamp") -> None:
        timestamp = Timestamp(
            version=self._next("timestamp"),
            expires=self._expiry("timestamp"),
            snapshot_meta=snapshot,
        )
        self.files["timestamp.json"] = self.signed(timestamp, signer)

    def orders(
        self,
        device: str,
        version: int,
        orders: Sequence[Order],
        *,
        signer: str = "director",
        days: float = 7.0,
        named: dict[str, int] | None = None,
    ) -> bytes:
        """An assignment, as the director signs it. named: model -> security epoch."""
        targets = Targets(version=version, expires=expiry(self.now, days))
        custom = {"device": device, "signed_s": int(self.now)}
        targets.unrecognized_fields["shoal"] = custom | ({"epochs": named} if named else {})
        for order in orders:
            fields = {k: getattr(order, k) for k in order.__struct_fields__}
            # Canonical JSON, which is what is signed, knows no fractions.
            fields |= {k: int(fields[k]) for k in ("not_before_s", "deadline_s")}
            length, sha256 = fields.pop("length"), fields.pop("sha256")
            path = fields.pop("path")
            extra = {"custom": fields}
            targets.targets[path] = TargetFile(length, {"sha256": sha256}, path, extra)
        return self.signed(targets, signer)

    def fetch(self, name: str) -> bytes:
        """Response to a device's HTTP client."""
        try:
            return self.files[name]
        except KeyError:
            raise AbsentError("metadata", name) from None

    def rotate(self, role: str, *, signers: Sequence[str] = ("root",)) -> None:
        """A new key for `role`, and a root that lists it."""
        self.keys[role] = CryptoSigner.generate_ed25519()
        roles = ("timestamp", "snapshot", "targets")
        version = 1 + sum(name.endswith(".root.json") for name in self.files)
        self.files[f"{version}.root.json"] = self._root(version, roles, signers=signers)

    def rotate_director(self) -> None:
        """A new key for the director, and a root that lists it."""
        self.keys["director"] = CryptoSigner.generate_ed25519()
        version = Metadata[Root].from_bytes(self.director_root).signed.version + 1
        self.director_root = self._director_root(version)

    def signed(self, body: Targets | Snapshot | Timestamp | Root, *signers: str) -> bytes:
        metadata = Metadata(body)
        for signer in signers:
            metadata.sign(self.keys[signer], append=True)
        return metadata.to_bytes()

    def _root(self, version: int, roles: Sequence[str], signers: Sequence[str]) -> bytes:
        root = Root(
            version=version, expires=expiry(self.now, self.days["root"]), consistent_snapshot=True
        )
        for role in ("root", *roles):
            root.add_key(self.keys[role].public_key, role)
        return self.signed(root, *signers)

    def _director_root(self, version: int = 1) -> bytes:
        root = Root(version=version, expires=expiry(self.now, 365))
        root.add_key(self.keys["root"].public_key, "root")
        root.add_key(self.keys["director"].public_key, "targets")
        return self.signed(root, "root")

    def _next(self, role: str) -> int:
        self.version[role] = self.version.get(role, 0) + 1
        return self.version[role]

    def _expiry(self, role: str) -> datetime.datetime:
        return expiry(self.now, self.days[role])

    def _write(self, name: str, body: Targets | Snapshot, signer: str) -> MetaFile:
        data = self.signed(body, signer)
        self.files[f"{body.version}.{name}.json"] = data
        return MetaFile(body.version, len(data), {"sha256": hashlib.sha256(data).hexdigest()})
