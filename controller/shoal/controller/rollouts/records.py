"""Rollout plans and records of rollouts, stages and their devices."""

from typing import Any

from shoal.controller.store.records import Record


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
