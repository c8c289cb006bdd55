"""An update that arrives in chunks: each costs the same, and what is on disk survives a restart."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.controller.federated.aggregation import client_updates
from shoal.controller.federated.io.round_files import RoundFiles
from shoal.federated.chunks import cut

PAYLOAD = bytes(range(250)) * 40


class CountedFiles(RoundFiles):
    """Files that count what is asked of them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.calls: Counter[str] = Counter()

    def has(self, *which: Any) -> bool:
        self.calls["has"] += 1
        return super().has(*which)

    def size(self, *which: Any) -> int:
        self.calls["size"] += 1
        return super().size(*which)

    def put(self, *which: Any) -> None:
        self.calls["put"] += 1
        super().put(*which)

    def get(self, *which: Any) -> bytes | None:
        self.calls["get"] += 1
        return super().get(*which)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CountedFiles:
    monkeypatch.setattr("shoal.durable.os.fsync", lambda _: None)
    return CountedFiles(tmp_path)


def round_of(files: RoundFiles) -> Any:
    """A round of a model of 10 000 numbers, as a controller that has just started has it."""
    plan = SimpleNamespace(secure=None, learning=SimpleNamespace(terms={}))
    task = SimpleNamespace(plan=SimpleNamespace(gateways={}))
    return SimpleNamespace(id="walk.1", files=files, plan=plan, task=task, size=10_000, incoming={})


def test_a_chunk_costs_the_same_however_many_there_are(files: CountedFiles) -> None:
    active = round_of(files)
    *chunks, last = cut(PAYLOAD, 25)
    assert len(chunks) == 399
    calls = []
    for chunk in chunks:
        before = files.calls.total()
        assert client_updates.keep_chunk(active, "d0", chunk) == ("", None)
        calls.append(files.calls.total() - before)
    assert set(calls[1:]) == {1}
    assert client_updates.missing_chunks(active, "d0") == [399]
    assert client_updates.keep_chunk(active, "d0", last).payload == PAYLOAD


def test_a_restarted_controller_asks_for_what_is_not_on_disk(files: CountedFiles) -> None:
    chunks = cut(PAYLOAD, 1_000)
    for chunk in chunks[::2]:
        client_updates.keep_chunk(round_of(files), "d0", chunk)
    again = round_of(files)
    assert client_updates.missing_chunks(again, "d0") == [1, 3, 5, 7, 9]
    assert client_updates.keep_chunk(again, "d0", chunks[0]).ignored == "twice"
    for chunk in chunks[1::2]:
        found = client_updates.keep_chunk(again, "d0", chunk)
    assert found.payload == PAYLOAD


def test_chunks_of_a_device_that_trained_again_replace_those_of_before(files: CountedFiles) -> None:
    active, other = round_of(files), PAYLOAD[::-1]
    for chunk in cut(PAYLOAD, 1_000)[:7]:
        client_updates.keep_chunk(active, "d0", chunk)
    new = cut(other, 1_000)
    assert client_updates.keep_chunk(active, "d0", new[1]).ignored == "foreign"
    found = [client_updates.keep_chunk(active, "d0", chunk) for chunk in new]
    assert found[-1].payload == other
    client_updates.drop_chunks(active, "d0")
    assert list((files.folder / "walk.1").iterdir()) == []
    assert client_updates.missing_chunks(active, "d0") == []
