"""Rollout plans and records of rollouts, stages and their devices."""

from typing import Any

from shoal.controller.rollouts.behaviour_records import BehaviourGate
from shoal.controller.store.records import Record


class Selector(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Devices of a stage or a group; an empty field matches all.

    label    "key=value", or "key" for any value
    percent  of the remaining devices; of a stage only
    """

    ring: str = ""
    site: str = ""
    profile: str = ""
    label: str = ""
    line: str = ""
    percent: float = 100.0


class StagePlan(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One stage and its install gate.

    threshold_pct  failed share of finished devices, in percent, from which the stage fails
    min_executed   finished devices before the gate decides; of a smaller stage: all of them
    max_disagree_pct  percent of recent inputs that may be predicted otherwise than before
    """

    name: str
    select: Selector = Selector()
    threshold_pct: float = 10.0
    min_executed: int = 1
    max_disagree_pct: float = 100.0


class RolloutPlan(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to roll out, where, and what to do when a gate fails.

    on_failure  "pause", "stop" or "rollback"
    deadline_s  seconds a device has for one attempt
    max_concurrent  online devices that may update at once; 0 for no limit
    gates       metrics that the release must not make worse on the devices of a stage
    analyse_s   seconds to compare them once a stage's devices have finished
    """

    release: str
    stages: list[StagePlan]
    on_failure: str = "pause"
    deadline_s: float = 86_400.0
    max_attempts: int = 1
    max_concurrent: int = 0
    gates: list[BehaviourGate] = []
    analyse_s: float = 86_400.0


class Stage(Record, frozen=True, kw_only=True):
    """state: SCHEDULED, RUNNING, ANALYSING, SUCCESSFUL, INCONCLUSIVE, PAUSED, FAILED.

    disagree   share of `compared` recent inputs that its shadow probes predicted otherwise
    accepted_pct  disagreement that a person has accepted by resuming
    analysing_at  since when its devices have finished and their behaviour is compared
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
    analysing_at: float = 0.0


class Trailing(Record, frozen=True, kw_only=True):
    """The trailing stage of a rollout: devices that missed it, joined later or were replaced.

    state   "RUNNING" or "PAUSED", and the reason
    """

    state: str
    reason: str
    devices: int
    succeeded: int
    failed: int
    skipped: int


class Rollout(Record, frozen=True, kw_only=True):
    """state: see rollouts.machine.TRANSITIONS; reason: why it is in this state."""

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
    trailing: Trailing | None = None


class RolloutDevice(Record, frozen=True, kw_only=True):
    """One device in one rollout. state: of installed.record.State, or "ASSIGNED", "WAITING",
    "SKIPPED" (no files for its profile; see cause)."""

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


class Undeployment(Record, frozen=True, kw_only=True):
    """Devices that are ordered to remove a model, and how many have.

    select     which devices; empty for all that had the model
    named      the devices named instead of a selection
    state      "SELECTING", "RUNNING", "FINISHED", "CANCELED"; reason: why it was canceled
    devices    in it; SELECTING: so far
    waiting    not ordered yet, or ordered and not reported
    cannot     their agents do not know the order: they are ordered once they are updated
    failed     reported that they could not; out: decommissioned or canceled
    """

    id: str
    model: str
    select: Selector
    named: list[str]
    state: str
    reason: str
    devices: int
    removed: int
    waiting: int
    cannot: int
    failed: int
    out: int
    created_at: float
    created_by: str
    finished_at: float = 0.0


class UndeploymentDevice(Record, frozen=True, kw_only=True):
    """One device in one undeployment.

    state   "WAITING", "ORDERED", "REMOVED", "CANNOT", "FAILED", "GONE", "CANCELED"
    detail  why, and what to do
    """

    undeployment: str
    device: str
    site: str
    state: str
    detail: str
    updated_at: float
