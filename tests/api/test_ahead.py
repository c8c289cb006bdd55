"""What a device will ask for differs from what it has: that is made before it asks."""

import time
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from sqlalchemy import insert, update

from api.serving import Served
from bench.controllers import ACTOR, add_release, make_controller
from bench.releases import BIG, MODEL, make_release, perceptron
from shoal.controller.host.context import Context
from shoal.controller.releases import download_urls
from shoal.controller.rollouts import assignments, rollouts
from shoal.controller.rollouts.io.delta_prefetch import DeltaPrefetcher
from shoal.controller.rollouts.records import RolloutPlan, StagePlan
from shoal.controller.store.tables import device

FEATURES = 8


@pytest.fixture
def ctx(tmp_path: Path) -> Iterator[Context]:
    made = make_controller(tmp_path / "controller")
    yield made
    made.store.close()


@pytest.fixture
def server(ctx: Context) -> Iterator[Served]:
    served = Served(ctx.folder, "artifacts", ctx.settings.network.artifacts)
    yield served.wait()
    assert served.end() == 0, served.said


def release(ctx: Context, version: int, *, seed: int = 1, hidden: tuple[int, ...] = (600,)) -> str:
    """Signed; of one seed they differ by a word."""
    graph = onnx.load_from_string(perceptron(FEATURES, hidden, seed=seed))
    graph.doc_string = f"version {version}"
    made = make_release(graph.SerializeToString(), features=FEATURES, version=version)
    return add_release(ctx, made)


def station(ctx: Context, name: str, serves: str) -> None:
    row = {"site": "here", "state": "enrolled", "enrolled_at": 1.0, "labels": {}, "variants": {}}
    row |= {"facts": {}, "ring": "stable", "profile": "generic"}
    with ctx.store.write() as db:
        db.execute(insert(device).values(name=name, releases={MODEL: serves}, **row))


def made(ctx: Context) -> dict[str, int]:
    """Name -> bytes of every delta that lies there."""
    folder = ctx.folder / "deltas"
    found = folder.iterdir() if folder.is_dir() else ()
    return {path.name: path.stat().st_size for path in found}


def test_a_release_that_is_signed_has_its_deltas_made_for_what_devices_have(
    ctx: Context, server: Served
) -> None:
    first, other = release(ctx, 1), release(ctx, 2)
    for number, serves in enumerate((first, other, first)):
        station(ctx, f"cam-{number}", serves)
    prefetcher = DeltaPrefetcher(ctx)
    prefetcher.poll()
    assert made(ctx) == {}
    prefetcher.poll()
    newest = release(ctx, 3)
    prefetcher.poll()
    assert sorted(made(ctx)) == assignments.deltas_of(ctx, newest)
    assert len(made(ctx)) == 2
    assert all(0 < size < 2_000 for size in made(ctx).values())


def test_a_rollout_has_them_made_for_what_devices_have_by_now(ctx: Context, server: Served) -> None:
    first, second = release(ctx, 1), release(ctx, 2)
    station(ctx, "cam-1", "")
    prefetcher = DeltaPrefetcher(ctx)
    with ctx.store.write() as db:
        db.execute(update(device).values(releases={MODEL: first}))
    plan = RolloutPlan(release=second, stages=[StagePlan(name="all")])
    rollouts.start(ctx, actor=ACTOR, plan=plan)
    prefetcher.poll()
    assert len(made(ctx)) == 1


def test_one_that_would_spare_nothing_is_looked_at_once_and_never_made(
    ctx: Context, server: Served
) -> None:
    station(ctx, "cam-1", release(ctx, 1, hidden=BIG))
    newest = release(ctx, 2, seed=2, hidden=BIG)
    prefetcher = DeltaPrefetcher(ctx)
    rollouts.start(
        ctx, actor=ACTOR, plan=RolloutPlan(release=newest, stages=[StagePlan(name="all")])
    )
    prefetcher.poll()
    (name,) = assignments.deltas_of(ctx, newest)
    assert made(ctx) == {name: 0}
    written = (ctx.folder / "deltas" / name).stat().st_mtime_ns
    (url,) = download_urls.urls_of(
        ctx.folder, ctx.settings.network, [name], time.time() + 60
    ).values()
    answer = server.get(url.removeprefix(server.url))
    assert answer.status == 404
    assert (ctx.folder / "deltas" / name).stat().st_mtime_ns == written


def test_an_artifact_server_that_is_away_is_nobodys_trouble(ctx: Context) -> None:
    prefetcher = DeltaPrefetcher(ctx)
    station(ctx, "cam-1", release(ctx, 1))
    release(ctx, 2)
    prefetcher.poll()
    assert made(ctx) == {}


def test_an_unsigned_release_has_none(ctx: Context) -> None:
    assert assignments.deltas_of(ctx, f"{MODEL}@9") == []
