"""Verification of releases and assignments on the device: the client side of TUF and Uptane.

Two repositories. The *image* repository (python-tuf) lists all releases: a target
``release/<model>/<version>/manifest.json`` is delegated to role ``release-<model>`` only, and
``candidate/<model>/...`` to ``candidate-<model>`` only, by the offline targets key; so the path
determines the role. The *director* signs one TUF Metadata[Targets] per device: the assignment. A
device accepts an order only when both agree (DESIGN section 5, after Uptane).

Sources: TUF specification 1.0.33; Uptane Standard 2.1, section 5.4.
"""

import contextlib
import datetime
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    ExpiredMetadataError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Root, TargetFile, Targets
from tuf.api.serialization import DeserializationError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from shoal import epochs
from shoal import proof as proofs
from shoal.errors import (
    AbsentError,
    ExpiredError,
    LinkError,
    MisdirectedError,
    RevokedError,
    StaleError,
    TrustError,
    UntrustedError,
)
from shoal.orders import MOST, REMOVE, Order, Orders, check_order
from shoal.signers import Seen, Signers

RELEASE, CANDIDATE = "release", "candidate"
#: Roles that a ring accepts releases of.
RINGS = {"stable": frozenset({RELEASE}), "canary": frozenset({RELEASE, CANDIDATE})}
_LIMIT = 262_144
#: Roles whose versions are floors.
_FRESHNESS = ("timestamp", "snapshot")


def removal(model: str, *, rollout: str, attempt: int) -> Order:
    """The order to remove `model`; its length and hash are those of no bytes."""
    return Order(
        model=model,
        version=0,
        path=target_path(REMOVE, model, 0),
        length=0,
        sha256=hashlib.sha256().hexdigest(),
        rollout=rollout,
        attempt=attempt,
    )


def target_path(role: str, model: str, version: int) -> str:
    """Path of a release's manifest in the image repository."""
    return f"{role}/{model}/{version}/manifest.json"


def director_version(director_root: bytes) -> int:
    """Version of root metadata; TrustError when it cannot be read."""
    return _root(director_root).signed.version


def director_expiry_s(director_root: bytes) -> float:
    """Unix seconds at which root metadata expires; TrustError when it cannot be read.

    It is signed by offline keys and bounds the signing times of the director's online key.
    """
    return _root(director_root).signed.expires.replace(tzinfo=datetime.UTC).timestamp()


def director_signers(director_root: bytes) -> Signers:
    """Who may sign assignments; TrustError when root metadata cannot be read."""
    return _signers(_root(director_root).signed, Targets.type)


def _signers(root: Root, role: str) -> Signers:
    return Signers(root.version, sorted(root.roles[role].keyids))


def follow_roots(trusted: bytes, newer: Sequence[bytes]) -> bytes:
    """Verify the chain of root metadata from `trusted` to the last of `newer` (TUF 1.0.33, 5.3).

    Each version must be signed by a threshold of its predecessor's keys, and of its own. Raises
    UntrustedError or TrustError otherwise; the caller then keeps `trusted`.
    """
    for data in newer:
        before, after = _root(trusted), _root(data)
        if after.signed.version != before.signed.version + 1:
            raise TrustError(
                f"director's root {after.signed.version} does not follow {before.signed.version}"
            )
        try:
            before.verify_delegate(Root.type, after)
            after.verify_delegate(Root.type, after)
        except UnsignedMetadataError as error:
            raise UntrustedError(f"director's root {after.signed.version}: {error}") from error
        trusted = data
    return trusted


def _root(data: bytes) -> Metadata[Root]:
    if len(data) > _LIMIT:
        raise TrustError(f"root metadata of {len(data)} bytes, {_LIMIT} allowed")
    try:
        root = Metadata[Root].from_bytes(data)
    except (DeserializationError, ValueError, KeyError, TypeError) as error:
        raise TrustError(f"root metadata cannot be read: {error}") from error
    if root.signed.type != Root.type:
        raise TrustError(f"root metadata is of type {root.signed.type!r}")
    return root


