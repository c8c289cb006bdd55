"""An MQTT connection that comes back: paho with its traps closed (DESIGN section 4).

It speaks 3.1.1, or MQTT 5 to a broker that knows no other. One thread of our own connects, reads,
writes and waits between attempts. paho's thread is not used: it has no jitter, dies of an exception
in a callback while ``is_connected()`` stays true, and what it writes from a publisher's thread may
tear what it writes from its own.
"""

import hashlib
import logging
import random
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import paho.mqtt.client as paho
from paho.mqtt.enums import MQTTErrorCode

from shoal.errors import LinkError, SettingError
from shoal.mqtt_version import Limits, MqttVersion, explain_reason, is_unsupported, limits_of

FIRST_DELAY_S, LONGEST_DELAY_S = 1.0, 60.0
CONNECT_TIMEOUT_S = 10.0
#: PUBACKs stay away for so long, though pings are answered: the broker is stuck, connect anew.
STUCK_S = 60.0
#: A connection that lasted so long was a good one: the next delay starts small again.
SETTLED_S = 10.0
QUEUE = 1_000
#: Bytes of a PUBLISH beside its topic and payload, at most.
_HEAD = 10
#: An answer that is none in this version of MQTT.
_FOREIGN = (MQTTErrorCode.MQTT_ERR_PROTOCOL, MQTTErrorCode.MQTT_ERR_CONN_REFUSED)
_NOT_YET_VALID, _EXPIRED = 9, 10  # X509_V_ERR_* of OpenSSL
_log = logging.getLogger("shoal.mqtt")


class Address(NamedTuple):
    """Where a broker listens."""

    host: str
    port: int


