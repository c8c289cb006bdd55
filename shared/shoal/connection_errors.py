"""Why a connection failed, in one sentence with a hint: the network, TLS, certificates, portals."""

import datetime
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

#: What to do about a web page in place of a server's answer.
PORTAL = (
    "a proxy or the sign-in page of a network (captive portal) answers instead: sign in there, or "
    "let this address through"
)
_NOT_YET_VALID, _EXPIRED = 9, 10  # X509_V_ERR_* of OpenSSL
_ALERT = re.compile(r"ALERT_([A-Z_]+)")
#: TLS alerts (RFC 8446, 6.2) by which a server refuses a client's certificate.
_REFUSALS = {
    "CERTIFICATE_EXPIRED": "it has expired",
    "CERTIFICATE_REVOKED": "it was revoked",
    "UNKNOWN_CA": "it is of another CA: was the controller set up again?",
    "BAD_CERTIFICATE": "it is not valid there",
    "UNSUPPORTED_CERTIFICATE": "its kind is not supported",
    "CERTIFICATE_UNKNOWN": "it is not accepted",
    "CERTIFICATE_REQUIRED": "none was received",
    "ACCESS_DENIED": "access was denied",
}


def explain(error: BaseException, server: str = "broker") -> str:
    """One sentence on why a connection to `server` failed; urllib3's errors are unpacked.

    >>> explain(ConnectionRefusedError(111, "Connection refused"))
    'Connection refused'
    """
    error = _innermost(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code == _NOT_YET_VALID:
            return f"{server}'s certificate is not valid yet; is this machine's clock right?"
        if error.verify_code == _EXPIRED:
            return f"{server}'s certificate has expired; restart the controller, or set the clock"
        return (
            f"{server}'s certificate is not trusted: {error.verify_message}; another server, a "
            "proxy or a captive portal answers, or the controller was set up again"
        )
    if isinstance(error, ssl.SSLError):
        return explain_alert(str(error), server) or f"TLS: {error.reason or error}"
    if isinstance(error, FileNotFoundError):
        return f"no file {error.filename}; enrol again" if error.filename else str(error)
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return f"{type(error).__name__}: {error}"


def explain_alert(text: str, server: str = "broker") -> str:
    """The TLS alert in an error's text as a sentence; "" when it says nothing of our certificate.

    >>> explain_alert("[SSL: SSLV3_ALERT_CERTIFICATE_EXPIRED] sslv3 alert certificate expired")
    "the broker refused this machine's certificate: it has expired"
    """
    found = _ALERT.search(text)
    reason = _REFUSALS.get(found[1], "") if found else ""
    return f"the {server} refused this machine's certificate: {reason}" if reason else ""


def validity_fault(certificate: Path, now_s: float) -> str:
    """Why the machine's own certificate is not valid at `now_s` (Unix); "" if it is, or unreadable.

    certificate   PEM; the first one in it counts
    """
    from cryptography import x509

    try:
        leaf = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError):
        return ""
    now = datetime.datetime.fromtimestamp(now_s, datetime.UTC)
    ends, begins = leaf.not_valid_after_utc, leaf.not_valid_before_utc
    if now > ends:
        return (
            f"the certificate of this machine ended {(now - ends).days} days ago, {ends:%Y-%m-%d}; "
            "enrol it again with a new join token, or set its clock if the date is wrong"
        )
    if now < begins:
        return (
            f"the certificate of this machine is not valid before {begins:%Y-%m-%d %H:%M} UTC, and "
            f"its clock shows {now:%Y-%m-%d %H:%M}; set the clock"
        )
    return ""


def portal_fault(status: int, headers: Mapping[str, str]) -> str:
    """What shows that a web page answers in place of the server; "" for nothing.

    >>> portal_fault(302, {"Location": "http://login.example/?from=x"})
    'redirected to login.example (HTTP 302)'
    >>> portal_fault(200, {"Content-Type": "text/html; charset=utf-8"})
    'answered with a web page'
    >>> portal_fault(200, {"Content-Type": "application/json"})
    ''
    """
    if 300 <= status < 400 or status == 511:  # RFC 6585: network authentication required
        host = urlsplit(headers.get("Location", "")).hostname
        return f"redirected{f' to {host[:80]}' if host else ''} (HTTP {status})"
    is_page = headers.get("Content-Type", "").startswith("text/html")
    return "answered with a web page" if is_page and status < 300 else ""


def _innermost(error: BaseException) -> BaseException:
    """The system's error in one of urllib3's."""
    for inside in (*error.args, error.__cause__):
        ours = isinstance(inside, OSError) or type(inside).__module__.startswith("urllib3")
        if ours and isinstance(inside, BaseException) and inside is not error:
            return _innermost(inside)
    return error
