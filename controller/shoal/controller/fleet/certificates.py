"""Device certificates: the interface of the device CA, and the common name (CN).

A broker identifies a device by its certificate's CN alone. A decommissioned name may be enrolled
again while the earlier certificate is valid for weeks; with the same CN the broker would admit
both. So every enrolment after a decommission has its own CN; the first has the plain name.

>>> common_name("cam-a", 0), common_name("cam-a", 2)
('cam-a', 'cam-a.2')
>>> read_common_name("cam-a.2")
CertificateName(device='cam-a', generation=2)
"""

import re
from typing import NamedTuple, Protocol

from shoal.errors import SettingError
from shoal.topics import check_device

#: Seconds before its end at which a certificate counts as expiring: a device renews earlier, at two
#: thirds of its life (identity.io.renewal of the agent), so one with so little left has failed to.
EXPIRING_S = 21 * 86_400.0
#: Limit of X.509.
LONGEST = 64
_GENERATION = re.compile(r"[1-9][0-9]{0,5}")


class Issued(NamedTuple):
    """Issued certificate.

    certificate   PEM, the leaf and then the intermediate
    serial        hex
    expires_s     Unix seconds
    key_sha256    of the public key, hex
    """

    certificate: str
    serial: str
    expires_s: float
    key_sha256: str


class Proven(NamedTuple):
    """A device that proved possession of its certificate's key.

    generation       of the enrolment
    begins_s, ends_s validity, Unix seconds
    key_sha256       of the public key, hex
    """

    device: str
    generation: int
    serial: str
    begins_s: float
    ends_s: float
    key_sha256: str


class DeviceCA(Protocol):
    """The device CA; its methods are documented in fleet.io.ca.Authority.

    bundle             PEM trust anchors
    root_fingerprint   SHA-256 of the root certificate, which join tokens pin
    """

    @property
    def bundle(self) -> str: ...
    @property
    def root_fingerprint(self) -> str: ...
    @property
    def controller_chain(self) -> str: ...
    def issue_device(self, csr: str, device: str, now: float, generation: int) -> Issued: ...
    def sign_as_controller(self, message: bytes) -> bytes: ...
    def prove(
        self, certificate: str, proof: bytes, message: bytes, now: float | None
    ) -> Proven: ...


class CertificateName(NamedTuple):
    """A device, and how often its name had been decommissioned when the certificate was issued."""

    device: str
    generation: int


def common_name(device: str, generation: int) -> str:
    """CN of a certificate; SettingError for an invalid name, or one too long for a generation."""
    check_device(device)
    name = f"{device}.{generation}" if generation else device
    if len(name) > LONGEST:
        raise SettingError(
            f"{device!r} was decommissioned before, and is too long for a generation suffix in the "
            "certificate name",
            "enrol under another name",
        )
    return name


def read_common_name(text: str) -> CertificateName:
    """Parse a CN; SettingError unless `common_name` produces such."""
    device, dot, number = text.partition(".")
    if dot and not _GENERATION.fullmatch(number):
        raise SettingError(f"certificate name {text[:80]!r}", "it is <device> or <device>.<number>")
    return CertificateName(check_device(device), int(number or 0))
