"""Plan of a round: signed by the role `rounds`, checked against its own limits by each device.

Conflicts between its parts: shoal.controller.federated.planning.conflicts.
"""

from typing import Annotated, Literal

import msgspec

from shoal.federated.fixed_point import FixedPoint

Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class Learning(msgspec.Struct, frozen=True, kw_only=True):
    """Training parameters of a device.

    lr       learning rate
    epochs   over its own rows
    batch    rows per step
    terms    further inputs of the train graph, from the strategy: mu, shift
    """

    lr: Positive
    epochs: Count = 1
    batch: Count = 32
    terms: dict[str, float | bool] = {}


class Privacy(msgspec.Struct, frozen=True, kw_only=True):
    """Differential privacy of a device's whole contribution to a round.

    where    central: the controller adds noise to the sum; local: every device to its update;
             distributed: every device adds a share of the secure sum's noise
    clip     largest L2 norm of an update
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
    threshold   shares that reconstruct a secret
    scale       fixed-point encoding of updates
    """

    degree: Count
    threshold: Count
    scale: FixedPoint


class Compression(msgspec.Struct, frozen=True, kw_only=True):
    """Compression of an update.

    kind       none: float32; int8, int4: stochastic rounding; top-k: only the largest elements
    fraction   of the elements that top-k keeps
    zstd       compress the result
    """

    kind: Literal["none", "int8", "int4", "top-k"] = "none"
    fraction: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.01
    zstd: bool = False


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Plan of one round.

    task, round    task name, and number of the round, from 1
    attempt        id of this attempt, 16 random bytes
    strategy       name
    least          smallest number of updates in the sum
    deadline_s     Unix seconds, UTC, after which devices stop
    gateways       site -> device that sums the updates of the site
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
