"""Two sites, each with a gateway: real agents, one gateway killed with what it was given."""

import signal
import threading
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest

from digits import homes_of
from federated.real import Cohort, serving
from federated.test_digits import FEATURES, MODEL, as_pixels, write_table
from ports import free_port
from shelves import file_shelf
from shoal import wire
from shoal.controller.federated.strategy import strategy_of
from shoal.controller.federated.updates import Server, Update
from shoal.federated.compression import decompress
from shoal.federated.messages import Contribution, Join, Piece
from soaking import soak
from waiting import eventually

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(420)]

SITES = {
    "north-1": "north", "north-2": "north", "south-1": "south", "south-2": "south",
    "south-3": "south",
}  # fmt: skip
GATEWAYS = {"north": "north-1", "south": "south-1"}


class Saved(threading.Thread):
    """Every device's newest contribution, read from its disk as soon as it is there."""

    def __init__(self, cohort: Cohort) -> None:
        super().__init__(daemon=True)
        self._folders = {name: one.folder for name, one in cohort.members.items()}
        self.found: dict[str, Contribution] = {}
        self.ending = threading.Event()

    def run(self) -> None:
        while not self.ending.wait(0.02):
            for name, folder in self._folders.items():
                for path in folder.glob("learning/rounds/*/contribution"):
                    try:
                        data = path.read_bytes()
                    except OSError:
                        continue
                    self.found[name] = msgspec.msgpack.decode(data, type=Contribution)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cohort]:
    parent = tmp_path_factory.mktemp("gateways")
    homes, test = homes_of(len(SITES), np.random.default_rng(1))
    with serving(parent) as made:
        for name, site in SITES.items():
            member = made.enrol(name, site=site)
            if name in GATEWAYS.values():
                with (member.folder / "agent.toml").open("a") as file:
                    file.write(
                        '\n[gateway]\nenabled = true\nhost = "127.0.0.1"\n'
                        f'address = "127.0.0.1"\nport = {free_port()}\n'
                    )
        made.start()
        table = write_table(parent / "sample.csv", as_pixels(test.only(np.arange(60))))
        release = made.release(table, MODEL, "digit", estimator="mlp", params={"hidden": [32]})
        for name, home in zip(SITES, map(as_pixels, homes), strict=True):
            made.teach(name, MODEL, FEATURES, home.x, [str(y) for y in home.y])
        made.plan(
            name="sites", release=release, evaluate=1, gateways=GATEWAYS,
            learning={"lr": 0.05, "epochs": 5, "batch": 10},
            pace={"goal": len(SITES), "least": len(SITES), "over": 1.0, "train_s": 120},
        )  # fmt: skip
        yield made


def sent(cohort: Cohort, since: int) -> dict[str, int]:
    """Device -> bytes of pieces that went over the WAN, of messages from the `since`th on."""
    with cohort._lock:
        heard = cohort.heard[since:]
    found = dict.fromkeys(SITES, 0)
    for topic, payload in heard:
        *_, device, way, kind = topic.split("/")
        if (way, kind) == ("up", "round") and isinstance(wire.decode_up(kind, payload).said, Piece):
            found[device] += len(payload)
    return found


def flat(cohort: Cohort, one: dict, found: dict[str, Contribution]) -> bytes:
    """The checkpoint that every device's own update gives."""
    strategy, theta = strategy_of("fedavg", {}), cohort.theta(one["theta"])
    gathering = strategy.gather(theta.size, file_shelf(theta.size))
    for name, said in found.items():
        delta = decompress(said.update, theta.size)
        gathering.add(Update(device=name, delta=delta, examples=said.examples, loss=said.loss))
    return strategy.advance(Server(theta=theta), gathering.result()).theta.astype("<f4").tobytes()


def in_hand(cohort: Cohort, gateway: str, member: str) -> bool:
    folder = cohort.members[gateway].folder
    return any(folder.glob(f"learning/rounds/*/site/{member}"))


def run(cohort: Cohort, saved: Saved, meanwhile=lambda: None) -> tuple[dict, dict[str, int]]:
    """One round; what the API says of it, and bytes over the WAN by device."""
    since = len(cohort.heard)
    saved.start()
    cohort.begin("sites", 1)
    meanwhile()
    cohort.wait_done("sites", 200)
    saved.ending.set()
    saved.join()
    [*_, one] = [one for one in cohort.rounds("sites") if one["state"] == "DONE"]
    return one, sent(cohort, since)


def test_a_sites_updates_cross_the_wan_as_one_and_give_the_same_checkpoint(cohort: Cohort) -> None:
    saved = Saved(cohort)
    one, wan = run(cohort, saved)
    assert set(saved.found) == set(SITES)
    assert cohort.blob(one["checkpoint"]) == flat(cohort, one, saved.found)
    assert {name for name, count in wan.items() if count} == {"north-1", "south-1"}
    assert all(part["chosen"] for part in cohort.parts(one["id"]).values())
    alone = sum(len(msgspec.msgpack.encode(said)) for said in saved.found.values())
    print("bytes over the WAN", wan, "instead of", alone)
    assert sum(wan.values()) < 0.7 * alone


@soak
def test_a_gateway_that_is_killed_with_an_update_in_hand_costs_its_site_the_sum_alone(
    cohort: Cohort,
) -> None:
    saved = Saved(cohort)

    def kill() -> None:
        cohort.wait_said(Join, device="south-3", within_s=60)
        slow = cohort.members["south-3"].process
        slow.send_signal(signal.SIGSTOP)
        eventually(lambda: in_hand(cohort, "south-1", "south-2"), "an update in hand", 60)
        since = len(cohort.heard)
        cohort.members["south-1"].kill()
        slow.send_signal(signal.SIGCONT)
        for name in ("south-2", "south-3"):  # while north's sum may come, too
            eventually(lambda name=name: sent(cohort, since)[name], f"{name}'s own update", 60)
        cohort.members["south-1"].start()

    one, wan = run(cohort, saved, kill)
    assert cohort.blob(one["checkpoint"]) == flat(cohort, one, saved.found)
    assert {name for name, count in wan.items() if count} == set(SITES) - {"north-2"}
    parts = cohort.parts(one["id"])
    assert {name: part["examples"] for name, part in parts.items()} == {
        name: said.examples for name, said in saved.found.items()
    }
    print("bytes over the WAN", wan)
