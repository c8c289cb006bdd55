"""This device's certificate and signature in secure aggregation.

Read from the disk each time, since the certificate is renewed while the agent runs.
"""

from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from shoal.agent.federated.secagg import Credentials, Verify
from shoal.agent.host.io.folder import CA, CERTIFICATE, KEY, read_trusted
from shoal.errors import SettingError, UntrustedError
from shoal.federated.identity import check_signature


def credentials_of(folder: Path, wall: Callable[[], float]) -> Credentials:
    """Credentials of the device that enrolled in `folder`."""

    def sign(message: bytes) -> bytes:
        key = serialization.load_pem_private_key(read_trusted(folder, KEY), None)
        if isinstance(key, ec.EllipticCurvePrivateKey):
            return key.sign(message, ec.ECDSA(hashes.SHA256()))
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return key.sign(message)
        raise SettingError(
            f"{folder / KEY} is a key of an unsupported type", "enrol this device again"
        )

    def certificate() -> bytes:
        leaf = x509.load_pem_x509_certificates(read_trusted(folder, CERTIFICATE))[0]
        return leaf.public_bytes(serialization.Encoding.DER)

    def verify(certificates: dict[str, bytes]) -> Verify:
        authorities = x509.load_pem_x509_certificates(read_trusted(folder, CA))

        def check(device: str, signature: bytes, message: bytes) -> None:
            if device not in certificates:
                raise UntrustedError(f"{device} is no neighbour, or has sent no certificate")
            shown = certificates[device]
            check_signature(shown, authorities, device, signature, message, wall())

        return check

    return Credentials(sign=sign, certificate=certificate, verify=verify)
