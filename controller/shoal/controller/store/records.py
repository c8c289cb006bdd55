"""What the controller keeps and shows: one struct a thing, the same in service, API and console.

REST bodies, the OpenAPI document and the console's templates all come from these. Times are Unix
seconds, UTC (``_at``), 0 for never.
"""

from typing import Any

import msgspec

from shoal.controller.store.origin import Origin


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base of everything the controller shows."""


class Page(Record, frozen=True, kw_only=True):
    """How a list goes on: pass `next` as ``cursor``; empty at the end. `total` of all pages."""

    next: str = ""
    total: int = 0


class User(Record, frozen=True, kw_only=True):
    """role: viewer < operator < approver < admin."""

    name: str
    role: str
    created_at: float


class ApiToken(Record, frozen=True, kw_only=True):
    """A token for a machine or the CLI; `secret` is shown once, at its making."""

    id: str
    name: str
    user: str
    role: str
    created_at: float
    expires_at: float
    last_used_at: float = 0.0
    secret: str = ""


class AuditEntry(Record, frozen=True, kw_only=True):
    """Who did what, chained: hash = SHA-256(previous hash + this entry)."""

    id: int
    at: float
    actor: str
    verb: str
    subject: str
    detail: dict[str, Any]
    hash: str


class JoinToken(Record, frozen=True, kw_only=True):
    """Lets `uses_left` devices of `site` in `rings` enrol until `expires_at`.

    secret   the whole token, shown once: "sj1.<id>.<secret>.<sha256 of the CA>"
    """

    id: str
    site: str
    rings: list[str]
    uses_left: int
    created_at: float
    expires_at: float
    secret: str = ""


class Device(Record, frozen=True, kw_only=True):
    """One device as the controller last heard of it.

    state      "enrolled" or "decommissioned"
    releases   model -> "model@version" that serves
    variants   model -> variant that serves
    error      the last thing that went wrong, "" when nothing is
    clock_skew_s  its clock is so far ahead, give or take clock_error_s (-1: it has not told)
    """

    name: str
    site: str
    line: str
    labels: dict[str, str]
    ring: str
    profile: str
    state: str
    online: bool
    enrolled_at: float
    seen_at: float
    certificate_expires_at: float
    agent: str = ""
    endpoint: str = ""
    releases: dict[str, str] = {}
    variants: dict[str, str] = {}
    facts: dict[str, Any] = {}
    error: str = ""
    error_at: float = 0.0
    clock_skew_s: float = 0.0
    clock_error_s: float = -1.0


class DeviceEvent(Record, frozen=True, kw_only=True):
    """One line of a device's timeline: an update step or a fault.

    kind   "update", "fault", or "device" for its enrolment and decommissioning
    """

    device: str
    at: float
    kind: str
    state: str
    cause: str
    detail: str
    model: str = ""
    release: str = ""
    rollout: str = ""
    attempt: int = 0
    facts: dict[str, Any] = {}


class Window(Record, frozen=True, kw_only=True):
    """One window of one model on one device, without its sketches."""

    device: str
    model: str
    release: str
    start_at: float
    window_s: float
    rows: int
    errors: int
    slow: int
    p50_us: float
    p99_us: float
    labelled: int
    correct: int
    merged: int


class Column(Record, frozen=True, kw_only=True):
    """role: "feature", "label", "site", "split" or "dropped"."""

    name: str
    dtype: str
    role: str
    missing: int
    low: float | None = None
    high: float | None = None
    values: list[str] = []


class DatasetVersion(Record, frozen=True, kw_only=True):
    """An immutable table. parents: the "name@version" it was made from, and `how`."""

    name: str
    version: int
    sha256: str
    size: int
    rows: int
    columns: list[Column]
    label: str
    site: str
    split: str
    parents: list[str]
    how: str
    created_at: float
    created_by: str
    sites: dict[str, int] = {}

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.version}"


class Operation(Record, frozen=True, kw_only=True):
    """Long work: "train", "import", "checkpoint" or "federate" (prepare a federated task).

    state     queued, running, succeeded, failed, canceled
    progress  0 to 1, and `step` says what is being done
    result    e.g. {"release": "lot-codes@2"}; `error` says why it failed, with the hint
    limit_s   seconds it may run before it is ended; 0 for no limit
    canceled_by  who gave it up; while it still runs, it is about to end
    """

    id: str
    kind: str
    state: str
    progress: float
    step: str
    subject: str
    created_at: float
    created_by: str
    started_at: float = 0.0
    finished_at: float = 0.0
    params: dict[str, Any] = {}
    result: dict[str, Any] = {}
    error: str = ""
    limit_s: float = 0.0
    canceled_by: str = ""


class VariantReport(Record, frozen=True, kw_only=True):
    """One variant as the controller built and measured it."""

    name: str
    sha256: str
    size: int
    metrics: dict[str, float]
    cosine: float
    detail: str = ""


class Verdict(Record, frozen=True, kw_only=True):
    """Whether a variant may go to a profile, and why not."""

    profile: str
    variant: str
    passed: bool
    why: str = ""


class Signature(Record, frozen=True, kw_only=True):
    role: str
    key: str
    at: float
    by: str


class Release(Record, frozen=True, kw_only=True):
    """One version of a model, from training to the fleet.

    state      "validated" (built, not signed), "refused" (a gate said no), "candidate" (signed by
               the automation key: canary ring only), "released" (signed for stable)
    trigger    what made it: "manual", or "alert:<id>"
    metrics    of the fp32 model on held-back data; worst_site, site_gap, and by_site, per site:
               balanced accuracy of a classification, R2 of a regression
    origin     who taught it, where federated rounds did
    quarantined  why nobody may publish or roll it out: a round in it is poisoned
    """

    model: str
    version: int
    state: str
    dataset: str
    dataset_sha256: str
    operation: str
    trigger: str
    created_at: float
    created_by: str
    task: str
    estimator: str
    metrics: dict[str, float]
    by_site: dict[str, float]
    variants: list[VariantReport]
    verdicts: list[Verdict]
    signatures: list[Signature]
    labels: list[str]
    features: list[str]
    params: dict[str, Any] = {}
    parent: str = ""
    override: str = ""
    origin: Origin | None = None
    quarantined: str = ""

    @property
    def ref(self) -> str:
        return f"{self.model}@{self.version}"


class Model(Record, frozen=True, kw_only=True):
    """A model's line of releases.

    retrain_on_drift   when a drift alert opens and a newer dataset version comes, train again
    task               federated task of which drift asks for `rounds`; "" for none
    cooldown_s         seconds between two such times, at least; asked_at: the last one, 0: never
    """

    name: str
    created_at: float
    latest: str
    released: str
    releases: int
    retrain_on_drift: bool
    dataset: str
    task: str = ""
    rounds: int = 10
    cooldown_s: float = 86_400.0
    asked_at: float = 0.0


class Selector(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which devices a stage takes; empty fields take all. percent: of what is left, by hash."""

    ring: str = ""
    site: str = ""
    profile: str = ""
    label: str = ""
    percent: float = 100.0


