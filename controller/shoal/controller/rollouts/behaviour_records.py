"""Records of behaviour gates: their settings, what they read, and what each look found."""

from shoal.controller.store.records import Record

#: What a gate can compare. errors: rows that failed; latency: calls slower than the device's own
#: p95 before; accuracy: labelled rows that were predicted wrongly.
METRICS = ("errors", "latency", "accuracy")
#: Percent of trials below which a metric is good enough, whatever it was before.
ACCEPTABLE_PCT = {"errors": 0.1, "latency": 0.0, "accuracy": 0.0}


class BehaviourGate(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One metric that a release must not make worse, on the devices of a stage against others.

    metric     "errors", "latency" or "accuracy"
    tolerance  how many times as frequent its events may be, above 1
    acceptable_pct  percent of trials that is good enough whatever it was; below 0: the metric's own
    """

    metric: str
    tolerance: float = 1.25
    acceptable_pct: float = -1.0

    @property
    def acceptable(self) -> float:
        """Share of trials that is good enough."""
        own = self.acceptable_pct if self.acceptable_pct >= 0 else ACCEPTABLE_PCT[self.metric]
        return own / 100


class Counts(Record, frozen=True, kw_only=True):
    """Trials and events of one metric: a list of D devices (an hour), or D lists of H hours."""

    trials: list[int]
    events: list[int]


class Panel(Record, frozen=True, kw_only=True):
    """The devices that a stage compares, and their past: frozen when the stage begins.

    canary, control   names; the devices of all lists, in this order
    first_hour, hours   begin of the past, Unix seconds, and its length H
    slow_bin   of each device: calls in a higher bin of shoal.sketch.Latency are slow; -1: unknown
    past       metric -> counts by device and hour: flat lists of D*H, hours of a device together
    """

    release: str
    canary: list[str]
    control: list[str]
    first_hour: int
    hours: int
    slow_bin: list[int]
    past: dict[str, Counts]


class HourCounts(Record, frozen=True, kw_only=True):
    """What the devices of a panel sent in one hour. hour: its begin, Unix seconds."""

    hour: int
    counts: dict[str, Counts]


class Side(Record, frozen=True, kw_only=True):
    """One side of a comparison.

    devices, reporting   devices in the panel with a past, and those that have sent rows since
    trials, events       since the stage began
    expected   events that the devices' own past would give
    past_pct, now_pct    events in percent of trials, before and since
    """

    devices: int
    reporting: int
    trials: int
    events: int
    expected: float
    past_pct: float
    now_pct: float


class MetricEvidence(Record, frozen=True, kw_only=True):
    """What is known of one metric at one look.

    state      "WORSE", "SAFE", "OPEN" (not decided), "MISSING" (nothing to decide by)
    ratio      events on canaries against control, each as a multiple of its own past
    ln_worse, worse_at    log of the e-value for a ratio above the tolerance, and its boundary
    ln_safe, safe_at      log of the e-value for a ratio below it, and its boundary
    dispersion   phi: how much more counts varied in the past than those of a Poisson process
    missing    what is missing, in words; "" if decided
    """

    metric: str
    state: str
    tolerance: float
    canary: Side
    control: Side
    ratio: float
    ln_worse: float
    worse_at: float
    ln_safe: float
    safe_at: float
    dispersion: float
    missing: str = ""


class Evidence(Record, frozen=True, kw_only=True):
    """One look of a stage's behaviour gates.

    outcome   "WAIT", "PASSED", "FAILED", "INCONCLUSIVE"; why: in a sentence
    """

    stage: str
    at: float
    outcome: str
    why: str
    metrics: list[MetricEvidence]


class Receipt(Record, frozen=True, kw_only=True):
    """What a verdict was computed from: enough to compute it again, anywhere.

    formula    version of the formulas; version: of Shoal
    gates      settings; running, expired: see rollouts.behaviour.judge
    panel, hours   SHA-256 of the inputs as canonical JSON: a Panel, and HourCounts in order of time
    seed       of a randomisation; "" for none
    """

    formula: str
    version: str
    gates: list[BehaviourGate]
    running: list[int]
    expired: bool
    panel: str
    hours: list[str]
    seed: str = ""
