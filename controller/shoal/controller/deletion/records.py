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


class Forgotten(Record, frozen=True, kw_only=True):
    """What was done so that a subject's rows are gone, and what was trained on them.

    dataset, column   that were searched; the subject's value is in no record
    rows        rows of the subject by version that had any, "name@2"
    made        the version without them; "" where no version had to be made, or, as `why` says,
                could be
    erased      versions whose files are deleted as soon as no operation runs
    unknown     versions of which it cannot be known: without the column, or masked another way
    runs, releases, tasks   trained on one of them, or on what was derived from it
    devices     that serve one of the releases, by their last report
    policies    models that retrain from one of them
    derived     datasets that were made from one of them and may have the rows too
    """

    dataset: str
    column: str
    rows: dict[str, int]
    made: str
    why: str
    erased: list[str]
    unknown: list[str]
    runs: list[str]
    releases: list[str]
    devices: list[str]
    tasks: list[str]
    policies: list[str]
    derived: list[str]
