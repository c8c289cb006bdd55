"""SealedMessage messages: sealed with this device's key, opened when the controller sealed them."""

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shoal import sealed_message
from shoal.agent.host.io.folder import CA, CERTIFICATE, KEY, read_trusted
from shoal.agent.identity.io.enrol import read_key
from shoal.enrolment import fingerprint
from shoal.errors import MisdirectedError, StaleError, UntrustedError
from shoal.issuer import is_issued_by
from shoal.sealed_message import DOWN, UP, MessageBatch, SealedMessage

_CONTROLLER = "controller"
_AGAIN = "export it again at the controller"


def seal(folder: Path, made: MessageBatch) -> bytes:
    """Seal `made` with the key of the device in `folder`; SettingError when that is gone."""
    key = read_key(folder / KEY)
    chain = read_trusted(folder, CERTIFICATE).decode()
    return sealed_message.seal(made, UP, chain, lambda message: key.sign(message, _ECDSA))


_ECDSA = ec.ECDSA(hashes.SHA256())


def open_sealed(folder: Path, data: bytes, device: str, now_s: float) -> MessageBatch:
    """Verify and read a sealed message from the controller to `device`.

    Raises BundleError for an incomplete one, UntrustedError for one that this device's controller
    did not seal, StaleError for one sealed with an expired certificate, MisdirectedError for
    another device's.
    """
    sealed = sealed_message.unseal(data)
    _check_controller(sealed, x509.load_pem_x509_certificates(read_trusted(folder, CA)), now_s)
    found = sealed_message.decode_batch(sealed.body)
    if found.device != device:
        what = f"this sealed message is for {found.device!r:.80}, this is {device!r}"
        raise MisdirectedError(what, _AGAIN)
    return found


def root_fingerprint(folder: Path) -> str:
    """SHA-256, hex, of the root certificate that this device trusts."""
    certificates = x509.load_pem_x509_certificates(read_trusted(folder, CA))
    roots = [c for c in certificates if c.issuer == c.subject] or certificates[:1]
    return fingerprint(roots[0].public_bytes(serialization.Encoding.DER))


def _check_controller(sealed: SealedMessage, known: list[x509.Certificate], now_s: float) -> None:
    try:
        leaf = x509.load_pem_x509_certificate(sealed.certificate.encode())
        names = [n.value for n in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        public = leaf.public_key()
        if names != [_CONTROLLER] or not isinstance(public, ec.EllipticCurvePublicKey):
            raise UntrustedError("this message was not sealed by a controller", _AGAIN)
        if not is_issued_by(leaf, known):
            raise UntrustedError(
                "this message was sealed by another controller than this device's", _AGAIN
            )
        public.verify(sealed.signature, sealed_message.signed_bytes(DOWN, sealed.body), _ECDSA)
    except (ValueError, InvalidSignature) as error:
        raise UntrustedError("the seal of this message is broken", _AGAIN) from error
    if leaf.not_valid_after_utc <= datetime.datetime.fromtimestamp(now_s, datetime.UTC):
        raise StaleError("the seal of this message has expired", _AGAIN)