def verify_orders(
    signed: bytes, *, director_root: bytes, device: str, floor: int, now_s: float
) -> Orders:
    """Verify and decode an assignment; raise a TrustError otherwise.

    director_root  TUF root metadata whose targets role holds the director's keys
    floor          newest version seen before; older ones raise StaleError, and the same one is
                   allowed: the message is retained and delivered again
    now_s          Unix seconds; expired orders raise StaleError
    """
    if len(signed) > _LIMIT:
        raise TrustError(f"assignment of {len(signed)} bytes, {_LIMIT} allowed")
    try:
        root = Metadata[Root].from_bytes(director_root).signed
        metadata = Metadata[Targets].from_bytes(signed)
        root.verify_delegate(Targets.type, metadata.signed_bytes, metadata.signatures)
    except UnsignedMetadataError as error:
        raise UntrustedError(f"assignment is not signed by the director: {error}") from error
    except (DeserializationError, ValueError, KeyError, TypeError) as error:
        raise TrustError(f"assignment cannot be read: {error}") from error
    targets = metadata.signed
    if targets.version > MOST:
        raise TrustError(f"assignment of version {targets.version:.3g}, up to 2**53 is possible")
    if targets.version < floor:
        raise StaleError(f"assignment {targets.version} is older than {floor}, already seen")
    expires_s = targets.expires.replace(tzinfo=datetime.UTC).timestamp()
    if expires_s <= now_s:
        raise ExpiredError("assignment has expired", "is the controller running?")
    custom = targets.unrecognized_fields.get("shoal", {})
    if not isinstance(custom, dict) or custom.get("device") != device:
        raise MisdirectedError(f"assignment is for {custom!r:.80}, this is {device!r}")
    orders, signed_s = _read_orders(targets, custom)
    return Orders(
        device=device,
        version=targets.version,
        signed_s=min(signed_s, root.expires.replace(tzinfo=datetime.UTC).timestamp()),
        expires_s=expires_s,
        orders=orders,
        epochs=epochs.read_hints(custom),
    )


