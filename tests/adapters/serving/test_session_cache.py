"""The cache of optimised models: never stale, never damaged, never needed."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from real_models import FEATURES, answers, mlp, put_release, slot_of
from shoal.agent.serving.io.runtime import OrtLoader
from shoal.agent.serving.io.session_cache import KEPT, SessionCache
from shoal.profile import SessionOptions, profile

FACTS = {"arch": "x86_64", "cpu": "cpu 1", "flags": ["avx2"]}
PROFILE = profile("x86-vnni")
ROWS = np.random.default_rng(1).normal(size=(5, FEATURES)).astype(np.float32)
LARGE = mlp(hidden=600, layers=2).SerializeToString()


def loader(folder: Path) -> OrtLoader:
    return OrtLoader(
        lambda model, slot: folder / slot, SessionCache(folder / "cache", lambda: FACTS)
    )


def started(folder: Path) -> np.ndarray:
    """Outputs after a start of the agent, with the deferred work done."""
    one = loader(folder)
    outputs = one.load(slot_of(), PROFILE).session.run(ROWS)
    one.settle(slot_of(), PROFILE)
    return outputs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put_release(tmp_path / "a", models={"fp32": LARGE})
    return tmp_path


def entries(folder: Path) -> list[str]:
    return sorted(path.suffix for path in (folder / "cache").iterdir())


def test_the_second_start_serves_the_model_that_the_first_one_cached(folder: Path) -> None:
    first = started(folder)
    assert entries(folder) == [".onnx", ".sha256"]
    (folder / "a/fp32.onnx").write_bytes(b"not read any more")
    np.testing.assert_array_equal(started(folder), first)
    np.testing.assert_array_equal(first, answers(LARGE, ROWS))


def test_serving_does_not_wait_for_the_cache(folder: Path) -> None:
    one = loader(folder)
    one.load(slot_of(), PROFILE)
    assert not (folder / "cache").exists()
    one.settle(slot_of(), PROFILE)
    assert entries(folder) == [".onnx", ".sha256"]


def test_a_model_that_is_damaged_meanwhile_is_not_cached(folder: Path) -> None:
    one = loader(folder)
    one.load(slot_of(), PROFILE)
    damage(folder / "a/fp32.onnx")
    one.settle(slot_of(), PROFILE)
    assert not list((folder / "cache").glob("*.sha256"))


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "a flipped bit": lambda entry: damage(entry),
    "a file cut short": lambda entry: entry.write_bytes(entry.read_bytes()[:1000]),
    "an empty file": lambda entry: entry.write_bytes(b""),
    "no hash": lambda entry: entry.with_suffix(".sha256").unlink(),
    "half a hash": lambda entry: entry.with_suffix(".sha256").write_text("ab"),
    "a hash that is no text": lambda entry: entry.with_suffix(".sha256").write_bytes(b"\xff"),
    "no file": lambda entry: entry.unlink(),
    "a folder": lambda entry: (entry.unlink(), entry.mkdir()),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_entry_costs_nothing_but_time(kind: str, folder: Path) -> None:
    first = started(folder)
    (entry,) = (folder / "cache").glob("*.onnx")
    DAMAGES[kind](entry)
    np.testing.assert_array_equal(started(folder), first)


def test_an_entry_that_onnxruntime_refuses_is_written_again(folder: Path) -> None:
    first = started(folder)
    cache = SessionCache(folder / "cache", lambda: FACTS)
    (entry,) = (folder / "cache").glob("*.onnx")
    entry.with_name(f"{entry.stem}.new.onnx").write_bytes(b"whole, and no model")
    cache.commit(entry.stem)
    np.testing.assert_array_equal(started(folder), first)
    assert entry.stat().st_size > 1 << 20


def test_a_disk_that_refuses_costs_nothing_but_time(folder: Path) -> None:
    (folder / "cache").write_text("a file where the folder should be")
    np.testing.assert_array_equal(started(folder), answers(LARGE, ROWS))


OTHER = {
    "model": lambda cache: cache.key("b" * 64, "1.31.0", SessionOptions()),
    "onnxruntime": lambda cache: cache.key("a" * 64, "1.32.0", SessionOptions()),
    "threads": lambda cache: cache.key("a" * 64, "1.31.0", SessionOptions(intra_op_num_threads=2)),
    "CPU": lambda cache: SessionCache(Path(), lambda: FACTS | {"cpu": "cpu 2"}).key(
        "a" * 64, "1.31.0", SessionOptions()
    ),
    "flags": lambda cache: SessionCache(Path(), lambda: FACTS | {"flags": []}).key(
        "a" * 64, "1.31.0", SessionOptions()
    ),
}


@pytest.mark.parametrize("kind", OTHER)
def test_each_part_of_the_key_makes_another_entry(kind: str) -> None:
    cache = SessionCache(Path(), lambda: FACTS)
    assert OTHER[kind](cache) != cache.key("a" * 64, "1.31.0", SessionOptions())


def test_small_models_are_not_cached(tmp_path: Path) -> None:
    put_release(tmp_path / "a")
    started(tmp_path)
    assert not (tmp_path / "cache").exists()


def test_the_oldest_entries_are_deleted(tmp_path: Path) -> None:
    cache = SessionCache(tmp_path, lambda: FACTS)
    for i in range(KEPT + 3):
        path = cache.begin(f"key{i}")
        assert path is not None
        path.write_bytes(b"model")
        cache.commit(f"key{i}")
    assert cache.find(f"key{KEPT + 2}") is not None
    assert len(list(tmp_path.glob("*.onnx"))) == KEPT


def test_the_key_is_the_same_at_every_start() -> None:
    one, other = (SessionCache(Path(), lambda: dict(FACTS)) for _ in range(2))
    options = msgspec.structs.replace(PROFILE.session)
    assert one.key("a" * 64, "1.31.0", options) == other.key("a" * 64, "1.31.0", PROFILE.session)


def test_entries_of_deleted_releases_are_deleted(tmp_path: Path) -> None:
    here = {"a" * 64, "b" * 64}
    cache = SessionCache(tmp_path, lambda: FACTS, lambda: here)
    keys = [cache.key(digit * 64, "1.31.0", SessionOptions()) for digit in "abc"]
    here.add("c" * 64)
    for key in keys[:2]:
        put(cache, key)
    assert all(cache.find(key) for key in keys[:2])
    here.remove("a" * 64)
    put(cache, keys[2])
    assert [bool(cache.find(key)) for key in keys] == [False, True, True]


def put(cache: SessionCache, key: str) -> None:
    into = cache.begin(key)
    assert into
    into.write_bytes(b"optimised")
    cache.commit(key)
