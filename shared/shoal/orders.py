"""Orders of an assignment: which release a device must run. trust.py verifies them, with TUF."""

import msgspec

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


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """A verified assignment: all orders of one device.

    version    of the assignment, strictly increasing per device
    signed_s   signing time by the director's clock, at most its root's expiry: raises the device's
               time floor
    """

    device: str
    version: int
    signed_s: float
    expires_s: float
    orders: list[Order]