class StagePlan(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One stage and its install gate.

    threshold_pct  failed share of finished devices, in percent, from which the stage fails
    min_executed   finished devices before the gate speaks; fewer devices than that: all of them
    max_disagree_pct  of devices' recent inputs that it may answer otherwise than what they serve
    """

    name: str
    select: Selector = Selector()
    threshold_pct: float = 10.0
    min_executed: int = 1
    max_disagree_pct: float = 100.0


class RolloutPlan(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to roll out, where, and what to do when a gate says no.

    on_failure  "pause", "stop" or "rollback"
    deadline_s  seconds a device has for one attempt
    max_concurrent  devices that may be at it at once, of those that are online; 0 for all
    """

    release: str
    stages: list[StagePlan]
    on_failure: str = "pause"
    deadline_s: float = 86_400.0
    max_attempts: int = 1
    max_concurrent: int = 0


class Stage(Record, frozen=True, kw_only=True):
    """state: SCHEDULED, RUNNING, ANALYSING, SUCCESSFUL, INCONCLUSIVE, PAUSED, FAILED.

    disagree   share of `compared` recent inputs that its shadow probes answered otherwise
    accepted_pct  of it that a person has accepted, by resuming
    """

    name: str
    state: str
    devices: int
    succeeded: int
    failed: int
    skipped: int
    unseen: int
    started_at: float
    finished_at: float
    verdict: str = ""
    disagree: float = 0.0
    compared: int = 0
    accepted_pct: float = 0.0


class Rollout(Record, frozen=True, kw_only=True):
    """state: see rollouts.machine.TRANSITIONS; reason says why it is where it is."""

    id: str
    release: str
    model: str
    plan: RolloutPlan
    state: str
    reason: str
    stages: list[Stage]
    created_at: float
    created_by: str
    finished_at: float = 0.0


class RolloutDevice(Record, frozen=True, kw_only=True):
    """One device in one rollout. state: of installed.record.State, or "ASSIGNED", "WAITING",
    "SKIPPED" (its profile cannot carry this release: cause says why)."""

    rollout: str
    device: str
    site: str
    profile: str
    stage: str
    state: str
    attempt: int
    cause: str
    detail: str
    previous: str
    updated_at: float
    facts: dict[str, Any] = {}


class Finding(Record, frozen=True, kw_only=True):
    """One decision that a distribution moved: DESIGN section 8.

    scope      "device" or "site", and `subject` its name
    scale      windows merged: 1, 4 or 16
    log10_p    of the tolerance test against the subject's own baseline; alpha its level
    psi        against training: an effect size, never the alarm
    """

    id: int
    at: float
    kind: str
    scope: str
    subject: str
    model: str
    release: str
    feature: str
    scale: int
    log10_p: float
    log10_alpha: float
    hellinger: float
    psi: float
    rows: int


class Alert(Record, frozen=True, kw_only=True):
    """Findings or failures that a person should know of, grouped.

    kind      "drift", "rollout", "device", "task" (federated: its rounds, or a quarantine)
    state     open, acknowledged, closed
    next_step what to do, one sentence
    """

    id: int
    kind: str
    severity: str
    state: str
    title: str
    detail: str
    next_step: str
    site: str
    model: str
    release: str
    features: list[str]
    findings: int
    opened_at: float
    updated_at: float
    acknowledged_by: str = ""
    closed_at: float = 0.0


class Performance(Record, frozen=True, kw_only=True):
    """Accuracy from labels joined on the device, over a span of time."""

    model: str
    scope: str
    subject: str
    release: str
    since: float
    until: float
    rows: int
    labelled: int
    correct: int
    errors: int
    accuracy: float | None
    p50_us: float | None
    p99_us: float | None


class FleetHealth(Record, frozen=True, kw_only=True):
    """The strip on top of the console."""

    devices: int
    online: int
    failing: int
    alerts: int
    rows_per_s: float
    windows_per_min: float
    running_rollouts: int
    releases: dict[str, int]
