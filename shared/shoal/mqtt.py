"""MQTT client that reconnects: a hardened wrapper of paho (DESIGN section 4).

It uses MQTT 3.1.1, or MQTT 5 where the broker supports no other. One thread of its own connects,
reads, writes and waits between attempts. paho's thread is not used: it has no jitter, ends on an
exception in a callback while ``is_connected()`` stays true, and its writes may interleave with
those of a publisher's thread.
"""

import hashlib
import logging
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import MQTTErrorCode

from shoal.address import Address, parse_url
from shoal.connection_errors import explain, explain_alert, validity_fault
from shoal.errors import LinkError
from shoal.mqtt_version import Limits, MqttVersion, explain_reason, is_unsupported, limits_of

FIRST_DELAY_S, LONGEST_DELAY_S = 1.0, 60.0
CONNECT_TIMEOUT_S = 10.0
#: Seconds without a PUBACK, while pings are answered, after which to reconnect.
STUCK_S = 60.0
#: Seconds of a connection after which the reconnection delay is reset.
SETTLED_S = 10.0
QUEUE = 1_000
#: Bytes of a PUBLISH beside its topic and payload, at most.
_HEAD = 10
#: Errors on a reply in another version of MQTT.
_WRONG_VERSION = (MQTTErrorCode.MQTT_ERR_PROTOCOL, MQTTErrorCode.MQTT_ERR_CONN_REFUSED)
_log = logging.getLogger("shoal.mqtt")


def broker_address(url: str) -> Address:
    """Host and port of mqtts://host[:port]; SettingError if it is invalid."""
    return parse_url(url, {"mqtts": 8883}, "broker").address


def session_id(name: str, key: Path) -> str:
    """Client id that cannot be guessed without the key file: `name` and a hash of the key.

    nats-server does not bind client ids to certificates: with another client's id one could
    disconnect it and drop its session (docs/adr/0005-broker.md). Raises OSError.
    """
    return f"{name}-{hashlib.sha256(b'shoal session' + key.read_bytes()).hexdigest()[:32]}"


