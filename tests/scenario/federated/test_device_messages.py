"""What devices say wrongly, twice, too late or to nobody: ignored and counted, and harmless."""

import msgspec
import numpy as np
import pytest

from fake_clients import SIZE, FakeFederation
from fakes import memory_folder
from shoal import topics, wire
from shoal.controller.federated.aggregation import checkpoint_files
from shoal.controller.federated.io.round_thread import (
    MAX_BYTES,
    MAX_BYTES_PER_DEVICE,
    RoundThread,
)
from shoal.controller.federated.rounds import rounds
from shoal.federated import messages
from shoal.federated.chunks import cut
from shoal.federated.compression import compress
from shoal.federated.noise import Draws
from shoal.federated.plan import Compression

pytestmark = pytest.mark.scenario

NONE, DRAWS = Compression(), Draws(bytes(32))


@pytest.fixture
def federation():
    with memory_folder() as folder:
        yield FakeFederation(folder, count=4)


def start(federation, **wishes):
    federation.start(**{"pace": {"goal": 4, "least": 2, "over": 1.0, "train_s": 20}} | wishes)


def training(federation):
    """The round is in training, and d00 has not sent anything."""
    federation.clients["d00"].quiet = {messages.Piece}
    federation.run(20, until=lambda: "Start" in federation.clients["d00"].log)
    return federation.clients["d00"], federation.clients["d00"].config.plan.attempt


def ended(federation):
    federation.run(120, until=federation.done)
    return rounds.get_round(federation.fleet.ctx, "walk.1")


def packed(delta, **values):
    values = {"examples": 10} | values
    return msgspec.msgpack.encode(
        messages.Contribution(update=compress(delta, NONE, DRAWS), **values)
    )


def test_pieces_twice_in_any_order_broken_or_of_another_try_change_nothing(federation):
    start(federation)
    one, attempt = training(federation)
    delta = one.delta()
    pieces = cut(packed(delta), 50)
    broken = msgspec.structs.replace(pieces[0], data=b"x" * 50)
    foreign = cut(packed(-delta), 50)[1]
    one.quiet = set()
    for chunk in (pieces[-1], broken, foreign, pieces[-1], *pieces[:-1], pieces[0]):
        one.say(attempt, messages.Piece(chunk=chunk))
    one.say(bytes(16), messages.Piece(chunk=pieces[0]))
    found = ended(federation)
    assert {k: found.ignored[k] for k in ("corrupt", "foreign", "twice")} == {
        "corrupt": 1, "foreign": 1, "twice": 1,
    }  # fmt: skip
    mean = np.mean([client.target for client in federation.clients.values()], axis=0)
    checkpoint = federation.walk.checkpoint
    assert federation.theta(checkpoint) == pytest.approx(mean / 2, abs=1e-6)


def test_only_the_pieces_that_are_missing_are_asked_for(federation):
    start(federation)
    one, attempt = training(federation)
    one.piece = 50
    pieces = one._pieces(one._contribution())
    one.said[messages.Piece] = pieces
    one.quiet = set()
    one.say(attempt, pieces[1])
    asked = []
    one.link.on_message, told = (
        lambda topic, data: (asked.append(wire.decode_down("round", data).said), told(topic, data)),
        one.link.on_message,
    )
    ended(federation)
    resend = next(call for call in asked if isinstance(call, messages.Resend))
    assert resend.missing == [i for i in range(len(pieces)) if i != 1]


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(lambda d: b"no contribution", id="no message"),
        pytest.param(lambda d: packed(d[:-1]), id="another model's"),
        pytest.param(lambda d: packed(d, examples=0), id="of no rows"),
        pytest.param(lambda d: packed(d, loss=-1.0), id="a loss below zero"),
        pytest.param(
            lambda d: msgspec.msgpack.encode(messages.Contribution(update=b"shu1", examples=1)),
            id="cut off",
        ),
        pytest.param(
            lambda d: packed(d).replace(d[:1].tobytes(), np.float32(np.nan).tobytes(), 1), id="NaN"
        ),
    ],
)
def test_an_update_that_cannot_be_used_is_left_out_and_the_round_goes_on(federation, payload):
    start(federation)
    one, attempt = training(federation)
    delta = one.delta()
    one.quiet = set()
    for chunk in cut(payload(delta)):
        one.say(attempt, messages.Piece(chunk=chunk))
    found = ended(federation)
    device = federation.parts()["d00"]
    assert (device.mark, device.reason, device.chosen) == ("REFUSED", "bad-update", False)
    assert found.ignored["unsound"] >= 1
    others = [federation.clients[name].target for name in ("d01", "d02", "d03")]
    checkpoint = federation.walk.checkpoint
    assert federation.theta(checkpoint) == pytest.approx(np.mean(others, axis=0) / 2, abs=1e-6)


