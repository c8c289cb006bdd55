"""What becomes of an order on one device: real disk, journal, trust and wire; virtual clock."""

import datetime
import hashlib
from pathlib import Path

import msgspec
import numpy as np
import pytest

from devices import MODEL, Cloud, Device
from repositories import DAY
from shoal import delta
from shoal.agent.host.hours import parse
from shoal.errors import LinkError

pytestmark = pytest.mark.scenario

WHOLE = [
    "QUEUED",
    "DOWNLOADING",
    "DOWNLOADED",
    "INSTALLING",
    "PROBING",
    "ACTIVATING",
    "OBSERVING",
    "COMMITTING",
    "SUCCEEDED",
]


@pytest.fixture
def device(tmp_path: Path, cloud: Cloud) -> Device:
    """A device that serves release 1."""
    device = Device(tmp_path / "device", cloud)
    device.assign(cloud.release(1))
    device.run()
    assert device.serves() == "lot-codes@1"
    return device


def again(order, attempt: int = 2, rollout: str = ""):
    return msgspec.structs.replace(order, attempt=attempt, rollout=rollout or order.rollout)


def test_an_update_reports_every_state_once_and_serves(device: Device, cloud: Cloud) -> None:
    device.assign(cloud.release(2))
    device.run()
    assert device.serves() == "lot-codes@2"
    assert device.states("r-2") == WHOLE
    assert device.outbox.waiting == 0


def test_the_probe_is_got_ready_beside_the_download_and_used_once(
    device: Device, cloud: Cloud
) -> None:
    device.assign(cloud.release(2))
    device.run()
    assert device.probes_waiting == [True, True]
    assert not device.probe_waits


