"""A plant's own Mosquitto on a free loopback port, and a client at it that is not ours."""

import os
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest

from plant import eventually


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 0.5).close()
    except OSError:
        return False
    return True


class PlantBroker:
    """Started and killed at will, always on the same port; retained messages survive a stop."""

    def __init__(self, folder: Path) -> None:
        found = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
        if found is None:
            pytest.skip("no mosquitto; apt-get install mosquitto")
        self._binary, self.port = found, free_port()
        self._conf = folder / "plant.conf"
        self._conf.write_text(f"listener {self.port} 127.0.0.1\nallow_anonymous true\n")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._process = subprocess.Popen(
            [self._binary, "-c", str(self._conf)], stderr=subprocess.DEVNULL
        )
        eventually(lambda: answers(self.port), "a broker")

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()


class Client:
    """Plain paho: publishes, and records what it hears; back again by itself after a kill."""

    def __init__(self, broker: PlantBroker, *topics: str, will: tuple[str, bytes] | None = None):
        self.heard: list[tuple[str, bytes]] = []
        self._ready, self._topics = threading.Event(), topics
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self.client.reconnect_delay_set(1, 1)
        self.client.on_connect = self._connected
        self.client.on_subscribe = lambda *_: self._ready.set()
        self.client.on_message = lambda _, __, m: self.heard.append((m.topic, m.payload))
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

    def say(self, topic: str, payload: bytes | str, *, retain: bool = False) -> None:
        self.client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(20)

    def vanish(self) -> None:
        """The socket breaks without a goodbye: the broker says the will."""
        self.client.loop_stop()
        self.client.socket().close()

    def stop(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
