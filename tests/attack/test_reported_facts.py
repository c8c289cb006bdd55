"""Attack: what a device says of itself is deep, endless, huge, or obeyed by a terminal."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from api.controller_app import ControllerApp, is_problem
from fakes import memory_folder
from fleet import Fleet
from shoal import topics, wire
from shoal.controller.ingest.ingest import ingest
from shoal.controller.store import tables
from shoal.wire import Installed, Inventory


def deep(levels: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(levels):
        found = {"in": found}
    return found


FACTS: dict[str, dict[str, Any]] = {
    "a hundred levels": deep(100),
    "five thousand entries": {f"fact {i}": i for i in range(5_000)},
    "lists of lists": {"all": [[[0] * 100] * 9] * 9},
    "a text of 40 kB": {"cpu": "x" * 40_000},
    "a name of 10 kB": {"n" * 10_000: 1},
    "a number beyond every reader": {"ram_mb": 2**63},
    "characters that a terminal obeys": {"os": "\x1b[2J\x00\u202e" * 20, "\x07": "\x08"},
    "no numbers": {"temp": float("nan"), "load": float("inf")},
}


def is_bounded(value: Any, depth: int = 0) -> bool:
    if isinstance(value, str):
        return len(value) <= 2_000 and value.isprintable()
    if isinstance(value, dict):
        texts = all(len(k) <= 80 and k.isprintable() for k in value)
        return texts and depth <= 6 and all(is_bounded(v, depth + 1) for v in value.values())
    if isinstance(value, list):
        return depth <= 6 and all(is_bounded(v, depth + 1) for v in value)
    return value is None or abs(value) <= 2**53


def size(value: Any) -> int:
    entries = value.values() if isinstance(value, dict) else value
    return 1 + sum(map(size, entries)) if isinstance(value, (dict, list)) else 1


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with memory_folder() as folder:
        fleet = Fleet(folder)
        fleet.station("cam-1", start=False)
        yield fleet


def take(fleet: Fleet, **change: Any) -> Any:
    plain: dict[str, Any] = {
        "device": "cam-1", "boot": "", "seq": 0, "sent_s": 1.0, "agent": "0.1.0",
        "profile": "rpi4", "ring": "stable", "site": "north", "line": "7", "labels": {},
        "facts": {}, "installed": [], "floors": {},
    }  # fmt: skip
    ingest(fleet.ctx, [(topics.up("cam-1", "inventory"), wire.encode(Inventory(**plain | change)))])
    return next(row for row in fleet.rows_of(tables.device) if row.name == "cam-1")


@pytest.mark.parametrize("kind", FACTS)
def test_an_inventory_is_kept_within_bounds_with(kind: str, fleet: Fleet) -> None:
    row = take(fleet, facts=FACTS[kind], agent=kind)
    assert row.agent == kind, "the rest of the inventory counts"
    assert is_bounded(row.facts)
    assert size(row.facts) <= 2_100


@pytest.mark.parametrize("kind", sorted(FACTS.keys() - {"no numbers"}))  # JSON holds none
def test_an_enrolment_is_kept_within_the_same_bounds_with(
    kind: str, controller: ControllerApp
) -> None:
    response = controller.enrol("cam-9", controller.join_token(), facts=FACTS[kind])
    assert response.status_code in (201, 413, 422), response.json
    if response.status_code == 201:
        kept = controller.get("/api/v1/devices/cam-9").json["facts"]
        assert is_bounded(kept)
        assert size(kept) <= 2_100


def test_labels_and_lines_are_cut_and_the_device_says_why(fleet: Fleet) -> None:
    row = take(fleet, line="l" * 5_000, labels={f"label {i}": "v" * 900 for i in range(60)})
    assert len(row.line) == 63
    assert len(row.labels) == 32
    assert "up to 32, of 63 readable characters" in row.error


@pytest.mark.parametrize("label", ["x" * 64, "\x1b[2J"])
def test_a_label_that_no_inventory_could_have_is_refused_at_enrolment(
    label: str, controller: ControllerApp
) -> None:
    response = controller.enrol("cam-9", controller.join_token(), labels={"hall": label})
    assert is_problem(response, 422, "bad-setting")


def test_models_that_cannot_be_are_not_kept(fleet: Fleet) -> None:
    odd = Installed(
        model="../x", release="../x@1", variant="fp32", sha256="0" * 64, slot="a", role="release",
        since_s=1.0,
    )  # fmt: skip
    good = msgspec.structs.replace(odd, model="pumps", release="pumps@1")
    many = [msgspec.structs.replace(good, model=f"m{i}") for i in range(300)]
    assert take(fleet, installed=[odd, good]).releases == {"pumps": "pumps@1"}
    assert len(take(fleet, installed=many).releases) == 200
