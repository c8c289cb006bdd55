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


def answered(folder: Path) -> np.ndarray:
    """By a start of the agent, after which all is done that waits until it serves."""
    one = loader(folder)
    said = one.load(slot_of(), PROFILE).session.run(ROWS)
    one.settle(slot_of(), PROFILE)
    return said


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put_release(tmp_path / "a", models={"fp32": LARGE})
    return tmp_path


def entries(folder: Path) -> list[str]:
    return sorted(path.suffix for path in (folder / "cache").iterdir())


def test_the_second_start_answers_with_what_the_first_one_kept(folder: Path) -> None:
    first = answered(folder)
    assert entries(folder) == [".onnx", ".sha256"]
    (folder / "a/fp32.onnx").write_bytes(b"not read any more")
    np.testing.assert_array_equal(answered(folder), first)
    np.testing.assert_array_equal(first, answers(LARGE, ROWS))


def test_to_serve_waits_for_no_entry(folder: Path) -> None:
    one = loader(folder)
    one.load(slot_of(), PROFILE)
    assert not (folder / "cache").exists()
    one.settle(slot_of(), PROFILE)
    assert entries(folder) == [".onnx", ".sha256"]


def test_a_model_that_is_damaged_by_now_is_not_kept(folder: Path) -> None:
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
    first = answered(folder)
    (entry,) = (folder / "cache").glob("*.onnx")
    DAMAGES[kind](entry)
    np.testing.assert_array_equal(answered(folder), first)


def test_an_entry_that_onnxruntime_refuses_is_made_anew(folder: Path) -> None:
    first = answered(folder)
    cache = SessionCache(folder / "cache", lambda: FACTS)
    (entry,) = (folder / "cache").glob("*.onnx")
    entry.with_name(f"{entry.stem}.new.onnx").write_bytes(b"whole, and no model")
    cache.keep(entry.stem)
    np.testing.assert_array_equal(answered(folder), first)
    assert entry.stat().st_size > 1 << 20


def test_a_disk_that_refuses_costs_nothing_but_time(folder: Path) -> None:
    (folder / "cache").write_text("a file where the folder should be")
    np.testing.assert_array_equal(answered(folder), answers(LARGE, ROWS))


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
def test_an_entry_is_never_met_by_another(kind: str) -> None:
    cache = SessionCache(Path(), lambda: FACTS)
    assert OTHER[kind](cache) != cache.key("a" * 64, "1.31.0", SessionOptions())


def test_small_models_are_not_worth_keeping(tmp_path: Path) -> None:
    put_release(tmp_path / "a")
    answered(tmp_path)
    assert not (tmp_path / "cache").exists()


def test_the_oldest_entries_go(tmp_path: Path) -> None:
    cache = SessionCache(tmp_path, lambda: FACTS)
    for i in range(KEPT + 3):
        begun = cache.begin(f"key{i}")
        assert begun is not None
        begun.write_bytes(b"model")
        cache.keep(f"key{i}")
    assert cache.find(f"key{KEPT + 2}") is not None
    assert len(list(tmp_path.glob("*.onnx"))) == KEPT


def test_the_key_is_the_same_at_every_start() -> None:
    one, other = (SessionCache(Path(), lambda: dict(FACTS)) for _ in range(2))
    options = msgspec.structs.replace(PROFILE.session)
    assert one.key("a" * 64, "1.31.0", options) == other.key("a" * 64, "1.31.0", PROFILE.session)


def test_entries_of_releases_that_are_gone_go_too(tmp_path: Path) -> None:
    here = {"a" * 64, "b" * 64}
    cache = SessionCache(tmp_path, lambda: FACTS, lambda: here)
    keys = [cache.key(digit * 64, "1.31.0", SessionOptions()) for digit in "abc"]
    here.add("c" * 64)
    for key in keys[:2]:
        keep(cache, key)
    assert all(cache.find(key) for key in keys[:2])
    here.remove("a" * 64)
    keep(cache, keys[2])
    assert [bool(cache.find(key)) for key in keys] == [False, True, True]


def keep(cache: SessionCache, key: str) -> None:
    into = cache.begin(key)
    assert into
    into.write_bytes(b"optimised")
    cache.keep(key)
