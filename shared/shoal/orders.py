"""Orders of an assignment: which release a device must run. trust.py verifies them, with TUF."""

import math
import re

import msgspec

from shoal.errors import TrustError
from shoal.manifest import LIMIT, is_model

#: Largest version, attempt or time: what every JSON reader and the wire hold without loss.
MOST = 2**53
_ROLLOUT, _SHA256 = 80, re.compile(r"[0-9a-f]{64}")
#: Role of an order to remove a model. No ring accepts it: an agent without removal rejects it.
REMOVE = "remove"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One target of an assignment: the release of a model that the device must run, or its removal.

    version         0 in a removal, which has no manifest
    path            of the manifest in the image repository; its first part is the role
    length, sha256  of the manifest
    rollout, attempt   ids for the device's reports; a new attempt repeats the update
    not_before_s, deadline_s   0 for none
    """

    model: str
    version: int
    path: str
    length: int
    sha256: str
    rollout: str
    attempt: int
    not_before_s: float = 0.0
    deadline_s: float = 0.0

    @property
    def release(self) -> str:
        """ "model@version"; "" in a removal."""
        return "" if self.removes else f"{self.model}@{self.version}"

    @property
    def role(self) -> str:
        return self.path.partition("/")[0]

    @property
    def removes(self) -> bool:
        """Whether the device must serve no release of the model."""
        return self.role == REMOVE


def check_order(order: Order) -> None:
    """Raise TrustError for an order that no device could keep, or carry out.

    The director's signature says who wrote it, not that it can be read: a model's name becomes a
    folder, rollout and attempt go back to the controller in each report.
    """
    times = (order.not_before_s, order.deadline_s)
    faults = {
        "model": not is_model(order.model),
        "version": not 0 <= order.version <= MOST,
        "attempt": not 0 <= order.attempt <= MOST,
        "rollout": len(order.rollout) > _ROLLOUT or not order.rollout.isprintable(),
        "length": not 0 <= order.length <= LIMIT,
        "sha256": not _SHA256.fullmatch(order.sha256),
        "time": not all(math.isfinite(time) and 0 <= time <= MOST for time in times),
    }
    found = [name for name, wrong in faults.items() if wrong]
    if found:
        raise TrustError(
            f"order for {order.model!r:.80} has an impossible {' and '.join(found)}",
            "nothing was changed; order the release again, and look who holds the director's key",
        )


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """A verified assignment: all orders of one device.

    version    of the assignment, strictly increasing per device
    signed_s   signing time by the director's clock, at most its root's expiry: raises the device's
               time floor
    epochs     model -> security epoch that its release metadata has: a hint to fetch it
    """

    device: str
    version: int
    signed_s: float
    expires_s: float
    orders: list[Order]
    epochs: dict[str, int] = {}