class _Context(ssl.SSLContext):
    """Verifies the broker's certificate for `server_name`, where that is not the host dialled."""

    server_name = ""

    def wrap_socket(
        self,
        sock: socket.socket,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = True,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLSocket:
        return super().wrap_socket(
            sock,
            server_side,
            do_handshake_on_connect,
            suppress_ragged_eofs,
            self.server_name or server_hostname,
            session,
        )


class Link:
    """A client's connection to the broker, reconnected until `stop`.

    url            mqtts://host:port
    client_id      the client's name; the broker gets its `session_id`
    server_name    name in the broker's certificate; "" for the host in the URL
    session        client id for the broker instead, so that a session survives a new key
    ca, certificate, key   PEM files, read at each connection: a renewal needs no restart
    subscriptions  filters, QoS 1, subscribed at each connection
    random         for the delays between attempts: full jitter, up to 60 s
    version        first version of MQTT to try; the other one follows when the broker refuses it,
                   or disconnects before any connection succeeded

    Published messages are sent again after a reconnection until the broker has acknowledged them,
    but from memory, and only with the same version: messages that must not be lost stay in an
    outbox until the controller's ack.
    """

    def __init__(
        self,
        *,
        url: str,
        client_id: str,
        ca: Path,
        certificate: Path,
        key: Path,
        subscriptions: Sequence[str],
        random: random.Random,
        clean_session: bool = False,
        keepalive_s: int = 30,
        session: str = "",
        server_name: str = "",
        version: MqttVersion = MqttVersion.V3,
    ) -> None:
        self.address = broker_address(url)
        self._client_id, self._keepalive_s = client_id, keepalive_s
        self._session = session
        self._ca, self._certificate, self._key = ca, certificate, key
        self._subscriptions = list(subscriptions)
        self._on_message: Callable[[str, bytes], None] = lambda topic, payload: None
        self._on_connection: Callable[[bool], None] = lambda up: None
        self._will: Callable[[], tuple[str, bytes]] | None = None
        self._random = random
        # Not create_default_context: without a cafile it trusts the system's CAs as well.
        self._context = _Context(ssl.PROTOCOL_TLS_CLIENT)
        self._context.server_name = server_name
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._clean_session = clean_session
        self._version, self._is_known = version, False
        self._greeted, self._limits = False, Limits()
        self._client: paho.Client | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._up = False
        self._fault, self._refusal = "not started", ""
        self._subscribing = 0
        self._unacked = 0
        self._waiting_since = self._up_since = 0.0

    # --- public ------------------------------------------------------------------------

    def start(
        self,
        on_message: Callable[[str, bytes], None],
        on_connection: Callable[[bool], None],
        will: Callable[[], tuple[str, bytes]] | None = None,
    ) -> None:
        """Connect and stay connected, in a thread; never blocks, never fails.

        on_message     topic, payload; on_connection: up or down. Both run on the link's thread and
                       may only enqueue
        will           topic and payload of the retained last will, called at each connection
        """
        self._on_message, self._on_connection, self._will = on_message, on_connection, will
        self._start_thread()

    def _start_thread(self) -> None:
        self._stopping.clear()
        thread = threading.Thread(target=self._keep, name="shoal-mqtt", daemon=True)
        thread.start()
        self._thread = thread  # after start: until then it counts as not started, not as dead

    def revive(self) -> bool:
        """Restart the thread if it died unexpectedly; return whether it had. For a watchdog."""
        if self._thread is None or self._thread.is_alive() or self._stopping.is_set():
            return False
        self._went_down()
        self._start_thread()
        return True

    def stop(self, patience_s: float = CONNECT_TIMEOUT_S + 5) -> None:
        """Disconnect, without the last will, and end the thread; wait so long for it."""
        self._stopping.set()
        if self._client is not None:
            self._client.disconnect()  # only queued, and the loop woken
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(patience_s)

    @property
    def connected(self) -> bool:
        """Whether connection and subscriptions are accepted, and the thread is alive."""
        return self._up and self._thread is not None and self._thread.is_alive()

    @property
    def unacked(self) -> int:
        """Messages that the broker has yet to acknowledge, for flow control of large messages."""
        return self._unacked

    @property
    def fault(self) -> str:
        """Why it is not connected, one sentence with a hint; "" while it is."""
        return "" if self.connected else self._fault

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish a message with QoS 1. Returns before it is acknowledged.

        Raises LinkError when not connected, with too many unacknowledged messages, or for a message
        over the broker's size limit.
        """
        client = self._client
        if client is None or not self.connected:
            raise LinkError(f"broker {self.address}: {self._fault}")
        self._check_size(topic, payload)
        with self._lock:
            if self._unacked == 0:
                self._waiting_since = time.monotonic()
            self._unacked += 1
        info = client.publish(topic, payload, qos=1, retain=retain)
        if info.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
            with self._lock:
                self._unacked -= 1
            raise LinkError(f"broker has not acknowledged {QUEUE} messages", "send more slowly")

    def _check_size(self, topic: str, payload: bytes) -> None:
        size, most = len(topic.encode()) + len(payload) + _HEAD, self._limits.packet
        if most and size > most:
            raise LinkError(
                f"message of {size} bytes, the broker accepts {most}",
                "raise its limit of packet size",
            )

    # --- the thread ---------------------------------------------------------------------------

    def _keep(self) -> None:
        attempt = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                self._fault = self._connect_and_serve()
            except Exception as error:  # noqa: BLE001 - whatever it is, reconnect
                self._fault = explain(error)
            self._went_down()
            if self._stopping.is_set():
                return
            settled = self._up_since > began and time.monotonic() - self._up_since > SETTLED_S
            attempt = 0 if settled else attempt + 1
            delay = self._delay(attempt)
            _log.warning("broker %s: %s; next try in %.1f s", self.address, self._fault, delay)
            self._stopping.wait(delay)

    def _connect_and_serve(self) -> str:
        """Connect and run one connection to its end; return why it ended."""
        self._fault, self._greeted, self._refusal = "connecting", False, ""
        self._context.load_verify_locations(self._ca)
        self._context.load_cert_chain(self._certificate, self._key)
        if self._client and self._client.max_inflight_messages > self._limits.in_flight:
            self._discard_client(self._limits)
        client = self._client = self._client or self._make_client()
        client.on_log = self._logged
        if self._will is not None:
            topic, payload = self._will()
            client.will_set(topic, payload, qos=1, retain=True)
        client.reconnect()
        disconnects = 0
        while disconnects < 3:
            rc = client.loop(1.0)
            if rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
                return self._why(rc)
            if self._is_stuck():
                return f"broker acknowledged nothing for {STUCK_S:.0f} s"
            if self._stopping.is_set():
                client.disconnect()
                disconnects += 1
        return "stopped"

    def _went_down(self) -> None:
        was_up, self._up = self._up, False
        open_still = self._client.socket() if self._client is not None else None
        if open_still is not None:
            open_still.close()
        if was_up:
            self._call(self._on_connection, False)

    def _why(self, rc: MQTTErrorCode) -> str:
        if not self._greeted and self._refusal:  # it ended before any version was spoken
            return self._certificate_fault()
        if not self._greeted and (rc in _WRONG_VERSION or not self._is_known):
            switched = self._switch_version(rc)
            return self._certificate_fault() or switched
        if not self._greeted and (refused := self._certificate_fault()):
            return refused
        return self._fault if self._fault not in ("", "connecting") else paho.error_string(rc)

    def _certificate_fault(self) -> str:
        """Why the broker refused our certificate, if it did: in TLS 1.3 after the handshake."""
        return validity_fault(self._certificate, time.time()) or self._refusal

    def _switch_version(self, rc: MQTTErrorCode) -> str:
        """Switch to the other version after no reply in this one; return the reason."""
        tried, self._version, self._is_known = self._version, self._version.other, False
        self._discard_client(Limits())
        why = paho.error_string(rc).rstrip(".")
        return f"no answer to MQTT {tried.value} ({why}); trying MQTT {self._version.value}"

    def _discard_client(self, limits: Limits) -> None:
        """Make a new paho client for the next connection: version and limits are fixed in one."""
        with self._lock:
            self._unacked = 0
        self._client, self._limits = None, limits

    def _is_stuck(self) -> bool:
        with self._lock:
            waiting = self._unacked > 0 and self._up
            return waiting and time.monotonic() - self._waiting_since > STUCK_S

    def _delay(self, attempt: int) -> float:
        return self._random.uniform(0, min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** min(attempt, 16)))

    # --- paho's callbacks, all on the thread above ----------------------------------------------

    def _make_client(self) -> paho.Client:
        name = self._session or session_id(self._client_id, self._key)
        client = self._version.make_client(name, clean=self._clean_session)
        client.tls_set_context(self._context)
        client.suppress_exceptions = True
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_queued_messages_set(QUEUE)
        client.max_inflight_messages_set(self._limits.in_flight)
        client.on_connect = self._connected_to
        client.on_subscribe = self._subscribed
        client.on_message = self._received
        client.on_publish = self._acknowledged
        client.on_disconnect = self._ended
        client.on_socket_open = _without_nagle
        # With this set, publish() only wakes the loop: one thread alone writes to the socket.
        client.on_socket_register_write = _leave_writing_to_the_loop
        options = self._version.connect_options(clean=self._clean_session)
        client.connect_async(*self.address, keepalive=self._keepalive_s, **options)
        return client

    def _connected_to(
        self, client: paho.Client, _: Any, __: Any, reason: Any, properties: Any
    ) -> None:
        self._greeted = not is_unsupported(reason)
        if reason.is_failure:
            self._fault = f"broker refused: {explain_reason(reason)}"
            return
        self._is_known = True
        client.on_log = None  # it costs a line of text for every packet
        if not self._agree(limits_of(properties, clean=self._clean_session)):
            client.disconnect()
            return
        with self._lock:  # unacknowledged messages are sent again now, and their timeout restarts
            self._waiting_since = time.monotonic()
        if not self._subscriptions:
            self._came_up()
            return
        _, mid = client.subscribe([(topic, 1) for topic in self._subscriptions])
        self._subscribing = mid or 0

    def _agree(self, limits: Limits) -> bool:
        """Whether this connection is within the broker's limits; the next one will be."""
        most = min(self._limits.in_flight, limits.in_flight)
        if limits.faults:
            self._fault = f"broker {' and '.join(limits.faults)}; use one that does"
        elif most < self._limits.in_flight:
            self._fault = f"broker accepts {most} messages in flight; reconnecting"
        self._limits = limits._replace(in_flight=most)
        return self._fault == "connecting"

    def _ended(self, _: paho.Client, __: Any, flags: Any, reason: Any, ___: Any) -> None:
        if flags.is_disconnect_packet_from_server:
            self._fault = f"broker ended the connection: {explain_reason(reason)}"

    def _logged(self, _: paho.Client, __: Any, ___: int, text: str) -> None:
        """Keep a TLS alert, which paho only logs."""
        self._refusal = explain_alert(text) or self._refusal

    def _subscribed(self, client: paho.Client, _: Any, mid: int, reasons: Any, __: Any) -> None:
        if mid != self._subscribing:
            return
        results = zip(self._subscriptions, reasons, strict=False)
        refused = [topic for topic, reason in results if reason.is_failure]
        if refused:
            self._fault = (
                f"broker refused subscription to {', '.join(refused)}; "
                "see its access rules and its limit of consumers"
            )
            client.disconnect()
            return
        self._came_up()

    def _came_up(self) -> None:
        self._up, self._fault, self._up_since = True, "", time.monotonic()
        _log.info("broker %s: connected", self.address)
        self._call(self._on_connection, True)

    def _received(self, _: paho.Client, __: Any, message: paho.MQTTMessage) -> None:
        self._call(self._on_message, message.topic, message.payload)

    def _acknowledged(self, _: paho.Client, __: Any, ___: int, reason: Any, ____: Any) -> None:
        if reason.is_failure:  # only in MQTT 5; the outbox sends it again in any case
            _log.warning("broker rejected a message: %s", explain_reason(reason))
        with self._lock:
            self._unacked = max(0, self._unacked - 1)
            self._waiting_since = time.monotonic()

    def _call(self, callback: Callable[..., None], *args: Any) -> None:
        try:
            callback(*args)
        except Exception:  # noqa: BLE001 - one bad message must not end the connection
            _log.exception("callback of the link failed; the link goes on")


def _without_nagle(_: paho.Client, __: Any, sock: Any) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _leave_writing_to_the_loop(_: paho.Client, __: Any, ___: Any) -> None:
    """Empty on purpose: paho changes its behaviour when the callback is set."""
