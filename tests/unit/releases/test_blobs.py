"""Artifacts by content: whole, or not there."""

import hashlib
import io
from pathlib import Path

import pytest

from shoal.controller.releases.io.blobs import Blobs
from shoal.errors import AbsentError, OversizeError


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "blobs")


def files(blobs: Blobs) -> list[Path]:
    return [path for path in blobs.folder.rglob("*") if path.is_file()]


def test_what_was_put_is_found_by_its_hash(blobs: Blobs) -> None:
    blob = blobs.put_bytes(b"a model")
    assert blob == (hashlib.sha256(b"a model").hexdigest(), 7)
    assert blobs.exists(blob.sha256)
    assert blobs.read(blob.sha256) == b"a model"


def test_the_same_content_twice_is_one_file(blobs: Blobs) -> None:
    assert blobs.put_bytes(b"x") == blobs.put(io.BytesIO(b"x"))
    assert len(files(blobs)) == 1


def test_a_stream_beyond_its_limit_leaves_nothing_behind(blobs: Blobs) -> None:
    with pytest.raises(OversizeError):
        blobs.put(io.BytesIO(b"x" * 11), limit=10)
    assert files(blobs) == []


def test_a_stream_that_breaks_off_leaves_nothing_behind(blobs: Blobs) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise ConnectionResetError("gone")

    with pytest.raises(Exception, match="gone"):
        blobs.put(Broken())
    assert files(blobs) == []


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "a" * 63, "A" * 64, "0" * 64])
def test_what_is_no_hash_or_not_there_is_absent(blobs: Blobs, name: str) -> None:
    assert not blobs.exists(name)
    with pytest.raises(AbsentError):
        blobs.path(name)
