"""A device in a round: what it joins, what it refuses and says why, and what it says again."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learning_devices import LABELS, TASK, FakeController, RoundDevice, norm, some_rows
from shoal.agent.federated.machine import TRANSITIONS, Event
from shoal.agent.installed.record import RoundState
from shoal.controller.training.gradient.make import step_graph
from shoal.errors import UntrustedError
from shoal.federated import messages
from shoal.federated.compression import decompress
from shoal.federated.config import Content
from shoal.federated.fixed_point import FixedPoint
from shoal.federated.plan import Compression, Privacy, Secure
from shoal.federated.plan import Learning as Lessons
from shoal.federated.spending import Budget


@pytest.fixture
def controller(tmp_path: Path) -> FakeController:
    return FakeController(tmp_path)


@pytest.fixture
def device(controller: FakeController) -> RoundDevice:
    return RoundDevice(controller, "cam-1", some_rows(60))


def delta_of(device: RoundDevice) -> np.ndarray:
    return decompress(device.contribution().update, device.controller.theta.size)


def refusals(device: RoundDevice) -> list[str]:
    return [said.reason for said in device.said(messages.Refuse)]


def test_a_device_joins_trains_sends_its_update_and_forgets_the_round(device: RoundDevice) -> None:
    assert device.receive(device.controller.invite(1)) == [messages.Join()]
    device.call(1, messages.Start())
    said = device.contribution()
    assert (said.examples, said.steps) == (60, 12)
    assert norm(delta_of(device)) > 0.1
    assert device.state == RoundState.SENT
    device.call(1, messages.Dismiss())
    assert device.state == RoundState.OVER
    assert not device.path(1).exists()


def test_a_repeated_request_gets_the_same_message_again(device: RoundDevice) -> None:
    invite = device.controller.invite(1)
    assert device.receive(invite) == device.receive(invite) == [messages.Join()]
    first = device.call(1, messages.Start())
    assert device.call(1, messages.Start()) == first
    assert device.call(1, messages.Resend()) == first
    assert device.call(1, messages.Resend(missing=[0])) == first[:1]


def test_an_update_is_the_same_however_often_its_pieces_are_asked_for(device: RoundDevice) -> None:
    device.receive(device.controller.invite(1))
    device.call(1, messages.Start())
    before = device.contribution()
    device.call(1, messages.Resend())
    assert device.contribution() == before


@pytest.mark.parametrize(
    ("limits", "asked", "reason"),
    [
        ({"enabled": False}, {}, "not-enabled"),
        ({"rows": 61}, {}, "few-rows"),
        ({"cohort": 4}, {}, "small-cohort"),
        ({"secure": True}, {}, "bare-update"),
        ({"clip": 1.0}, {}, "long-clip"),
        ({"noise": 0.5}, {}, "little-noise"),
        (
            {"clip": 1.0},
            {"privacy": Privacy(where="central", clip=1.5, noise=1.0)},
            "long-clip",
        ),
        (
            {"budget": Budget(epsilon=0.5)},
            {"privacy": Privacy(where="local", clip=1.0, noise=1.0)},
            "budget-spent",
        ),
        (
            {"budget": Budget(epsilon=100.0)},
            {"privacy": Privacy(where="central", clip=1.0, noise=1.0)},
            "central-noise",
        ),
        ({"graphs": frozenset({"ab" * 32})}, {}, "unknown-graph"),
        ({}, {"privacy": Privacy(where="distributed", clip=1.0, noise=1.0)}, "bare-update"),
        ({}, {"deadline_s": 1.0}, "late"),
        ({}, {"learning": Lessons(lr=0.1, terms={"vision": 0.5})}, "other-terms"),
        ({}, {"learning": Lessons(lr=0.1, terms={"shift": True})}, "other-terms"),
        ({}, {"features": ("another",)}, "few-rows"),
        ({}, {"purpose": "evaluate"}, "misdirected"),
    ],
)
def test_a_device_refuses_a_round_beyond_its_limits_with_a_reason(
    controller: FakeController, limits: dict[str, Any], asked: dict[str, Any], reason: str
) -> None:
    device = RoundDevice(controller, "cam-1", some_rows(60), **limits)
    device.receive(controller.invite(1, **asked))
    assert refusals(device) == [reason]
    assert device.said(messages.Join) == []
    assert not device.path(1).exists()


def test_terms_that_the_graph_does_not_take_are_refused_by_the_trainer(device: RoundDevice) -> None:
    device.receive(device.controller.invite(1, learning=Lessons(lr=0.1, terms={"mu": 0.5})))
    device.call(1, messages.Start())
    assert refusals(device) == ["other-terms"]
    assert device.call(1, messages.Start())[0] == device.said(messages.Refuse)[0]


def test_an_unsigned_config_is_refused_and_is_a_fault(device: RoundDevice) -> None:
    call = device.controller.invite(1)
    forged = call.said.signed.replace(b'\\"least\\":3', b'\\"least\\":9')  # type: ignore[union-attr]
    assert forged != call.said.signed  # type: ignore[union-attr]
    said = messages.Invite(signed=forged, urls={})
    device.call(1, said)
    assert refusals(device) == [UntrustedError.code]
    assert [fault.severity for fault in device.faults] == ["critical"]


def test_a_signed_config_does_not_do_for_another_try(device: RoundDevice) -> None:
    device.call(7, device.controller.invite(1).said)
    assert refusals(device) == ["misdirected"]


def test_a_round_is_answered_once_and_an_older_one_not_at_all(device: RoundDevice) -> None:
    for number in (3,):
        device.receive(device.controller.invite(number))
        device.call(number, messages.Start())
        device.call(number, messages.Dismiss())
    device.receive(device.controller.invite(3, attempt=b"another try of 3"))
    device.receive(device.controller.invite(2))
    assert refusals(device) == ["answered-before"] * 2
    device.receive(device.controller.invite(4))
    assert device.state == RoundState.JOINED


def test_a_round_of_another_task_waits_until_this_one_is_over(device: RoundDevice) -> None:
    device.receive(device.controller.invite(1))
    device.receive(device.controller.invite(2, task="another"))
    assert refusals(device) == ["in-another-round"]
    device.receive(device.controller.invite(3))  # of the same task: it takes the first one's place
    assert device.said(messages.Join) == [messages.Join()] * 2


def test_a_deadline_ends_the_part_and_leaves_nothing_behind(device: RoundDevice) -> None:
    device.receive(device.controller.invite(1))
    device.controller.now += 601
    device.settle()
    assert device.state == RoundState.OVER
    assert device.call(1, messages.Start()) == []


def test_out_of_order_and_strangers_calls_change_nothing(device: RoundDevice) -> None:
    device.receive(device.controller.invite(1))
    for said in (messages.Resend(), messages.Deal(boxes={}), messages.Pass(votes={})):
        assert device.call(1, said) == []
        assert device.call(9, said) == []
    assert device.state == RoundState.JOINED


def test_a_budget_is_spent_before_the_update_is_sent_and_never_twice(
    controller: FakeController,
) -> None:
    device = RoundDevice(controller, "cam-1", some_rows(60), budget=Budget(epsilon=50.0))
    privacy = Privacy(where="local", clip=1.0, noise=1.0)
    device.connected = False
    device.receive(controller.invite(1, privacy=privacy))
    device.call(1, messages.Start())
    assert device.sent == []
    spent = device.journal.participation().ledger
    assert spent.rounds == 1
    device.restart()
    device.connected = True
    device.call(1, messages.Start())
    assert device.said(messages.Piece)
    assert device.journal.participation().ledger == spent


def test_a_clipped_update_is_as_short_as_was_asked_for(device: RoundDevice) -> None:
    device.receive(
        device.controller.invite(1, privacy=Privacy(where="central", clip=0.05, noise=1.0))
    )
    device.call(1, messages.Start())
    assert norm(delta_of(device)) == pytest.approx(0.05, rel=1e-3)


def test_what_top_k_leaves_behind_goes_up_later(device: RoundDevice) -> None:
    how = {"compression": Compression(kind="top-k", fraction=0.05)}
    for number in (1, 2):
        device.receive(device.controller.invite(number, **how))
        device.call(number, messages.Start())
        assert (
            np.count_nonzero(delta_of_round(device, number))
            <= 0.05 * device.controller.theta.size + 1
        )
        device.call(number, messages.Dismiss())
        assert (device.kept() / "residual").exists()


def delta_of_round(device: RoundDevice, number: int) -> np.ndarray:
    import msgspec

    from shoal.federated.messages import Contribution

    data = (device.path(number) / "contribution").read_bytes()
    said = msgspec.msgpack.decode(data, type=Contribution)
    return decompress(said.update, device.controller.theta.size)


def test_what_is_remembered_for_the_next_round_is_dropped_when_a_round_failed(
    device: RoundDevice,
) -> None:
    device.receive(
        device.controller.invite(1, compression=Compression(kind="top-k", fraction=0.05))
    )
    device.call(1, messages.Start())
    device.call(1, messages.Dismiss(reason="too-few-updates"))
    assert not (device.kept() / "residual").exists()


def test_a_head_of_its_own_stays_on_the_device(device: RoundDevice) -> None:
    size = device.controller.theta.size
    head = (size - 650, size)
    for number in (1, 2):
        device.receive(device.controller.invite(number, personal=(head,)))
        device.call(number, messages.Start())
        delta = delta_of_round(device, number)
        assert not delta[head[0] :].any()
        assert delta[: head[0]].any()
        device.call(number, messages.Dismiss())
    own = np.fromfile(device.kept() / "personal", "<f4")
    assert norm(own[head[0] :] - device.controller.theta[head[0] :]) > 0.1


def test_a_device_measures_whole_and_by_class_without_taking_part(device: RoundDevice) -> None:
    (said,) = device.receive(device.controller.measure(5))
    assert isinstance(said, messages.Measured)
    assert said.whole.rows == 60 == sum(one.rows for one in said.classes.values())
    assert said.whole.loss == pytest.approx(sum(s.loss for s in said.classes.values()), rel=1e-5)
    assert set(said.classes) <= set(LABELS)
    assert not device.path(5).exists()
    assert device.receive(device.controller.measure(5)) == [said]


def test_a_device_that_demands_secure_aggregation_reports_no_losses(
    controller: FakeController,
) -> None:
    device = RoundDevice(controller, "cam-1", some_rows(60), secure=True)
    device.receive(controller.measure(1))
    assert refusals(device) == ["bare-measure"]


def test_a_device_with_pinned_graphs_trains_with_those_and_measures_with_no_other(
    controller: FakeController,
) -> None:
    device = RoundDevice(
        controller, "cam-1", some_rows(60), graphs=frozenset({controller.graph.sha256})
    )
    device.receive(controller.invite(1))
    device.call(1, messages.Start())
    assert norm(delta_of(device)) > 0.1
    device.receive(controller.measure(2))
    assert refusals(device) == ["unknown-graph"]


def test_a_graph_that_is_not_pinned_is_neither_fetched_nor_run_and_its_hash_is_reported(
    controller: FakeController, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    device = RoundDevice(
        controller, "cam-1", some_rows(60), graphs=frozenset({controller.loss.sha256})
    )
    device.receive(controller.invite(1))
    [said] = device.said(messages.Refuse)
    assert said.reason == "unknown-graph"
    assert controller.graph.sha256 in said.detail
    assert (
        f"unknown-graph: graph {controller.graph.sha256} is not one that this device runs"
        in caplog.text
    )
    assert "learning.graphs in agent.toml" in caplog.text
    assert not device.path(1).exists()
    (measured,) = device.receive(controller.measure(2))
    assert isinstance(measured, messages.Measured)


def test_a_graph_that_reads_files_beside_itself_is_not_run(controller: FakeController) -> None:
    """External data: a name in the graph, and the runtime would read that file."""
    reading = beside(controller.blobs[controller.graph.sha256], "theta")
    device = RoundDevice(controller, "cam-1", some_rows(60))
    device.receive(controller.invite(1, graph=controller.put(reading)))
    device.call(1, messages.Start())
    assert refusals(device) == ["unusable-model"]
    assert device.said(messages.Piece) == []


def beside(graph: bytes, name: str) -> bytes:
    """The graph with one more initialiser, whose numbers are in a file of that name."""
    import onnx

    model = onnx.load_from_string(graph)
    own = model.graph.initializer.add(name="beside", dims=[4], data_type=onnx.TensorProto.FLOAT)
    own.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", name), ("offset", "0"), ("length", "16")):
        own.external_data.add(key=key, value=value)
    model.graph.node.append(onnx.helper.make_node("Identity", ["beside"], ["unused"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("unused", 1, [4]))
    return bytes(model.SerializeToString())


def test_a_network_that_is_away_is_waited_for(device: RoundDevice) -> None:
    device.receive(device.controller.invite(1))
    device.reachable = False
    device.call(1, messages.Start())
    assert device.sent[-1].said == messages.Join()
    device.reachable = True
    device.controller.now += 61
    device.settle()
    assert device.said(messages.Piece)


def test_a_busy_device_refuses_and_a_quiet_one_joins(device: RoundDevice) -> None:
    device.mains = False
    device.receive(device.controller.invite(1))
    device.mains = True
    device.receive(device.controller.invite(1))
    assert refusals(device) == ["on-battery"]
    assert device.said(messages.Join) == [messages.Join()]


def test_no_message_contains_bytes_of_a_row(controller: FakeController) -> None:
    """Nor of its labels beside it; an update says what was learned, which the limits are for."""
    from shoal import wire

    rows = some_rows(60)
    device = RoundDevice(controller, "cam-1", rows)
    device.receive(controller.invite(1))
    device.call(1, messages.Start())
    device.receive(controller.measure(1))
    said = b"".join(wire.encode(answer) for answer in device.sent)
    for row in rows.x:
        data = row[row != 0].tobytes()
        assert row.tobytes() not in said
        assert not any(data[i : i + 16] in said for i in range(0, len(data) - 16, 4))


def test_every_state_that_is_alive_can_be_refused_dismissed_and_late() -> None:
    for state in RoundState:
        ends = {TRANSITIONS.get((state, e)) for e in (Event.DISMISSED, Event.EXPIRED)}
        if state is RoundState.OVER:
            assert ends == {None}
        else:
            assert all(end is not None and end[0] is RoundState.OVER for end in ends)


def test_what_it_does_is_one_line_of_the_status(device: RoundDevice) -> None:
    assert device.learning.status_line == ""
    device.receive(device.controller.invite(4))
    assert device.learning.status_line == f"takes part in round 4 of {TASK}: joined"
    assert device.learning.facts()["enabled"] is True


def test_secure_terms_do_not_go_with_a_restart(controller: FakeController) -> None:
    device = RoundDevice(controller, "cam-1", some_rows(60))
    scale = FixedPoint(clip=1.0, devices=20, weight=100)
    device.receive(controller.invite(1, secure=Secure(degree=4, threshold=3, scale=scale)))
    (join,) = device.said(messages.Join)
    assert join.advert is not None
    assert join.advert.certificate
    device.restart()
    device.call(1, messages.Start())
    assert set(refusals(device)) == {"restarted"}
    assert device.state == RoundState.REFUSED


def test_losing_the_journal_gives_no_new_budget(controller: FakeController) -> None:
    device = RoundDevice(controller, "cam-1", some_rows(60), budget=Budget(epsilon=15.0))
    privacy = Privacy(where="local", clip=1.0, noise=1.0)
    device.receive(controller.invite(1, privacy=privacy))
    device.call(1, messages.Start())
    device.stop()
    for path in device.folder.glob("journal.db*"):
        path.unlink()
    device.start()
    device.receive(controller.invite(2, privacy=privacy))
    assert device.said(messages.Piece)
    assert refusals(device) == ["budget-spent"]


@pytest.mark.parametrize("name", ["../../../models/x", "/tmp/x", "..", "a/b", "x" * 5000])
def test_a_task_or_model_with_a_hostile_name_writes_nothing_outside_the_sandbox(
    controller: FakeController, device: RoundDevice, name: str
) -> None:
    before = everything(device.folder.parent)
    device.receive(controller.invite(1, task=name, ditto=0.0, compression=TOP))
    device.call(1, messages.Start())
    device.call(1, messages.Dismiss())
    device.receive(controller.invite(2, model=name))
    new = everything(device.folder.parent) - before
    inside = device.folder / "learning"
    assert {path for path in new if inside not in path.parents} <= {
        inside,
        *controller.folder.rglob("*"),
        *device.folder.glob("journal.db*"),
    }


TOP = Compression(kind="top-k", fraction=0.05)


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_training_may_fill_no_disk(device: RoundDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    full = shutil._ntuple_diskusage(100, 99, 1)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    device.receive(device.controller.invite(1))
    device.call(1, messages.Start())
    assert refusals(device) == ["disk-full"]


def graph_of(controller: FakeController, **terms: bool) -> Content:
    return controller.put(step_graph(controller.prepared, **terms).SerializeToString())


def test_scaffold_keeps_its_control_variate_here_and_sends_how_it_changed(
    controller: FakeController, device: RoundDevice
) -> None:
    asked = {
        "graph": graph_of(controller, shift=True),
        "control": controller.put(np.zeros_like(controller.theta).tobytes()),
        "learning": Lessons(lr=0.1, epochs=2, batch=10, terms={"shift": True}),
    }
    before = np.zeros_like(controller.theta)
    for number in (1, 2):
        device.sent.clear()
        device.receive(controller.invite(number, **asked))
        device.call(number, messages.Start())
        change = decompress(device.contribution().control, controller.theta.size)
        device.call(number, messages.Dismiss())
        own = np.fromfile(device.kept() / "control", "<f4")
        np.testing.assert_allclose(own - before, change, atol=1e-6)
        before = own
    assert norm(before) > 0.1


def test_a_pull_towards_the_shared_model_keeps_an_update_short(controller: FakeController) -> None:
    lengths = []
    for mu in (0.0, 5.0):
        device = RoundDevice(controller, f"cam-{mu:g}", some_rows(60))
        learning = Lessons(lr=0.1, epochs=5, batch=10, terms={"mu": mu})
        device.receive(
            controller.invite(1, graph=graph_of(controller, proximal=True), learning=learning)
        )
        device.call(1, messages.Start())
        lengths.append(norm(delta_of(device)))
    assert lengths[1] < 0.5 * lengths[0]


def test_a_personal_model_stays_here_and_does_better_here(
    controller: FakeController, device: RoundDevice
) -> None:
    asked = {"graph": graph_of(controller, proximal=True), "ditto": 0.1}
    learning = Lessons(lr=0.1, epochs=10, batch=10)
    for number in (1, 2):
        device.receive(controller.invite(number, learning=learning, **asked))
        device.call(number, messages.Start())
        (measured,) = device.receive(controller.measure(number, ditto=0.1))
        device.call(number, messages.Dismiss())
    assert isinstance(measured, messages.Measured)
    assert measured.personal is not None
    assert measured.personal.loss < 0.5 * measured.whole.loss
    own = np.fromfile(device.kept() / "ditto", "<f4")
    said = b"".join(piece.chunk.data for piece in device.said(messages.Piece))
    assert own.tobytes()[:64] not in said
