"""A real agent process is ordered to remove its model while requests and a program use it."""

import shutil
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from real_agents import Enrolled, Process, enrol, put_in_service
from shoal import wire
from shoal.agent import Session
from shoal.agent.installed.io.journal import SqliteJournal
from shoal.agent.installed.io.slots import DiskSlots
from shoal.agent.installed.record import Record
from shoal.errors import AbsentError
from shoal.trust import removal
from waiting import eventually

ROW = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}


@pytest.fixture
def site(tmp_path: Path) -> Enrolled:
    """A device whose model is to be removed some seconds from now."""
    made = enrol(tmp_path)
    slot = put_in_service(made.folder)
    DiskSlots(made.folder / "models").point("parts", slot)
    order = removal("parts", rollout="u-1", attempt=1)
    order = msgspec.structs.replace(order, not_before_s=float(int(time.time()) + 6))
    signed = made.repository.orders("cam-1", 1, [order])
    journal = SqliteJournal(made.folder / "journal.db")
    payload = wire.encode(wire.Assignment(signed=signed, urls={}))
    journal.save_assignment(payload, journal.floors())
    journal.close()
    return made


def record(folder: Path) -> Record:
    journal = SqliteJournal(folder / "journal.db")
    found = journal.records()["parts"]
    journal.close()
    return found


def test_it_stops_serving_deletes_the_files_and_stays_so_after_a_restart(site: Enrolled) -> None:
    folder = site.folder
    process = Process(folder)
    process.wait_until()
    assert process.request("POST", "/v2/models/parts/infer", ROW)[0] == 200
    with Session("parts", folder, look_s=0.1) as session:
        rows = np.array([[1, 2, 3, 4]], np.float32)
        assert session.infer(rows).shape[0] == 1
        process.wait_for(lambda: process.request("GET", "/v2/models/parts/ready")[0] != 200)
        status, answer = process.request("POST", "/v2/models/parts/infer", ROW)
        assert status in (404, 503)
        assert "parts" in answer["error"]
        eventually(lambda: session.release == "", "the program stops serving")
        with pytest.raises(AbsentError):
            session.infer(rows)
    process.wait_for(lambda: not any((folder / "models").iterdir()))
    (model,) = process.request("GET", "/status")[1]["models"]
    assert (model["release"], model["wanted"]) == ("", "removal")
    assert process.end() == 0
    after = record(folder)
    assert (after.state.name, after.serving, after.spare) == ("SUCCEEDED", None, None)
    again = Process(folder)
    again.wait_for(lambda: again.request("GET", "/v2/health/live")[0] == 200)
    assert again.request("GET", "/v2/models/parts/ready")[0] != 200
    assert again.end() == 0
    shutil.rmtree(folder)