def test_more_than_any_update_of_the_model_is_not_kept(federation):
    start(federation)
    one, attempt = training(federation)
    one.quiet = set()
    for chunk in cut(bytes(12 * SIZE + 70_000), 20_000):
        one.say(attempt, messages.Piece(chunk=chunk))
    federation.run(1)
    folder = federation.fleet.ctx.folder / "rounds" / "walk.1"
    assert not list(folder.glob("piece-*"))
    assert ended(federation).ignored["unsound"] == 4


def test_messages_of_uninvited_devices_or_in_anothers_name_have_no_effect(federation):
    start(federation)
    one, attempt = training(federation)
    stranger = federation.enrol("d77", np.zeros(SIZE, np.float32))
    stranger.say(attempt, messages.Refuse(reason="busy"))
    message = wire.RoundAnswer(
        device="d00",
        boot="b",
        seq=0,
        sent_s=0,
        attempt=attempt,
        said=messages.Refuse(reason="busy"),
    )
    stranger.link.publish(topics.up("d77", "round"), wire.encode(message))
    stranger.link.publish(topics.up("d00", "round"), b"\x00 no message")
    one.quiet = set()
    assert ended(federation).marks == {"MEASURED": 4}


def test_a_join_with_an_advert_signed_by_another_device_is_refused(federation):
    one, other = federation.clients["d00"], federation.clients["d01"]
    one._sign = other._sign
    start(federation, secure={}, pace={"goal": 4, "least": 3, "over": 1.0, "recruit_s": 10})
    found = ended(federation)
    assert found.ignored["unsound"] >= 2
    device = federation.parts()["d00"]
    assert (device.mark, device.reason) == ("LOST", "no-answer")


def test_messages_beyond_the_queue_limit_are_dropped_and_requested_again(federation, caplog):
    made = RoundThread(federation.fleet.ctx, lambda device, call: None)
    assert MAX_BYTES == 4 * MAX_BYTES_PER_DEVICE
    for name in ("d00", "d01", "d02"):
        made.put(f"shoal/v1/{name}/up/round", bytes(MAX_BYTES_PER_DEVICE))
        made.put(f"shoal/v1/{name}/up/round", bytes(1))  # more than one device's share
    made.put("shoal/v1/d03/up/round", bytes(MAX_BYTES_PER_DEVICE - 1))
    made.put("shoal/v1/d04/up/round", bytes(2))  # more than all have together
    made.work()
    assert "4 round messages dropped" in caplog.text
    assert not made.bell.is_set()


def test_scaffold_gives_devices_its_control_and_takes_theirs(federation):
    start(federation, strategy="scaffold", settings={"population": 4})
    ended(federation)
    task = federation.walk
    c = checkpoint_files.load_state(federation.fleet.ctx, task.memory).vectors["c"]
    assert c == pytest.approx(np.ones(SIZE))
    federation.more()
    federation.run(60, until=lambda: federation.done(2))
    control = np.frombuffer(federation.clients["d00"].contents["control"], "<f4")
    assert control == pytest.approx(np.ones(SIZE))


def test_excessive_row_counts_and_unknown_classes_are_not_kept(federation):
    start(federation, settings={"most_examples": 10})
    one, attempt = training(federation)
    one.quiet = {messages.Measured}
    for chunk in cut(packed(one.delta(), examples=2**53, seconds=-1e300)):
        one.say(attempt, messages.Piece(chunk=chunk))
    federation.run(20, until=lambda: "Measure" in one.log)
    part = messages.Slice(rows=1, loss=0.0, correct=1)
    one.quiet = set()
    one.say(attempt, messages.Measured(whole=part, classes={"made-up": part}))
    one.say(attempt, messages.Measured(whole=messages.Slice(rows=1, loss=0.0, correct=2)))
    found = ended(federation)
    assert found.ignored["unsound"] == 2
    assert not [name for name in found.slices if "made-up" in name]
    kept = federation.parts()["d00"]
    assert (kept.examples, kept.seconds) == (2**31 - 1, 0.0)
