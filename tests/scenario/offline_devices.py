"""A device without a network, a controller's keys, and the offline bundle between them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root

from devices import PROFILE, Cloud, Device
from repositories import NOW
from shoal import offline_bundle, sealed_message, wire
from shoal.agent.host.io.folder import CA, CERTIFICATE, DIRECTOR, KEY, ROOT
from shoal.agent.identity.io.enrol import key_pem, make_csr
from shoal.agent.offline.io.cache import CachedDownloads, OfflineCache
from shoal.agent.offline.io.import_ import ImportTarget, VerifiedBundle, import_bundle
from shoal.agent.update.ports import UpdatePorts
from shoal.agent.wiring import build_offline
from shoal.controller.fleet.io.ca import Authority
from shoal.offline_bundle import Label, OfflineBundle
from shoal.orders import Order
from shoal.sealed_message import BatchMessage, MessageBatch
from supply import Power

NAME = "cam-1"


class BundleWriter:
    """Signs, seals and writes offline bundles, as the controller does."""

    def __init__(self, folder: Path, cloud: Cloud) -> None:
        self.cloud = cloud
        self.authority = Authority.create(folder / "pki", names=["localhost"], now=NOW)
        self.version = 10

    def enrol(self, folder: Path, name: str = NAME) -> None:
        """Write the files of an enrolled device into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        issued = self.authority.issue_device(make_csr(key, name), name, NOW)
        (folder / KEY).write_bytes(key_pem(key))
        (folder / CERTIFICATE).write_text(issued.certificate)
        (folder / CA).write_text(self.authority.bundle)
        (folder / ROOT).write_bytes(self.cloud.repository.root)
        (folder / DIRECTOR).write_bytes(self.cloud.repository.director_root)

    def assignment(self, *orders: Order, **signing: Any) -> BatchMessage:
        """The next assignment version, with these orders."""
        self.version += 1
        version = signing.pop("version", self.version)
        name = signing.pop("device", NAME)
        signed = self.cloud.repository.orders(name, version, orders, **signing)
        message = wire.Assignment(signed=signed, urls=self.cloud.urls())
        return BatchMessage("assignment", wire.encode(message))

    def write(self, target: Path, *messages: BatchMessage, name: str = NAME) -> OfflineBundle:
        """Write a complete bundle for one device."""
        written = OfflineBundle(target)
        for file, data in self.cloud.repository.files.items():
            written.write(f"{offline_bundle.METADATA}/{file}", data)
        for sha256, data in self.cloud.blobs.items():
            written.write(f"{offline_bundle.BLOBS}/{sha256}", data)
        self.put_sealed(written, *messages, name=name)
        label = Label(
            ca=self.authority.root_fingerprint, made_s=NOW, valid_until_s=NOW + 86_400,
            devices=[name], releases=[],
        )  # fmt: skip
        written.write(offline_bundle.LABEL, msgspec.json.encode(label))
        return written

    def put_sealed(
        self,
        written: OfflineBundle,
        *messages: BatchMessage,
        name: str = NAME,
        roots: Sequence[bytes] = (),
    ) -> None:
        made = MessageBatch(
            device=name, made_s=NOW, trip="0" * 8, letters=list(messages), roots=list(roots)
        )
        authority = self.authority
        sealed = sealed_message.seal(
            made, sealed_message.DOWN, authority.controller_chain, authority.sign_as_controller
        )
        written.write(f"{offline_bundle.DOWN}/{name}.parcel", sealed)

    def rotate_director_key(self, signer: str = "root") -> bytes:
        """Version 2 of the director's root, with a new key for assignments."""
        root = Metadata[Root].from_bytes(self.cloud.repository.director_root).signed
        old = root.roles["targets"].keyids[0]
        keys = self.cloud.repository.keys
        keys["director-2"] = CryptoSigner.generate_ed25519()
        root.revoke_key(old, "targets")
        root.add_key(keys["director-2"].public_key, "targets")
        root.version = 2
        return self.cloud.repository.signed(root, signer)


class OfflineDevice(Device):
    """A Device that only offline bundles reach: no network."""

    def start(self, power: Power | None = None) -> None:
        super().start(power)
        self.exchange = build_offline(self.folder, self.agent, self.journal, self.outbox)

    def run(self, seconds: float = 60.0) -> None:
        end = self.clock.now + seconds
        while self.clock.now < end:
            super().run(1.0)
            self.exchange.tick()

    def import_bundle(self, source: OfflineBundle) -> VerifiedBundle:
        """`shoal-agent import`, typed by ana."""
        target = ImportTarget(self.folder, NAME, PROFILE, "ana", self.clock.now)
        return import_bundle(target, source)

    def report(self) -> None:
        """Connect and send everything in the outbox."""
        self.connect()
        self.run(20)

    def _update_ports(self) -> UpdatePorts:
        network = self.downloads
        stage = lambda model: self.slots.path(model, "stage")  # noqa: E731
        self.downloads = CachedDownloads(network, OfflineCache(self.folder), stage, self.clock)
        return super()._update_ports()
