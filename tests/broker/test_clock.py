"""A real agent process hears over a real broker what the controller's clock shows."""

import json
import subprocess
import sys
import time
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from sqlalchemy import insert

from broker.real import Mosquitto, Nats
from broker.test_agent_at_mosquitto import Desk
from controllers import make_context
from ports import free_port
from real_agents import Process, enrol
from shoal import topics, wire
from shoal.controller.fleet import devices
from shoal.controller.host.context import Context
from shoal.controller.ingest.ingest import ingest
from shoal.controller.store import tables
from waiting import eventually

pytestmark = [pytest.mark.broker, pytest.mark.slow]
#: The controller's clock shows so many seconds less than the agent's.
BEHIND_S = 93.0


class Taking(Desk):
    """The controller's end: ingests into a real database and publishes the replies."""

    def __init__(self, port: int, pki: Path, ctx: Context) -> None:
        super().__init__(port, pki, paho.MQTTv311)
        self.ctx = ctx

    def take(self, client, _, message) -> None:
        for device, answers in ingest(self.ctx, [(message.topic, message.payload)]).items():
            for answer in answers:
                topic = topics.down(device, wire.DOWN_KIND[type(answer)])
                client.publish(topic, wire.encode(answer), 1)


@pytest.mark.parametrize("kind", [Nats, Mosquitto], ids=["nats-server", "mosquitto"])
def test_a_wrong_clock_is_reported_to_the_technician_and_to_the_operator(tmp_path, kind):
    port = free_port()
    folder, pki, _ = enrol(tmp_path, broker=f"mqtts://localhost:{port}")
    broker = kind(tmp_path / "broker", pki, port)
    broker.start()
    broker.admit(("cam-1",))
    ctx = make_context(tmp_path, lambda: time.time() - BEHIND_S)
    empty = {"labels": {}, "releases": {}, "variants": {}, "facts": {}}
    with ctx.store.write() as db:
        db.execute(insert(tables.device).values(name="cam-1", state="enrolled", **empty))
    desk = Taking(broker.port, pki, ctx)
    desk.start()
    agent = Process(folder)
    try:
        eventually(lambda: devices.get_device(ctx, "cam-1").clock_error_s >= 0, "the skew", 60)
        known = devices.get_device(ctx, "cam-1")
        assert abs(known.clock_skew_s - BEHIND_S) <= known.clock_error_s + 0.05
        assert known.clock_error_s < 2
        status = [sys.executable, "-m", "shoal.agent", "status", "--folder", str(folder)]
        shown = subprocess.run(status, capture_output=True, text=True)
        assert shown.returncode == 1
        assert "the clock is 93 s ahead of the controller's" in shown.stdout
        data = json.loads(subprocess.run([*status, "--json"], capture_output=True).stdout)
        assert data["clock"]["skew_s"] == pytest.approx(BEHIND_S, abs=2)
        with ctx.store.read() as db:
            (alert,) = db.execute(tables.alert.select()).all()
        assert "cam-1 by +93 s" in alert.detail
        assert agent.end() == 0
    finally:
        agent.end(9)
        desk.end()
        broker.stop()
