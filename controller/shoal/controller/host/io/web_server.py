"""API and console under gunicorn: one worker, so that live streams, metrics and login limits are in
one process, and threads for concurrent requests."""

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gunicorn.app.base import BaseApplication

from shoal.address import host_port
from shoal.controller.host.io.request_reader import ReadingWorker
from shoal.controller.host.io.tls_timeouts import TimeoutSocket
from shoal.controller.host.settings import Network
from shoal.errors import SettingError

THREADS = 16


class _Gunicorn(BaseApplication):
    """gunicorn, configured by these options only."""

    def __init__(self, make_app: Callable[[], Any], options: dict[str, Any]) -> None:
        self._make_app, self._options = make_app, options
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        return self._make_app()


def serve(make_app: Callable[[], Any], network: Network, pki: Path) -> None:
    """Serve until SIGTERM; `make_app` is called in the worker. SettingError: bad certificate."""
    certificate = network.tls_certificate or str(pki / "server.crt")
    key = network.tls_key or str(pki / "server.key")
    _check_pair(certificate, key)
    _Gunicorn(make_app, _options(network, certificate, key)).run()


def _options(network: Network, certificate: str, key: str) -> dict[str, Any]:
    return {
        "bind": host_port(network.host, network.port),
        "worker_class": ReadingWorker,
        "workers": 1,
        "threads": THREADS,
        "keepalive": 75,
        "timeout": 120,
        "graceful_timeout": 5,
        "certfile": certificate,
        "keyfile": key,
        "ssl_context": _tls_context,
        "loglevel": "warning",
        "control_socket_disable": True,
        "forwarded_allow_ips": "",
        "proc_name": "shoal-web",
    }


def _tls_context(_config: Any, make_default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    context = make_default()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslsocket_class = TimeoutSocket
    return context


def _check_pair(certificate: str, key: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise SettingError(
            f"certificate {certificate} with key {key}: {error.strerror or error}",
            "see [network] tls_certificate and tls_key in controller.toml",
        ) from error
