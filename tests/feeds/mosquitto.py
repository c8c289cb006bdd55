"""A plant's Mosquitto on a free loopback port, and a plain paho client of it."""

import threading
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho

from feeds.processes import Server
from ports import free_port
from programs import mosquitto


class PlantBroker(Server):
    """A Mosquitto without authentication."""

    def __init__(self, folder: Path) -> None:
        conf = folder / "plant.conf"
        super().__init__(free_port(), mosquitto(), "-c", str(conf))
        conf.write_text(f"listener {self.port} 127.0.0.1\nallow_anonymous true\n")

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"


class Client:
    """Plain paho: publishes, and records messages; reconnects by itself after a kill."""

    def __init__(self, broker: PlantBroker, *topics: str, will: tuple[str, bytes] | None = None):
        self.received: list[tuple[str, bytes]] = []
        self._ready, self._topics = threading.Event(), topics
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self.client.reconnect_delay_set(1, 1)
        self.client.on_connect = self._connected
        self.client.on_subscribe = lambda *_: self._ready.set()
        self.client.on_message = lambda _, __, m: self.received.append((m.topic, m.payload))
        if will is not None:
            self.client.will_set(*will)
        self.client.connect("127.0.0.1", broker.port)
        self.client.loop_start()
        assert self._ready.wait(20)

    def _connected(self, client: Any, *_: Any) -> None:
        if self._topics:
            client.subscribe([(topic, 1) for topic in self._topics])
        else:
            self._ready.set()

    def publish(self, topic: str, payload: bytes | str, *, retain: bool = False) -> None:
        self.client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(20)

    def drop(self) -> None:
        """Close the socket without a DISCONNECT: the broker publishes the will."""
        self.client.loop_stop()
        self.client.socket().close()

    def stop(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
