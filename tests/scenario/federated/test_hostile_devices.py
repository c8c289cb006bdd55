"""One device that means harm: it fills no disk, stops no task, and is answered by nobody."""

import hashlib

import msgspec
import numpy as np
import pytest
from sqlalchemy import select, update

from fake_clients import MODEL, SIZE
from shoal.controller.federated.rounds import round_messages, rounds
from shoal.controller.store.tables import federated_task
from shoal.federated import messages
from shoal.federated.chunks import chunk_of, cut
from shoal.federated.compression import compress
from shoal.federated.noise import Draws
from shoal.federated.plan import Compression

pytestmark = pytest.mark.scenario

PACE = {"goal": 6, "least": 4, "over": 1.0, "recruit_s": 20, "train_s": 60, "unmask_s": 20}


def start(federation, **wishes):
    federation.start(**{"pace": PACE} | wishes)


def ended(federation):
    """The task, once it is done or has given up."""
    federation.run(600, until=lambda: federation.walk.state in ("ready", "stopped"))
    return federation.walk


def test_pieces_that_are_more_than_their_payload_fill_no_disk(federation, caplog):
    start(federation, pace=PACE | {"train_s": 1e5})
    bad = federation.clients["d00"]
    bad.quiet = federation.clients["d01"].quiet = {messages.Piece}
    federation.run(10)
    most, digest, bad.quiet = 6 * SIZE + 65_536, hashlib.sha256(b"x").digest(), set()
    for i in range(20):
        chunk = chunk_of(digest, i, 64, most, bytes(most))
        bad.say(bad.config.plan.attempt, messages.Piece(chunk=chunk))
    federation.run(2)
    folder = federation.fleet.ctx.folder / "rounds"
    assert sum(file.stat().st_size for file in folder.rglob("piece-*")) < 2 * most
    assert caplog.text.count("Piece of d00: pieces of more than") == 10


def test_a_certificate_of_an_unknown_version_costs_only_its_device_the_round(federation):
    def evil(advert, round_id):
        version = bytes.fromhex("a003020102"), bytes.fromhex("a003020109")
        return msgspec.structs.replace(advert, certificate=advert.certificate.replace(*version, 1))

    _adverts_as(federation.clients["d00"], evil)
    start(federation, secure={"clip": 2.0})
    assert ended(federation).rounds == 1
    assert federation.parts()["d00"].reason == "no-answer"


def test_a_message_that_fails_its_parser_excludes_its_device_and_no_other(federation, monkeypatch):
    receivers = round_messages._RECEIVERS
    state, real = receivers[messages.Join]

    def broken(live, device, *rest):
        if device == "d00":
            raise ZeroDivisionError
        return real(live, device, *rest)

    monkeypatch.setitem(receivers, messages.Join, (state, broken))
    start(federation)
    assert ended(federation).rounds == 1
    assert (federation.parts()["d00"].mark, federation.parts()["d00"].reason) == (
        "REFUSED",
        "bad-answer",
    )
    assert rounds.get_round(federation.fleet.ctx, "walk.1").ignored["bad-answer"] == 1


def test_an_update_nested_too_deeply_is_left_out(federation):
    deep = b"\x82\xa1x" + b"\x91" * 20_000 + b"\xc0" + b"\xa6update\xc4\x00"
    federation.clients["d00"]._build = lambda said: [messages.Piece(chunk=cut(deep, 1 << 20)[0])]
    start(federation, pace=PACE | {"least": 5})
    assert ended(federation).rounds == 1
    assert federation.parts()["d00"].reason == "bad-update"


@pytest.mark.parametrize("key", [bytes(32), bytes(900_000)], ids=["a trap", "too long"])
def test_invalid_keys_are_not_relayed_to_neighbours(federation, key):
    bad = federation.clients["d00"]

    def evil(advert, round_id):
        bare = msgspec.structs.replace(advert, box=key, signature=b"")
        signature = bad._sign(bare.signed(round_id))
        return msgspec.structs.replace(bare, signature=signature)

    _adverts_as(bad, evil)
    start(federation, secure={"clip": 2.0})
    assert ended(federation).rounds == 1
    assert federation.parts()["d00"].reason == "no-answer"


def test_boxes_of_another_length_are_refused(federation):
    _boxes_as(federation.clients["d00"], lambda box: box * 1_000)
    start(federation, secure={"clip": 2.0})
    assert ended(federation).rounds == 1
    assert federation.parts()["d00"].reason == "no-boxes"