def _read_orders(targets: Targets, custom: dict[str, Any]) -> tuple[list[Order], float]:
    """The orders of verified targets, and their signing time; TrustError for malformed ones."""
    try:
        orders = [
            msgspec.convert(
                {
                    **target.unrecognized_fields.get("custom", {}),
                    "path": path,
                    "length": target.length,
                    "sha256": target.hashes["sha256"],
                },
                Order,
            )
            for path, target in targets.targets.items()
        ]
        signed_s = float(custom.get("signed_s", 0.0))
    except (msgspec.ValidationError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise TrustError(f"assignment cannot be read: {error}") from error
    if not math.isfinite(signed_s):
        raise TrustError(f"assignment has an invalid signing time: {signed_s} s")
    for order in orders:
        check_order(order)
        if order.path != target_path(order.role, order.model, order.version):
            raise MisdirectedError(f"{order.path!r} is not the path of {order.release}")
    if len({order.model for order in orders}) < len(orders):
        raise TrustError("assignment orders two releases of one model")
    return orders, signed_s


def check_ring(order: Order, ring: str) -> None:
    """Raise MisdirectedError unless `ring` accepts releases of the order's role."""
    if order.role not in RINGS.get(ring, frozenset()):
        raise MisdirectedError(
            f"{order.release} is signed as {order.role}, ring {ring!r} does not accept that",
            "sign it as a release (shoal release publish), or enrol the device with --ring canary",
        )


class ImageRepository:
    """Client of the image repository, which lists all releases.

    >>> repository = ImageRepository(cache, root, fetch)     # doctest: +SKIP
    >>> repository.refresh(now_s); repository.check(order)   # doctest: +SKIP

    cache   folder for TUF metadata only; it can be deleted safely, at the cost of a download
    root    trusted root.json, from enrolment
    fetch   metadata file name -> its bytes; raises AbsentError for a missing file and LinkError
            when the server is unreachable
    lock    held while files of the cache are used: several threads need a real one
    """

    def __init__(
        self,
        cache: Path,
        root: bytes,
        fetch: Callable[[str], bytes],
        lock: contextlib.AbstractContextManager[object] | None = None,
    ) -> None:
        self._cache, self._root, self._fetcher = cache, root, _Fetcher(fetch)
        self._updater: Updater | None = None
        self._lock = lock or contextlib.nullcontext()

    def refresh(self, now_s: float, seen: Seen = Seen()) -> Seen:  # noqa: B008 (immutable)
        """Fetch and verify the newest metadata; return its versions, to be kept as floors.

        seen   before, stored outside of the cache: deleting the cache must not allow a rollback
               attack. Versions of keys that root has replaced since are no floors.

        Raises LinkError if unreachable, StaleError if expired or rolled back, UntrustedError if
        badly signed. Inference goes on: only new installations are blocked.
        """
        with self._lock:
            return self._refresh(now_s, seen)

    def _refresh(self, now_s: float, seen: Seen) -> Seen:
        self._cache.mkdir(parents=True, exist_ok=True)
        updater = self._make_updater(now_s)
        try:
            self._fetch_newest(updater)
        except StaleError:
            if not self._is_rotated(updater, seen):
                raise
            for role in _FRESHNESS:
                (self._cache / f"{role}.json").unlink(missing_ok=True)
            updater = self._make_updater(now_s)
            self._fetch_newest(updater)
        trusted = updater._trusted_set
        versions = {role: trusted[role].version for role in _FRESHNESS}
        floors = {} if self._is_rotated(updater, seen) else seen.versions
        for role, version in versions.items():
            if version < floors.get(role, 0):
                raise StaleError(
                    f"release metadata: {role} {version} is older than one seen before"
                )
        self._updater = updater
        return Seen(versions, {role: _signers(trusted.root, role) for role in _FRESHNESS})

    def _is_rotated(self, updater: Updater, seen: Seen) -> bool:
        """Whether root has replaced a key of timestamp or snapshot since versions were seen.

        Where an older agent did not write down of which keys they were: of those at enrolment.
        """
        first, now = _root(self._root).signed, updater._trusted_set.root
        return any(
            seen.signers.get(role, _signers(first, role)).replaced_by(_signers(now, role))
            for role in _FRESHNESS
            if role in seen.versions
        )

    def _make_updater(self, now_s: float) -> Updater:
        try:
            updater = Updater(
                str(self._cache),
                "metadata/",
                fetcher=self._fetcher,
                config=UpdaterConfig(prefix_targets_with_hash=False),
                bootstrap=self._root,
            )
            when = datetime.datetime.fromtimestamp(now_s, datetime.UTC)
            updater._trusted_set.reference_time = when  # the device's clock: max(RTC, floor)
        except RepositoryError as error:
            raise UntrustedError(f"release metadata: {error}") from error
        return updater

    def _fetch_newest(self, updater: Updater) -> None:
        try:
            updater.refresh()
        except DownloadError as error:
            raise LinkError(f"release metadata: {error}") from error
        except ExpiredMetadataError as error:
            raise ExpiredError(
                f"release metadata: {error}", "is the controller running?"
            ) from error
        except RepositoryError as error:
            kind = StaleError if "version" in str(error) else UntrustedError
            raise kind(f"release metadata: {error}") from error

    def check(self, order: Order) -> int:
        """Security epoch of the metadata that lists the order's manifest.

        Raises UntrustedError unless the image repository lists it exactly, RevokedError where it
        says that the release was revoked.
        """
        target = self._target(order.path)
        epoch = self._epoch_of(f"{order.role}-{order.model}")
        if order.version in epoch.revoked:
            raise RevokedError(f"{order.release} was revoked, in security epoch {epoch.epoch}")
        if target is None:
            raise UntrustedError(f"{order.path} is not in the image repository")
        if (target.length, target.hashes.get("sha256")) != (order.length, order.sha256):
            raise UntrustedError(f"{order.path}: director and image repository disagree")
        return epoch.epoch

    def epoch(self, model: str) -> epochs.SecurityEpoch:
        """The model's epoch, which its releases' key has signed; the automation key has no say.

        The errors of `check`, and TrustError for an impossible one.
        """
        self._target(target_path(RELEASE, model, 0))
        return self._epoch_of(f"{RELEASE}-{model}")

    def _target(self, path: str) -> TargetFile | None:
        """What is listed under `path`; then the metadata of its role is verified."""
        if self._updater is None:
            raise TrustError("release metadata was not refreshed")
        try:
            with self._lock:
                return self._updater.get_targetinfo(path)
        except DownloadError as error:
            raise LinkError(f"release metadata: {error}") from error
        except ExpiredMetadataError as error:
            raise ExpiredError(f"release metadata: {error}") from error
        except RepositoryError as error:
            raise UntrustedError(f"release metadata: {error}") from error

    def _epoch_of(self, role: str) -> epochs.SecurityEpoch:
        assert self._updater is not None
        trusted = self._updater._trusted_set
        known = trusted[role].unrecognized_fields if role in trusted else {}
        return epochs.read(known)

    def proof(self, order: Order) -> bytes:
        """The metadata that lists the order's manifest, to be kept beside it (shoal.proof).

        b"" where the cache has lost it: the release is fetched again after a lost journal.
        """
        name = f"{order.role}-{order.model}.json"
        with self._lock, contextlib.suppress(OSError, UntrustedError):
            data = proofs.encode(
                proofs.Proof(
                    path=order.path,
                    targets=(self._cache / "targets.json").read_bytes(),
                    role=(self._cache / name).read_bytes(),
                )
            )
            listed = proofs.verify(data, self._newest_root())
            return data if listed.sha256 == order.sha256 else b""
        return b""

    def prove(self, proof: bytes) -> proofs.Listed:
        """The manifest that a proof lists, by the newest root on the disk; UntrustedError."""
        with self._lock:
            return proofs.verify(proof, self._newest_root())

    def _newest_root(self) -> Root:
        """The root of enrolment, or one on the disk that a chain of signatures leads to."""
        trusted = _root(self._root)
        with contextlib.suppress(OSError, TrustError):
            while True:
                path = self._cache / "root_history" / f"{trusted.signed.version + 1}.root.json"
                trusted = _root(follow_roots(trusted.to_bytes(), [path.read_bytes()]))
        return trusted.signed

    @property
    def targets(self) -> Targets:
        """The verified top-level targets, with all delegations. TrustError before a refresh."""
        if self._updater is None:
            raise TrustError("release metadata was not refreshed")
        return self._updater._trusted_set.targets


class _Fetcher(FetcherInterface):
    def __init__(self, fetch: Callable[[str], bytes]) -> None:
        self._get = fetch

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            yield self._get(url.rpartition("/")[2])
        except AbsentError as error:
            raise DownloadHTTPError(str(error), 404) from error
        except LinkError as error:
            raise DownloadError(str(error)) from error
