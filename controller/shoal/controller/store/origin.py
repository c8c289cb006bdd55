"""Who taught a release, where federated rounds did."""

import msgspec


class Contributor(msgspec.Struct, frozen=True, kw_only=True):
    """A device whose updates are in a checkpoint. examples: rows over its rounds, as it says."""

    device: str
    site: str
    rounds: int
    examples: int


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """The federated rounds that a release was made of.

    number     of the round whose checkpoint it is; rounds: all that are in it, oldest first
    release    "model@version" that the task began with
    epsilon    of the task's privacy when that round was done; None without privacy
    secure     no single update was seen
    """

    task: str
    number: int
    rounds: list[int]
    release: str
    strategy: str
    devices: list[Contributor]
    epsilon: float | None = None
    delta: float = 0.0
    secure: bool = False
