"""Health checks of listeners, for the supervisor's ready line and for doctor."""

import contextlib
import http.client
import socket
import ssl
from pathlib import Path

from shoal.address import Address, host_port, is_ipv6, url_of
from shoal.connection_errors import explain
from shoal.controller.host.settings import Network
from shoal.errors import LinkError, SettingError
from shoal.mqtt import broker_address

TIMEOUT_S = 3.0
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - read, not bound


def reachable_host(host: str) -> str:
    """Address of a listener that binds `host`."""
    return _EVERYWHERE.get(host, host)


def is_free(host: str, port: int) -> bool:
    """Whether the port can be bound."""
    family = socket.AF_INET6 if is_ipv6(host) else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError as error:
            raise SettingError(
                f"port {port} on {host} needs more rights than this user has",
                "choose one from 1024 on in controller.toml",
            ) from error
        except socket.gaierror as error:
            raise SettingError(
                f"host {host!r} is not known here", "set [network] host in controller.toml"
            ) from error
        except OSError as error:
            if error.errno == 99:  # EADDRNOTAVAIL
                raise SettingError(
                    f"{host} is no address of this machine",
                    "set [network] host in controller.toml",
                ) from error
            return False
    return True


def check_broker(network: Network, pki: Path) -> str:
    """TLS handshake with the broker, as the controller; its address. LinkError if it fails.

    Without an MQTT CONNECT: on Mosquitto that would take over the engine's own session.
    """
    address = (
        broker_address(network.broker)
        if network.broker
        else Address(reachable_host(network.host), network.mqtt)
    )
    context = _tls_context(pki)
    context.load_cert_chain(pki / "controller.crt", pki / "controller.key")
    name = address.host if network.broker else network.names[0]
    try:
        with (
            socket.create_connection(address, TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=name) as wrapped,
        ):
            wrapped.settimeout(0.2)  # a refusal of our certificate comes after the handshake
            with contextlib.suppress(TimeoutError):
                wrapped.recv(1)
    except (OSError, ssl.SSLError) as error:
        raise LinkError(f"{address}: {explain(error)}") from error
    return str(address)


def check_https(network: Network, port: int, pki: Path, *, own_certificate: bool = False) -> str:
    """GET /healthz; its URL. LinkError unless the status is 200.

    own_certificate   the operator's, not of our CA: it is not verified
    """
    context = _tls_context(pki)
    context.check_hostname = False  # connected by address; the certificate has names too
    if own_certificate:
        context.verify_mode = ssl.CERT_NONE
    return _request(network, port, context, "GET", "/healthz")


def request_artifact(network: Network, pki: Path, path: str, timeout_s: float) -> None:
    """HEAD `path` of the artifact server; LinkError unless the status is 200 within timeout_s."""
    context = _tls_context(pki)
    context.check_hostname = False
    _request(network, network.artifacts, context, "HEAD", path, timeout_s)


def _request(
    network: Network, port: int, context: ssl.SSLContext, method: str, path: str,
    timeout_s: float = TIMEOUT_S,
) -> str:  # fmt: skip
    host = reachable_host(network.host)
    where = url_of("https", host, port)
    connection = http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)
    try:
        connection.request(method, path, headers={"Host": host_port(network.names[0], port)})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise LinkError(f"{where}: {explain(error)}") from error
    finally:
        connection.close()
    if status != 200:
        raise LinkError(f"{where}{path.partition('?')[0]} answered {status}")
    return where


def _tls_context(pki: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(pki / "ca.pem"))
    except OSError as error:
        raise SettingError(f"no {pki / 'ca.pem'}", "run: shoal-controller init") from error
