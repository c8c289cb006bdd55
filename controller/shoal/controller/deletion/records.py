"""Records of deletions."""

from shoal.controller.store.records import Record


class Dependent(Record, frozen=True, kw_only=True):
    """Something that depends on what is to be deleted.

    kind       "rollout", "operation", "devices", "task", "release", "dataset" or "policy"
    name       of it; of devices: their model
    on         what it depends on, such as "release lot-codes@1"
    why        one phrase
    next_step  a command, after which it does not depend on it any more
    safe       deleted, or for a policy cleared, together with it on request
    """

    kind: str
    name: str
    on: str
    why: str
    next_step: str
    safe: bool = False


class Deleted(Record, frozen=True, kw_only=True):
    """What was deleted, in order, such as "release lot-codes@2"; and policies that were cleared."""

    deleted: list[str]