def test_nothing_waits_to_probe_what_does_not_come(
    device: Device, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The small files have come, and then the link breaks; in the end it is given up."""
    order, real, prepared = cloud.release(2, weights=trained(2)), cloud.get, device.probes_prepared
    lost = hashlib.sha256(trained(2)).hexdigest()

    def get(url: str) -> bytes:
        if url.endswith(lost):
            raise LinkError("no route")
        return real(url)

    monkeypatch.setattr(cloud, "get", get)
    device.assign(order)
    device.run()
    assert (device.state, device.probe_waits) == ("DOWNLOADING", False)
    assert device.probes_prepared == prepared + 1, "not for every try"
    device.assign()
    device.run()
    assert (device.state, device.probe_waits) == ("CANCELED", False)


def test_the_same_assignment_again_changes_nothing(device: Device, cloud: Cloud) -> None:
    payload = device.assign(cloud.release(2))
    device.run()
    device.deliver("assignment", payload)
    device.restart()
    device.deliver("assignment", payload)
    device.run()
    assert device.states("r-2") == WHOLE


def test_a_swap_closes_the_window_so_that_none_mixes_releases(device: Device, cloud: Cloud) -> None:
    device.assign(cloud.release(2))
    device.run()
    releases = [w.release for w in device.windows()]
    assert releases == sorted(releases)
    assert {"lot-codes@1", "lot-codes@2"} <= set(releases)
    for release in ("lot-codes@1", "lot-codes@2"):
        assert len({w.reference for w in device.windows() if w.release == release}) == 1


FAILURES = {
    "wrong labels": ({"worst_error": 0.5, "labels_differ": 3}, "golden-mismatch"),
    "numbers off": ({"worst_error": 0.01}, "golden-mismatch"),
    "slow": ({"p99_ms": 900.0}, "too-slow"),
    "big": ({"rss_mb": 9_000.0}, "too-big"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_release_that_fails_its_probe_never_serves(
    kind: str, device: Device, cloud: Cloud
) -> None:
    measures, cause = FAILURES[kind]
    device.measures = {"int8-u8s8-pc": measures, "fp32": measures}
    device.assign(cloud.release(2))
    device.run()
    assert device.serves() == "lot-codes@1"
    last = device.updates()[-1]
    assert (last.state, last.cause) == ("FAILED", cause)
    assert "ACTIVATING" not in device.states("r-2")
    assert last.detail
    assert last.facts


def test_a_variant_over_its_budget_makes_room_for_the_next(device: Device, cloud: Cloud) -> None:
    device.measures = {"int8-u8s8-pc": {"p99_ms": 900.0}}
    device.assign(cloud.release(2))
    device.run()
    assert device.serves() == "lot-codes@2"
    assert device.record.serving.variant == "fp32"


@pytest.mark.parametrize("flaw", ["failing", "gives_nan"])
def test_a_release_that_misbehaves_in_service_is_rolled_back(
    flaw: str, device: Device, cloud: Cloud
) -> None:
    device.requests_per_tick = 10
    getattr(device, flaw).add(2)
    device.assign(cloud.release(2))
    device.run()
    assert device.serves() == "lot-codes@1"
    last = device.updates()[-1]
    assert (last.state, last.cause) == ("FAILED", "unhealthy")
    assert last.facts["outcome"] == "rolled_back"
    assert "SUCCEEDED" not in device.states("r-2")


def test_a_release_that_does_not_load_is_rolled_back(device: Device, cloud: Cloud) -> None:
    device.unloadable.add(2)
    device.assign(cloud.release(2))
    device.run()
    assert device.serves() == "lot-codes@1"
    assert (device.state, device.record.cause) == ("FAILED", "unusable-model")


def test_the_third_start_in_observing_rolls_back(device: Device, cloud: Cloud) -> None:
    device.assign(cloud.release(2))
    device.run(5)
    for _ in range(2):
        assert device.serves() == "lot-codes@2"
        device.restart()
        device.run(3)
    device.restart()
    device.run()
    assert device.serves() == "lot-codes@1"
    assert (device.state, device.record.cause) == ("FAILED", "crash-loop")


def test_one_start_in_observing_does_not(device: Device, cloud: Cloud) -> None:
    device.assign(cloud.release(2))
    device.run(5)
    device.restart()
    device.run()
    assert device.serves() == "lot-codes@2"
    assert device.states("r-2") == WHOLE


def test_a_newer_order_supersedes_one_that_is_stuck(device: Device, cloud: Cloud) -> None:
    two, three = cloud.release(2), cloud.release(3)
    cloud.reachable = False
    device.assign(two)
    device.run(10)
    assert device.state == "QUEUED"
    cloud.reachable = True
    device.assign(three)
    device.run()
    assert device.serves() == "lot-codes@3"
    assert device.states("r-2") == ["QUEUED", "CANCELED"]


def test_a_newer_order_ends_observing(device: Device, cloud: Cloud) -> None:
    device.assign(cloud.release(2))
    device.run(5)
    assert device.state == "OBSERVING"
    device.assign(cloud.release(3))
    device.run()
    assert device.serves() == "lot-codes@3"
    assert device.states("r-2")[-2:] == ["ROLLING_BACK", "CANCELED"]


def test_an_order_may_be_withdrawn_until_it_is_activated(device: Device, cloud: Cloud) -> None:
    two = cloud.release(2)
    cloud.reachable = False
    device.assign(two)
    device.run(5)
    device.assign()
    device.run(5)
    assert device.state == "CANCELED"
    assert device.serves() == "lot-codes@1"


def test_the_operator_may_go_back_to_an_older_release(device: Device, cloud: Cloud) -> None:
    one = device.record.order
    device.assign(cloud.release(2))
    device.run()
    sent = device.downloads.sent
    device.assign(again(one, rollout="r-back"))
    device.run()
    assert device.serves() == "lot-codes@1"
    assert device.states("r-back") == WHOLE
    assert device.downloads.sent == sent  # every file was still in the other slot


def trained(seed: int) -> bytes:
    """Weights as float32; another seed is a little more training."""
    start = np.random.default_rng(0).normal(size=20_000)
    return (start + 1e-4 * np.random.default_rng(seed).normal(size=20_000)).astype("<f4").tobytes()


def test_what_differs_is_fetched_instead_of_the_whole(device: Device, cloud: Cloud) -> None:
    device.assign(cloud.release(2, weights=trained(1)))
    device.run()
    whole = device.downloads.sent
    order = cloud.release(3, weights=trained(2))
    cloud.offer_deltas()
    device.assign(order)
    device.run()
    assert device.serves() == "lot-codes@3"
    facts = next(m.facts for m in device.updates() if m.facts.get("saved_by_delta"))
    assert facts["bytes"] == device.downloads.sent - whole < 0.8 * whole
    assert facts["bytes"] + facts["saved_by_delta"] == pytest.approx(whole, rel=0.05)


def test_a_delta_with_a_wrong_result_costs_a_download_and_no_more(
    device: Device, cloud: Cloud
) -> None:
    device.assign(cloud.release(2, weights=trained(1)))
    device.run()
    order = cloud.release(3, weights=trained(2))
    cloud.offer_deltas()
    wrong = delta.make(trained(1), trained(9))
    cloud.deltas = {key: wrong if len(d) > 10_000 else b"" for key, d in cloud.deltas.items()}
    device.assign(order)
    device.run()
    assert device.serves() == "lot-codes@3"
    assert device.states("r-3") == WHOLE


def test_but_not_below_the_release_counter(device: Device, cloud: Cloud) -> None:
    one = device.record.order
    device.assign(cloud.release(2, counter=7))
    device.run()
    device.assign(again(one, rollout="r-back"))
    device.run()
    assert device.serves() == "lot-codes@2"
    assert (device.state, device.record.cause) == ("REJECTED", "stale")


def test_what_serves_already_is_not_installed_again(device: Device, cloud: Cloud) -> None:
    device.assign(again(device.record.order))
    device.run(5)
    assert [u.state for u in device.updates() if u.attempt == 2] == ["QUEUED", "ALREADY_INSTALLED"]


def test_a_candidate_that_was_signed_as_a_release_is_kept_as_it_is(
    tmp_path: Path, cloud: Cloud
) -> None:
    device = Device(tmp_path, cloud, ring="canary")
    device.assign(cloud.release(1, role="candidate"))
    device.run()
    assert device.record.serving.role == "candidate"
    engine = device.agent.serving[MODEL].engine
    device.assign(again(cloud.release(1)))
    device.run(5)
    assert device.state == "ALREADY_INSTALLED"
    assert device.record.serving.role == "release"
    assert device.agent.serving[MODEL].engine is engine
    device.restart()
    assert device.serves() == "lot-codes@1"


REFUSALS = {
    "for another profile": (lambda c: c.release(2, profiles={}), "unsupported-profile"),
    "for a newer onnxruntime": (lambda c: c.release(2, ort=">=9"), "unusable-model"),
    "with a newer opset": (lambda c: c.release(2, opset=99), "unusable-model"),
    "signed for canaries": (lambda c: c.release(2, role="candidate"), "misdirected"),
    "another than ordered": (
        lambda c: msgspec.structs.replace(
            c.release(2),
            version=3,
            path="release/lot-codes/3/manifest.json",
        ),
        "bad-signature",
    ),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_release_is_rejected_that_is(kind: str, device: Device, cloud: Cloud) -> None:
    make, cause = REFUSALS[kind]
    device.assign(make(cloud))
    device.run(10)
    assert device.serves() == "lot-codes@1"
    assert (device.state, device.record.cause) == ("REJECTED", cause)
    assert device.record.detail
    device.restart()
    device.run(10)
    assert device.state == "REJECTED"


def test_expired_metadata_means_no_new_install_and_serving_on(device: Device, cloud: Cloud) -> None:
    two = cloud.release(2)
    device.clock.now += 3 * DAY
    cloud.repository.now += 3 * DAY
    device.assign(two)
    device.run(10)
    assert device.serves() == "lot-codes@1"
    assert (device.state, device.record.cause) == ("REJECTED", "stale")
    assert "stale" in [f.cause for f in device.faults()]


def test_an_assignment_for_another_device_is_reported_as_an_attack(
    device: Device, cloud: Cloud
) -> None:
    from shoal import wire

    signed = cloud.repository.orders("cam-2", 9, [cloud.release(2)])
    device.deliver("assignment", wire.encode(wire.Assignment(signed=signed, urls=cloud.urls())))
    device.run(5)
    assert device.serves() == "lot-codes@1"
    assert [(f.cause, f.severity) for f in device.faults()] == [("misdirected", "critical")]


def test_garbage_from_the_broker_is_reported_once_and_counted(device: Device) -> None:
    for _ in range(100):
        device.deliver("assignment", b"\xc1")
    device.run(400)
    faults = [f for f in device.faults() if f.cause == "unreadable-message"]
    assert [f.count for f in faults] == [1, 99]
    assert device.serves() == "lot-codes@1"


def test_a_deadline_ends_what_cannot_be_fetched(device: Device, cloud: Cloud) -> None:
    deadline_s, cloud.reachable = device.clock.now + 30, False
    device.assign(msgspec.structs.replace(cloud.release(2), deadline_s=deadline_s))
    allowed_s = deadline_s - cloud.repository.now  # from when it was signed
    device.run(allowed_s - 5)
    assert device.state == "QUEUED", "its clock is not known to be right: it counts from receipt"
    device.run(10)
    assert (device.state, device.record.cause) == ("TIMED_OUT", "deadline")


def test_an_order_waits_for_its_time(device: Device, cloud: Cloud) -> None:
    device.assign(msgspec.structs.replace(cloud.release(2), not_before_s=device.clock.now + 30))
    device.run(20)
    assert device.state == "QUEUED"
    device.run(60)
    assert device.serves() == "lot-codes@2"


def local(at_s: float) -> str:
    return datetime.datetime.fromtimestamp(at_s, datetime.UTC).astimezone().strftime("%H:%M")


def test_downloads_keep_to_their_hours_and_what_has_come_is_kept(
    device: Device, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    opens = device.clock.now // 60 * 60 + 600
    hours = parse(f"{local(opens)}-{local(opens + 600)}")
    device.settings = device.settings._replace(hours=hours)
    device.restart()
    device.assign(cloud.release(2))
    device.run(60)
    assert device.state == "DOWNLOADING"
    sent = device.downloads.sent
    device.clock.now = opens
    real = device.power.point

    def late(name: str) -> None:
        device.clock.now += 900 if name.startswith("downloading") else 0
        real(name)

    with monkeypatch.context() as patch:
        patch.setattr(device.power, "point", late)
        device.run(30)
    assert device.state == "DOWNLOADING"  # the hours ended within the first file
    part = next((device.folder / "models" / MODEL / "stage").glob("*.part")).stat().st_size
    device.clock.now = opens + DAY
    device.run()
    assert device.serves() == "lot-codes@2"
    assert not any(fault.cause == "download" for fault in device.faults())
    facts = next(m.facts for m in device.updates()[::-1] if m.state == "DOWNLOADED")
    manifest = cloud.manifest(2, 1, MODEL, b"")
    whole = sum(file.size for file in manifest.files_for("x86-vnni"))
    assert part > 0
    assert facts["bytes"] == whole - part
    assert device.downloads.sent - sent == facts["bytes"]


def test_a_file_that_is_not_there_fails_the_attempt(device: Device, cloud: Cloud) -> None:
    two = cloud.release(2)
    manifest = cloud.manifest(2, 1, MODEL, b"")
    del cloud.blobs[manifest.variants[0].file.sha256]
    device.assign(two)
    device.run()
    assert (device.state, device.record.cause) == ("FAILED", "download")


def test_addresses_that_come_late_are_used(device: Device, cloud: Cloud) -> None:
    two = cloud.release(2)
    device.assign(two, urls={})
    device.run(3)
    assert device.state == "QUEUED"
    device.assign(two)
    device.run()
    assert device.serves() == "lot-codes@2"


def test_a_full_disk_rejects_before_anything_is_fetched(
    device: Device, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device.slots, "free_bytes", lambda: 1000)
    device.assign(cloud.release(2))
    device.run(10)
    assert (device.state, device.record.cause) == ("REJECTED", "disk-full")
    assert device.serves() == "lot-codes@1"


def test_several_models_live_side_by_side(device: Device, cloud: Cloud) -> None:
    device.assign(cloud.release(2), cloud.release(1, model="torque"))
    device.run()
    assert {s.engine.manifest.release for s in device.agent.serving.values()} == {
        "lot-codes@2",
        "torque@1",
    }
    assert {r.state.name for r in device.journal.records().values()} == {"SUCCEEDED"}


def test_a_device_without_a_network_serves_from_its_disk(device: Device, cloud: Cloud) -> None:
    device.connect(up=False)
    cloud.reachable = False
    device.restart()
    assert device.serves() == "lot-codes@1"
    assert device.infer() is not None


def test_a_lost_journal_costs_neither_service_nor_the_counter_floor(
    device: Device, cloud: Cloud
) -> None:
    one = device.record.order
    device.assign(cloud.release(2, counter=7))
    device.run()
    device.stop()
    for path in device.folder.glob("journal.db*"):
        path.write_bytes(b"not a database, by any means" * 10)
    device.start()
    device.version += 1
    assert device.serves() == "lot-codes@2"
    device.assign(again(one, rollout="r-back"))
    device.run(10)
    assert (device.state, device.record.cause) == ("REJECTED", "stale")
    assert "journal-lost" in [f.cause for f in device.faults()]


def test_a_clock_at_1970_is_lifted_by_what_the_director_signed(tmp_path: Path) -> None:
    device = Device(tmp_path, Cloud())
    device.clock.now = 0.0
    device.restart()
    device.assign(device.cloud.release(1))
    device.run(60)
    assert device.serves() == "lot-codes@1"
    assert device.agent.clock() > 1.7e9
    assert not device.agent.clock.synced
    assert device.windows()[-1].sent_s > 1.7e9
    assert not device.windows()[-1].health.clock_synced
