"""What one round asks of a device: signed by the role `rounds`, judged by the device itself.

Whether the parts go together is said in shoal.controller.federated.planning.conflicts.
"""

from typing import Annotated, Literal

import msgspec

from shoal.federated.fixed_point import FixedPoint

Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class Learning(msgspec.Struct, frozen=True, kw_only=True):
    """How a device trains.

    lr       learning rate
    epochs   over its own rows
    batch    rows of a step
    terms    further inputs of the train graph, from the strategy: mu, shift
    """

    lr: Positive
    epochs: Count = 1
    batch: Count = 32
    terms: dict[str, float | bool] = {}


class Privacy(msgspec.Struct, frozen=True, kw_only=True):
    """Differential privacy of a device's whole contribution to a round.

    where    central: the controller adds noise to the sum; local: every device to its update;
             distributed: every device a little, so that the secure sum has enough
    clip     L2 norm of an update, at most
    noise    standard deviation of the noise on the sum (local: on each update), in clips
    delta    of (epsilon, delta)
    """

    where: Literal["central", "local", "distributed"]
    clip: Positive
    noise: Positive
    delta: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 1e-6


class Secure(msgspec.Struct, frozen=True, kw_only=True):
    """Secure aggregation; see shoal.controller.federated.secagg.parameters.

    degree      neighbours of each device
    threshold   shares that open a secret
    scale       updates as whole numbers
    """

    degree: Count
    threshold: Count
    scale: FixedPoint


class Compression(msgspec.Struct, frozen=True, kw_only=True):
    """How an update is made small.

    kind       none: float32; int8, int4: rounded at random; top-k: the largest elements only
    fraction   of the elements that top-k keeps
    zstd       packed afterwards
    """

    kind: Literal["none", "int8", "int4", "top-k"] = "none"
    fraction: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.01
    zstd: bool = False


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One round.

    task, round    whose, and which one, counted from 1
    attempt        of this round, by 16 random bytes
    strategy       by name
    least          updates that the sum must have
    deadline_s     Unix seconds, UTC; after it a device need not answer
    gateways       site -> the device there that others may hand their updates to
    """

    task: str
    round: Count
    attempt: bytes
    strategy: str
    least: Count
    deadline_s: NotNegative
    learning: Learning
    privacy: Privacy | None = None
    secure: Secure | None = None
    compression: Compression = Compression()
    gateways: dict[str, str] = {}
