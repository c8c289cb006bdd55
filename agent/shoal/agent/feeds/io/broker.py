"""Connection to a plant's MQTT broker, on the caller's thread.

paho's own thread is not used (DESIGN section 4): the caller's thread selects on the socket and on a
pipe that wakes it, so that queued messages are sent at once and only one thread calls paho.
"""

import os
import selectors
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import paho.mqtt.client as paho
from paho.mqtt.enums import MQTTErrorCode

from shoal.address import parse_url
from shoal.agent.feeds.io.interface import ServerSettings
from shoal.connection_errors import explain
from shoal.errors import LinkError
from shoal.mqtt_version import MqttVersion, explain_reason, is_unsupported

CONNECT_S = 10.0
#: Longest wait of the loop: keep-alive and stopping are checked in between.
POLL_S = 0.5
_PORTS = {"mqtt": 1883, "mqtts": 8883}


class BrokerSettings(ServerSettings, frozen=True, kw_only=True):
    """Settings of a broker.

    url                   mqtt://host:port, or mqtts://host:port for TLS
    username, password    "" for none
    ca, certificate, key  PEM files for TLS, relative to the agent's folder; ca "" for the system's
    client_id             "" for one that the broker chooses
    keepalive_s           MQTT keep-alive, in seconds
    """

    url: str
    username: str = ""
    password: str = ""
    ca: str = ""
    certificate: str = ""
    key: str = ""
    client_id: str = ""
    keepalive_s: int = 30