@pytest.mark.parametrize(
    ("strategy", "settings"),
    [("fedavg", {}), ("fedbuff", {}), ("trimmed-mean", {}), ("q-fedavg", {"q": 3.0})],
)
def test_an_update_beyond_the_range_of_a_sum_is_left_out_by_name(federation, strategy, settings):
    _learned(federation.clients["d00"], 3e38, examples=10)
    start(federation, strategy=strategy, settings=settings)
    assert ended(federation).rounds == 1
    assert federation.parts()["d00"].reason == "bad-update"


@pytest.mark.parametrize("rows", [16, None], ids=["told", "untold"])
def test_an_excessive_row_count_does_not_dominate_the_model(federation, rows):
    for name in federation.clients:
        facts = {"ram_mb": 900} | ({"learning": {"rows": {MODEL: rows}}} if rows else {})
        federation.set(name, facts=facts)
        federation.clients[name].examples = 10
    _learned(federation.clients["d00"], 1.0, examples=2**53, loss=1e11)
    start(federation)
    done = ended(federation)
    most = 64 if rows else 20_000
    theta = np.asarray([p.target * 5 for n, p in federation.clients.items() if n != "d00"]).sum(
        axis=0
    )
    assert federation.theta(done.checkpoint) == pytest.approx(
        (theta + most) / (most + 50), abs=1e-5
    )
    loss = rounds.get_round(federation.fleet.ctx, "walk.1").loss
    assert loss == pytest.approx(1e11 * most / (most + 50), rel=1e-3)


def test_losses_beyond_reason_are_left_out(federation):
    _learned(federation.clients["d00"], 1.0, examples=2**53, loss=1e300)
    start(federation)
    assert ended(federation).rounds == 1
    assert federation.parts()["d00"].reason == "bad-update"


@pytest.mark.parametrize("loss", [-1e300, 1e300])
def test_what_a_device_measured_is_bounded_by_rows_and_by_reason(federation, loss):
    whole = messages.Slice(rows=2**53, loss=1.0, correct=2**53)
    bad = federation.clients["d00"]
    bad._measure = lambda said: [
        messages.Measured(whole=messages.Slice(rows=5, loss=loss)),
        messages.Measured(whole=whole),
    ]
    start(federation)
    assert ended(federation).rounds == 1
    found = rounds.get_round(federation.fleet.ctx, "walk.1")
    assert found.measured.rows == 20_000 + 5 * 10
    assert found.ignored["unsound"] == 1


def test_classes_of_a_model_that_has_none_are_not_kept(federation):
    bad, one = federation.clients["d00"], messages.Slice(rows=9, loss=1.0)
    many = messages.Measured(whole=one, classes={f"{i:064d}": one for i in range(1024)})
    for client in federation.clients.values():
        client._measure = lambda said: [messages.Measured(whole=one)]
    bad._measure = lambda said: [many]
    start(federation)
    _without_labels(federation)
    assert ended(federation).rounds == 1
    found = rounds.get_round(federation.fleet.ctx, "walk.1")
    assert not [name for name in found.slices if name.startswith("class:")]
    assert found.ignored["unsound"] >= 1


def _without_labels(federation):
    with federation.fleet.ctx.store.write() as db:
        row = db.execute(select(federated_task)).one()
        db.execute(update(federated_task).values(prepared=dict(row.prepared) | {"labels": []}))


def _learned(client, value, **said):
    delta = np.full(SIZE, value, np.float32)
    packed = compress(delta, Compression(), Draws(bytes(32)))
    client._contribution = lambda: messages.Contribution(update=packed, **said)


def test_a_device_with_unopenable_shares_is_named_and_excluded(federation):
    _boxes_as(federation.clients["d03"], lambda box: bytes(len(box)))
    start(federation, secure={"clip": 2.0})
    assert ended(federation).rounds == 1
    assert rounds.get_round(federation.fleet.ctx, "walk.1").state == "FAILED"
    invited = [p.device for p in rounds.participations(federation.fleet.ctx, "walk.2")]
    assert invited == ["d00", "d01", "d02", "d04", "d05"]


def _adverts_as(client, change):
    real = client._participant

    def made(config):
        found = real(config)
        advert = found.advert
        found.advert = lambda: change(advert(), found._terms.round_id)
        return found

    client._participant = made


def _boxes_as(client, change):
    real = client._build

    def made(said):
        for one in real(said):
            if isinstance(one, messages.Boxes):
                one = messages.Boxes(boxes={name: change(box) for name, box in one.boxes.items()})
            yield one

    client._build = made
