"""Real brokers, and plain paho connections with the controller's certificate.

The controller's certificate may publish as every device: one connection stands for a fleet.
"""

import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from shoal.controller.broker.io.nats import NatsServer, find_binary

PATIENCE_S = 60.0
HOST = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """Free ports on loopback."""
    open_ = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in open_]
    for one in open_:
        one.close()
    return ports


@contextlib.contextmanager
def running(folder: Path, pki: Path, port: int) -> Iterator[None]:
    """The embedded broker, as `shoal-controller broker` starts it, without devices."""
    server = NatsServer(find_binary(os.environ), folder, pki, host=HOST, port=port)
    with _said_to(folder.parent / f"{folder.name}.log"):
        server.start(())
    try:
        _await_listener(port)
        yield
    finally:
        server.stop()


def _await_listener(port: int) -> None:
    """Wait until the port takes connections: nats-server writes its PID file before it does."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            socket.create_connection((HOST, port), timeout=1).close()
        except OSError:
            if time.monotonic() > end:
                raise TimeoutError(f"nothing listens on port {port}") from None
            time.sleep(0.02)
        else:
            return


@contextlib.contextmanager
def connected(
    pki: Path,
    port: int,
    name: str,
    subscriptions: Sequence[str] = (),
    hear: Callable[[str, bytes], None] = lambda topic, payload: None,
) -> Iterator[paho.Client]:
    """A bare paho client on a thread of its own, subscribed; TimeoutError."""
    ready = threading.Event()
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=paho.MQTTv311)
    context = ssl.create_default_context(cafile=str(pki / "ca.pem"))
    context.load_cert_chain(pki / "controller.crt", pki / "controller.key")
    client.tls_set_context(context)

    def greet(client: paho.Client, *_: Any) -> None:
        if subscriptions:
            client.subscribe([(topic, 1) for topic in subscriptions])
        else:
            ready.set()

    client.on_connect = greet
    client.on_subscribe = lambda *_: ready.set()
    client.on_message = lambda _, __, message: hear(message.topic, bytes(message.payload))
    client.on_socket_open = _without_nagle
    client.connect(HOST, port)
    client.loop_start()
    try:
        if not ready.wait(PATIENCE_S):
            raise TimeoutError(f"{name} is not connected to port {port}")
        yield client
    finally:
        client.disconnect()
        client.loop_stop()


def publish_all(client: paho.Client, messages: Sequence[tuple[str, bytes]]) -> None:
    """Publish with QoS 1, and wait until the broker has acknowledged every one; TimeoutError."""
    last = [client.publish(topic, payload, qos=1) for topic, payload in messages]
    for info in last:
        info.wait_for_publish(PATIENCE_S)
        if not info.is_published():
            raise TimeoutError("the broker has not acknowledged every message")


@contextlib.contextmanager
def _said_to(log: Path) -> Iterator[None]:
    """What processes started meanwhile write to standard error goes to a file."""
    kept = os.dup(2)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _without_nagle(_: paho.Client, __: Any, sock: Any) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