def parse_url(url: str) -> Address:
    """Take mqtts://host[:port] apart; SettingError if it is none."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port or 8883
    except ValueError as error:
        raise SettingError(f"broker {url!r}: {error}", "write mqtts://HOST:PORT") from error
    if parts.scheme != "mqtts" or not host or parts.path not in ("", "/"):
        raise SettingError(f"broker {url!r} is no address", "write mqtts://HOST:PORT")
    return Address(host, port)


def session_id(name: str, key: Path) -> str:
    """Client id that nobody but the owner of the key file can tell: `name` and a hash of the key.

    nats-server does not tie client ids to certificates: who knows another's id can throw it off
    and drop its session (docs/adr/0005-broker.md). Raises OSError.
    """
    return f"{name}-{hashlib.sha256(b'shoal session' + key.read_bytes()).hexdigest()[:32]}"


class Link:
    """One client's connection to the broker, kept up for ever.

    url            mqtts://host:port
    client_id      the client's name; the broker sees `session_id` of it
    session        what the broker sees instead: a session that outlives its first key
    ca, certificate, key   PEM files, read anew at each connection: renewal needs no restart
    subscriptions  filters, QoS 1, subscribed anew at each connection
    random         draws the delays between attempts: full jitter, up to 60 s
    dialect        the version of MQTT to begin with. A broker that refuses it, or hangs up on it
                   before it ever took one of them, is spoken to in the other at the next attempt

    What `publish` took is sent again after a reconnection until the broker has acknowledged it,
    but it is only in memory, and only while the dialect stays: what must not be lost is in an
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
        version: MqttVersion = MqttVersion.V3,
    ) -> None:
        self.address = parse_url(url)
        self._client_id, self._keepalive_s = client_id, keepalive_s
        self._session = session
        self._ca, self._certificate, self._key = ca, certificate, key
        self._subscriptions = list(subscriptions)
        self._on_message: Callable[[str, bytes], None] = lambda topic, payload: None
        self._on_connection: Callable[[bool], None] = lambda up: None
        self._will: Callable[[], tuple[str, bytes]] | None = None
        self._random = random
        # Not create_default_context: without a cafile it believes the system's CAs as well.
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._clean_session = clean_session
        self._version, self._is_known = version, False
        self._greeted, self._limits = False, Limits()
        self._client: paho.Client | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._up = False
        self._fault = "not started"
        self._subscribing = 0
        self._unacked = 0
        self._waiting_since = self._up_since = 0.0

    # --- for everybody ------------------------------------------------------------------------

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
        self._thread = thread  # now: one that has yet to start is not one that died

    def revive(self) -> bool:
        """Start the thread anew if it died unasked; whether it had. For whoever watches over it."""
        if self._thread is None or self._thread.is_alive() or self._stopping.is_set():
            return False
        self._went_down()
        self._start_thread()
        return True

    def stop(self) -> None:
        """Say goodbye (the last will stays unsaid) and end the thread."""
        self._stopping.set()
        if self._client is not None:
            self._client.disconnect()  # only queued, and the loop woken
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(CONNECT_TIMEOUT_S + 5)

    @property
    def connected(self) -> bool:
        """The broker took us in and granted every subscription, and the thread is alive."""
        return self._up and self._thread is not None and self._thread.is_alive()

    @property
    def unacked(self) -> int:
        """Messages that the broker has yet to acknowledge: for who has many large ones to send."""
        return self._unacked

    @property
    def fault(self) -> str:
        """Why it is not connected, one sentence with a hint; "" while it is."""
        return "" if self.connected else self._fault

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Hand a message to the broker, QoS 1. Returns before it is acknowledged.

        Raises LinkError when not connected, when too many are unacknowledged already, or when the
        broker takes no message of that size.
        """
        client = self._client
        if client is None or not self.connected:
            raise LinkError(f"broker {self.address.host}:{self.address.port}: {self._fault}")
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
                f"message of {size} bytes, the broker takes {most}",
                "raise its limit of packet size",
            )

    # --- the thread ---------------------------------------------------------------------------

    def _keep(self) -> None:
        attempt = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                self._fault = self._connect_and_serve()
            except Exception as error:  # noqa: BLE001 - whatever it is, the link must come back
                self._fault = explain(error)
            self._went_down()
            if self._stopping.is_set():
                return
            settled = self._up_since > began and time.monotonic() - self._up_since > SETTLED_S
            attempt = 0 if settled else attempt + 1
            delay = self._delay(attempt)
            _log.warning("broker %s:%d: %s; next try in %.1f s", *self.address, self._fault, delay)
            self._stopping.wait(delay)

    def _connect_and_serve(self) -> str:
        """One connection, from the look-up of the name to its end; return why it ended."""
        self._fault, self._greeted = "connecting", False
        self._context.load_verify_locations(self._ca)
        self._context.load_cert_chain(self._certificate, self._key)
        if self._client and self._client.max_inflight_messages > self._limits.in_flight:
            self._begin_anew(self._limits)
        client = self._client = self._client or self._make_client()
        if self._will is not None:
            topic, payload = self._will()
            client.will_set(topic, payload, qos=1, retain=True)
        client.reconnect()
        goodbyes = 0
        while goodbyes < 3:
            rc = client.loop(1.0)
            if rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
                return self._why(rc)
            if self._is_stuck():
                return f"broker acknowledged nothing for {STUCK_S:.0f} s"
            if self._stopping.is_set():
                client.disconnect()
                goodbyes += 1
        return "stopped"

    def _went_down(self) -> None:
        was_up, self._up = self._up, False
        open_still = self._client.socket() if self._client is not None else None
        if open_still is not None:
            open_still.close()
        if was_up:
            self._tell(self._on_connection, False)

    def _why(self, rc: MQTTErrorCode) -> str:
        if not self._greeted and (rc in _FOREIGN or not self._is_known):
            return self._speak_the_other(rc)
        return self._fault if self._fault not in ("", "connecting") else paho.error_string(rc)

    def _speak_the_other(self, rc: MQTTErrorCode) -> str:
        """The broker does not answer in this version of MQTT, or not at all."""
        spoken, self._version, self._is_known = self._version, self._version.other, False
        self._begin_anew(Limits())
        why = paho.error_string(rc).rstrip(".")
        return f"no answer to MQTT {spoken.value} ({why}); trying MQTT {self._version.value}"

    def _begin_anew(self, limits: Limits) -> None:
        """With another of paho's clients: it cannot change what it was made for."""
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

    def _connected_to(self, client: paho.Client, _: Any, __: Any, reason: Any, said: Any) -> None:
        self._greeted = not is_unsupported(reason)
        if reason.is_failure:
            self._fault = f"broker refused: {explain_reason(reason)}"
            return
        self._is_known = True
        if not self._agree(limits_of(said, clean=self._clean_session)):
            client.disconnect()
            return
        with self._lock:  # what is unacknowledged goes out again now, and its clock starts anew
            self._waiting_since = time.monotonic()
        if not self._subscriptions:
            self._came_up()
            return
        _, mid = client.subscribe([(topic, 1) for topic in self._subscriptions])
        self._subscribing = mid or 0

    def _agree(self, limits: Limits) -> bool:
        """Whether this connection can keep to what the broker takes; the next one will."""
        most = min(self._limits.in_flight, limits.in_flight)
        if limits.faults:
            self._fault = f"broker {' and '.join(limits.faults)}; use one that does"
        elif most < self._limits.in_flight:
            self._fault = f"broker takes {most} messages at once; connecting anew"
        self._limits = limits._replace(in_flight=most)
        return self._fault == "connecting"

    def _ended(self, _: paho.Client, __: Any, flags: Any, reason: Any, ___: Any) -> None:
        if flags.is_disconnect_packet_from_server:
            self._fault = f"broker ended the connection: {explain_reason(reason)}"

    def _subscribed(self, client: paho.Client, _: Any, mid: int, reasons: Any, __: Any) -> None:
        if mid != self._subscribing:
            return
        asked = zip(self._subscriptions, reasons, strict=False)
        refused = [topic for topic, reason in asked if reason.is_failure]
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
        _log.info("broker %s:%d: connected", *self.address)
        self._tell(self._on_connection, True)

    def _received(self, _: paho.Client, __: Any, message: paho.MQTTMessage) -> None:
        self._tell(self._on_message, message.topic, message.payload)

    def _acknowledged(self, _: paho.Client, __: Any, ___: int, reason: Any, ____: Any) -> None:
        if reason.is_failure:  # only MQTT 5 says so; the outbox says it again in any case
            _log.warning("broker did not take a message: %s", explain_reason(reason))
        with self._lock:
            self._unacked = max(0, self._unacked - 1)
            self._waiting_since = time.monotonic()

    def _tell(self, callback: Callable[..., None], *args: Any) -> None:
        try:
            callback(*args)
        except Exception:  # noqa: BLE001 - one bad message must not end the link
            _log.exception("callback of the link failed; the link goes on")


def explain(error: BaseException) -> str:
    """One sentence on why a TLS connection to the broker could not be made, with a hint."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code == _NOT_YET_VALID:
            return "broker's certificate is not valid yet; is this machine's clock right?"
        if error.verify_code == _EXPIRED:
            return "broker's certificate has expired; restart the controller, or set the clock"
        return f"broker's certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}; did the broker refuse this certificate?"
    if isinstance(error, FileNotFoundError):
        return f"no file {error.filename}; enrol anew" if error.filename else str(error)
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return f"{type(error).__name__}: {error}"


def _without_nagle(_: paho.Client, __: Any, sock: Any) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _leave_writing_to_the_loop(_: paho.Client, __: Any, ___: Any) -> None:
    """Nothing to do: that it is set is what matters."""
