"""Records of lineage: things, and what was made of, or done with, which."""

from shoal.controller.store.records import Record

#: What a thing may be, in the order of a model's life.
DATASET, MLFLOW, RUN, RELEASE, ROLLOUT, DEVICE, ALERT = KINDS = (
    "dataset", "mlflow", "run", "release", "rollout", "device", "alert",
)  # fmt: skip


class Thing(Record, frozen=True, kw_only=True):
    """A dataset version, version of MLflow's registry, run, release, rollout, device or alert.

    name    as everywhere: "parts@3", "press/3" of MLflow, "op-…", "defects@2", a rollout's
            or device's name, 17
    side    "up": what the thing that was asked for came from; "down": what came of it; "" itself
    state   of it; of a dataset its number of rows, of a release with the reason of a gate's refusal
    detail  a line for people
    gone    it has been deleted, or is not on this controller
    """

    kind: str
    name: str
    side: str
    state: str = ""
    detail: str = ""
    at: float = 0.0
    gone: bool = False


class Link(Record, frozen=True, kw_only=True):
    """`to` was made from, or started by, `source`: each "kind:name". why: in a word."""

    source: str
    to: str
    why: str


class Lineage(Record, frozen=True, kw_only=True):
    """What a thing came from and what came of it.

    things      itself first, then up and down, the nearest first
    devices     release -> number of devices that serve it now
    truncated   there are more things than are listed
    """

    thing: str
    things: list[Thing]
    links: list[Link]
    devices: dict[str, int]
    truncated: bool = False