class Packet(NamedTuple):
    """A message to publish."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False


class Broker:
    """One broker; each `serve` is one connection. All callbacks run on serve's thread.

    It uses MQTT 3.1.1; for a broker that refuses that, MQTT 5 from the next `serve` on.

    on_message          topic, payload, and whether the broker had retained it
    on_connected        connected, and every subscription granted
    on_acknowledged     the number that publish returned, for QoS 1
    before_poll         called before every wait, to publish queued messages
    before_disconnect   called before a clean disconnect
    """

    def __init__(
        self,
        settings: BrokerSettings,
        folder: Path,
        *,
        subscriptions: Sequence[tuple[str, int]] = (),
        on_message: Callable[[str, bytes, bool], None] = lambda *_: None,
        on_connected: Callable[[], None] = lambda: None,
        on_acknowledged: Callable[[int], None] = lambda number: None,
        before_poll: Callable[[], None] = lambda: None,
        before_disconnect: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings, self._folder = settings, folder
        self._scheme, self._address = parse_url(settings.url, _PORTS, "broker")
        self._subscriptions = list(subscriptions)
        self._on_message, self._on_connected = on_message, on_connected
        self._on_acknowledged = on_acknowledged
        self._before_poll, self._before_disconnect = before_poll, before_disconnect
        self._client: paho.Client | None = None
        self._fault = ""
        self._version, self._is_version_supported, self._is_known = MqttVersion.V3, False, False
        self._wake_reads, self._wake_writes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wake_is_due = False

    def wake(self) -> None:
        """End the wait, so that queued messages are published now; from any thread."""
        if not self._wake_is_due:
            self._wake_is_due = True
            os.write(self._wake_writes, b"w")

    @property
    def is_unsent(self) -> bool:
        """Whether a published message is not written to the socket yet."""
        return self._client is not None and self._client.want_write()

    def publish(self, packet: Packet) -> int:
        """Publish a message; its number, which on_acknowledged gets for QoS 1."""
        if self._client is None:
            raise LinkError("not connected")
        info = self._client.publish(packet.topic, packet.payload, packet.qos, packet.retain)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise LinkError(paho.error_string(info.rc))
        return info.mid

    def serve(self, stopping: threading.Event, will: Packet | None = None) -> None:
        """One connection, until `stopping`; LinkError when it ends before."""
        client = self._client = self._make(will)
        self._fault, self._is_version_supported = "", False
        try:
            self._connect(client)
            self._loop(client, stopping)
            self._before_disconnect()
            client.disconnect()
        finally:
            self._client = None
            _close(client)

    def disconnect(self, why: str) -> None:
        """Disconnect cleanly, without the will, and have serve raise `why`."""
        self._fault = why
        if self._client is not None:
            self._client.disconnect()

    # ------------------------------------------------------------------ one connection

    def _make(self, will: Packet | None) -> paho.Client:
        settings = self._settings
        client = self._version.make_client(settings.client_id, clean=True)
        client.connect_timeout = CONNECT_S
        if settings.username:
            client.username_pw_set(settings.username, settings.password)
        if self._scheme == "mqtts":
            client.tls_set_context(self._context())
        if will is not None:
            client.will_set(will.topic, will.payload, will.qos, will.retain)
        client.on_connect, client.on_subscribe = self._connected, self._subscribed
        client.on_message = self._received
        client.on_publish = self._published
        return client

    def _context(self) -> ssl.SSLContext:
        settings, folder = self._settings, self._folder
        context = ssl.create_default_context(cafile=folder / settings.ca if settings.ca else None)
        if settings.certificate:
            context.load_cert_chain(folder / settings.certificate, folder / settings.key)
        return context

    def _connect(self, client: paho.Client) -> None:
        options = self._version.connect_options(clean=True)
        try:
            client.connect(*self._address, self._settings.keepalive_s, **options)
        except (OSError, ValueError) as error:
            raise LinkError(f"broker {self._address}: {explain(error)}") from error

    def _loop(self, client: paho.Client, stopping: threading.Event) -> None:
        try:
            while not stopping.is_set():
                self._poll(client)
        except LinkError:
            if not (self._is_version_supported or self._is_known):
                self._version = self._version.other
            raise

    def _poll(self, client: paho.Client) -> None:
        """Wait until the socket is ready or `wake` is called; then read, write and keep alive."""
        self._before_poll()
        sock = client.socket()
        if sock is None:
            raise LinkError(self._fault or "the broker closed the connection")
        wants = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.want_write() else 0)
        with selectors.DefaultSelector() as selector:
            selector.register(sock, wants)
            selector.register(self._wake_reads, selectors.EVENT_READ)
            ready = {key.fileobj: events for key, events in selector.select(POLL_S)}
        if self._wake_reads in ready:
            os.read(self._wake_reads, 4_096)
            self._wake_is_due = False  # after the read, or a byte written between is lost
        events = ready.get(sock, 0)
        rc = MQTTErrorCode.MQTT_ERR_SUCCESS
        if events & selectors.EVENT_READ:
            rc = self._read(client, sock)
        if rc == MQTTErrorCode.MQTT_ERR_SUCCESS and client.want_write():
            rc = client.loop_write()
        if rc == MQTTErrorCode.MQTT_ERR_SUCCESS:
            rc = client.loop_misc()
        if rc != MQTTErrorCode.MQTT_ERR_SUCCESS or self._fault:
            raise LinkError(self._fault or f"the connection broke: {paho.error_string(rc)}")

    def _read(self, client: paho.Client, sock: Any) -> MQTTErrorCode:
        """Read, and again while TLS has decrypted bytes left."""
        rc = client.loop_read()
        while rc == MQTTErrorCode.MQTT_ERR_SUCCESS and getattr(sock, "pending", int)():
            rc = client.loop_read()
        return rc

    # ------------------------------------------------------------------ paho's callbacks

    def _connected(self, client: paho.Client, _: Any, __: Any, reason: Any, ___: Any) -> None:
        self._is_version_supported = not is_unsupported(reason)
        self._is_known |= not reason.is_failure
        if reason.is_failure:
            self._fault = f"broker {self._address} refused: {explain_reason(reason)}"
        elif not self._subscriptions:
            self._on_connected()
        else:
            client.subscribe(self._subscriptions)

    def _subscribed(self, _: paho.Client, __: Any, ___: int, reasons: Any, ____: Any) -> None:
        granted = zip(self._subscriptions, reasons, strict=False)
        refused = [topic for (topic, _), reason in granted if reason.is_failure]
        if refused:
            self._fault = (
                f"broker refused subscription to {', '.join(refused)}; see its access rules"
            )
        else:
            self._on_connected()

    def _received(self, _: paho.Client, __: Any, message: paho.MQTTMessage) -> None:
        self._on_message(message.topic, bytes(message.payload), message.retain)

    def _published(self, _: paho.Client, __: Any, number: int, ___: Any, ____: Any) -> None:
        self._on_acknowledged(number)


def _close(client: paho.Client) -> None:
    """Close the socket, after writing what is queued (a DISCONNECT perhaps)."""
    deadline = time.monotonic() + 1.0
    while client.want_write() and client.socket() is not None and time.monotonic() < deadline:
        if client.loop_write() != MQTTErrorCode.MQTT_ERR_SUCCESS:
            break
    open_still = client.socket()
    if open_still is not None:
        open_still.close()
