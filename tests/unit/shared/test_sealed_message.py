"""Sealed messages and offline bundles: a stable format, bounded reads, atomic writes."""

import contextlib
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal import sealed_message
from shoal.errors import AbsentError, BundleError, OversizeError, SettingError, ShoalError
from shoal.offline_bundle import LABEL, Label, OfflineBundle
from shoal.sealed_message import UP, BatchMessage, MessageBatch

MADE = MessageBatch(
    device="cam-1", made_s=1.5, trip="00c0ffee", letters=[BatchMessage("event", b"x")]
)
#: Bytes that every later version must decode.
GOLDEN = bytes.fromhex(
    "84a474797065ad7365616c65642d70617263656ca4626f6479c45f88a474797065a670617263656ca6646576696365"
    "a563616d2d31a66d6164655f73cb3ff8000000000000a474726970a83030633066666565a76c6574746572739192a5"
    "6576656e74c40178a47061727401a5706172747301a5726f6f747390ab6365727469666963617465a350454da97369"
    "676e6174757265c403736967"
)


def test_a_sealed_parcel_has_its_golden_bytes() -> None:
    assert sealed_message.seal(MADE, UP, "PEM", lambda _: b"sig") == GOLDEN
    assert sealed_message.decode_batch(sealed_message.unseal(GOLDEN).body) == MADE
    assert MADE.name == "00000000001-00c0ffee-00001.parcel"


def test_a_seal_is_good_for_one_way_only() -> None:
    assert sealed_message.signed_bytes(sealed_message.UP, b"x") != sealed_message.signed_bytes(
        sealed_message.DOWN, b"x"
    )


def test_a_field_that_a_newer_side_adds_is_ignored() -> None:
    body = msgspec.msgpack.encode(msgspec.msgpack.decode(msgspec.msgpack.encode(MADE)) | {"new": 1})
    assert sealed_message.decode_batch(body) == MADE


@given(st.binary(max_size=400))
def test_any_bytes_are_a_batch_or_an_error_of_ours(data: bytes) -> None:
    for read in (sealed_message.unseal, sealed_message.decode_batch):
        with contextlib.suppress(ShoalError):
            read(data)


@given(st.integers(0, len(GOLDEN) - 1))
def test_a_batch_that_is_cut_anywhere_is_none(end: int) -> None:
    with pytest.raises(BundleError, match="not copied whole"):
        sealed_message.unseal(GOLDEN[:end])


def test_what_is_too_long_is_not_parsed() -> None:
    with pytest.raises(OversizeError):
        sealed_message.unseal(bytes(sealed_message.LIMIT + 1))


@given(st.lists(st.integers(0, 2 * sealed_message.BATCH_BYTES), max_size=12))
def test_batches_hold_every_message_in_order_and_fit_a_batch(sizes: list[int]) -> None:
    some = bytes(2 * sealed_message.BATCH_BYTES)
    messages = [BatchMessage("window", some[:size]) for size in sizes]
    batches = list(sealed_message.batches(messages))
    assert [one for batch in batches for one in batch] == messages
    for batch in batches:
        assert (
            len(batch) == 1 or sum(len(one.payload) for one in batch) <= sealed_message.BATCH_BYTES
        )


@pytest.fixture
def offline(tmp_path: Path) -> OfflineBundle:
    made = OfflineBundle(tmp_path)
    made.write("blobs/a", b"abc")
    return made


def test_an_offline_bundle_gives_back_what_was_written(offline: OfflineBundle) -> None:
    assert offline.read("blobs/a", 3) == b"abc"
    assert b"".join(offline.pieces("blobs/a", 3)) == b"abc"
    assert offline.names("blobs", "") == ["blobs/a"]
    assert offline.folders("") == ["blobs"]
    offline.delete("blobs/a")
    assert offline.names("blobs", "") == offline.names("nothing", "") == []


def test_what_ends_early_leaves_no_file(offline: OfflineBundle) -> None:
    def pieces() -> object:
        yield b"half"
        raise BundleError("not what was signed")

    with pytest.raises(BundleError):
        offline.receive("blobs/b", pieces())
    assert offline.names("blobs", "") == ["blobs/a"]


@pytest.mark.parametrize("what", ["link", "folder", "pipe", "long", "absent"])
def test_what_is_no_plain_short_file_is_not_read(offline: OfflineBundle, what: str) -> None:
    path = offline.folder / "blobs" / what
    if what == "link":
        path.symlink_to("a")
    elif what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "long":
        path.write_bytes(b"four")
    with pytest.raises((BundleError, AbsentError)) as refusal:
        offline.read(f"blobs/{what}", 3)
    assert refusal.value.hint


@pytest.mark.parametrize("linked", ["down", "up/press-4"])
def test_a_folder_of_an_offline_bundle_that_is_a_link_is_neither_read_written_nor_emptied(
    offline: OfflineBundle, tmp_path_factory: pytest.TempPathFactory, linked: str
) -> None:
    home = tmp_path_factory.mktemp("home")
    (home / "thesis.parcel").write_text("mine")
    (offline.folder / "up").mkdir()
    (offline.folder / linked).symlink_to(home)
    name = f"{linked}/thesis.parcel"
    for touch in (
        lambda: offline.names(linked, ""),
        lambda: offline.read(name, 9),
        lambda: offline.delete(name),
        lambda: offline.write(name, b"theirs"),
        lambda: offline.write(f"{linked}/new/er", b"theirs"),
    ):
        with pytest.raises(BundleError, match="link, or behind one"):
            touch()
    assert offline.folders("up") == []
    assert [path.read_text() for path in home.iterdir()] == ["mine"]


def test_a_link_where_a_file_shall_be_written_is_replaced_and_not_followed(
    offline: OfflineBundle, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shell = tmp_path_factory.mktemp("home") / ".bashrc"
    shell.write_text("mine")
    for name in ("label", "label.new", "blobs/b.new"):
        (offline.folder / name).symlink_to(shell)
    offline.write("label", b"1")
    offline.write("blobs/b", b"2")
    assert (offline.read("label", 1), offline.read("blobs/b", 1)) == (b"1", b"2")
    assert offline.names("blobs", "") == ["blobs/a", "blobs/b"]
    assert shell.read_text() == "mine"


@pytest.mark.parametrize("name", ["../x", "metadata/../../x", "/x", "blobs//x", "blobs/.", ""])
def test_a_name_that_leads_out_of_an_offline_bundle_is_none(
    offline: OfflineBundle, name: str
) -> None:
    for touch in (lambda: offline.write(name, b""), lambda: offline.delete(name)):
        with pytest.raises(BundleError, match="not a name in an offline bundle"):
            touch()


def test_a_folder_that_is_no_offline_bundle_gets_a_hint(offline: OfflineBundle) -> None:
    with pytest.raises(SettingError, match="shoal bundle export"):
        offline.label()
    label = Label(ca="0" * 64, made_s=1.0, valid_until_s=2.0, devices=["cam-1"], releases=[])
    offline.write(LABEL, msgspec.json.encode(label))
    assert offline.label() == label
    offline.write(LABEL, msgspec.json.encode(msgspec.structs.replace(label, schema=2)))
    with pytest.raises(BundleError, match="update the older side"):
        offline.label()


def test_every_name_on_an_offline_bundle_is_one_that_fat_takes() -> None:
    names = [LABEL, MADE.name, "3.release-lot-codes.json", "0" * 64]
    assert all(name == name.lower() and not set(name) & set('<>:"/\\|?*') for name in names)
    assert all(len(name) < 256 and not name.endswith((".", " ")) for name in names)
