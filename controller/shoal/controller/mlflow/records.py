"""Records of followed aliases, of versions that they named, and of the connection to MLflow."""

from shoal.controller.rollouts.records import RolloutPlan
from shoal.controller.store.records import Record

#: States of a version that an alias named; those after ROLLING_OUT are ends.
SEEN, IMPORTING, SIGNING, STARTING, ROLLING_OUT = (
    "SEEN", "IMPORTING", "SIGNING", "STARTING", "ROLLING_OUT",
)  # fmt: skip
REFUSED, FAILED, SUPERSEDED = "REFUSED", "FAILED", "SUPERSEDED"
#: Who signs what a rule imports: for the whole fleet, or for canary devices alone.
RELEASE, CANDIDATE = POLICIES = "release", "candidate"


class Rule(Record, frozen=True, kw_only=True):
    """What a version starts: its import, its signature, its rollout.

    policy   "release" signs for the whole fleet, "candidate" for canary devices alone
    plan     of the rollout; its release is set for each version
    dataset, task, labels, kinds, settings, pipeline   as of an import from MLflow
    """

    plan: RolloutPlan
    policy: str = RELEASE
    dataset: str = ""
    task: str = ""
    labels: list[str] = []
    kinds: str = ""
    settings: str = ""
    pipeline: str = ""


class Follow(Record, frozen=True, kw_only=True):
    """An alias that is followed, "press@champion".

    model       of Shoal, whose next release a version becomes
    version     that the alias names, as last seen; "" while there is no such alias
    checked_at  when that was; error: why it is not known
    """

    name: str
    model: str
    rule: Rule
    created_at: float
    created_by: str
    version: str = ""
    checked_at: float = 0.0
    error: str = ""


class FollowedVersion(Record, frozen=True, kw_only=True):
    """A version that a followed alias named, dealt with once.

    state    SEEN, IMPORTING, SIGNING, STARTING, ROLLING_OUT; then the rollout's FINISHED, STOPPED
             or ROLLED_BACK, or REFUSED by a gate, FAILED, SUPERSEDED by a later version
    reason   of the state
    tagged   MLflow has the state as tags of the version
    """

    follow: str
    version: int
    state: str
    operation: str = ""
    release: str = ""
    rollout: str = ""
    reason: str = ""
    seen_at: float = 0.0
    ended_at: float = 0.0
    tagged: bool = False


class Mirrored(Record, frozen=True, kw_only=True):
    """How far runs are mirrored. waiting: to be sent; failed: given up, see the error of each.

    sent_at   when one was sent last; error: why that fails now, since error_at
    """

    enabled: bool
    experiment: str
    sent: int = 0
    waiting: int = 0
    failed: int = 0
    sent_at: float = 0.0
    error: str = ""
    error_at: float = 0.0


class MlflowStatus(Record, frozen=True, kw_only=True):
    """The connection to MLflow. url: "" where none is configured."""

    url: str
    runs: Mirrored
    follows: list[Follow]
    versions: list[FollowedVersion]
