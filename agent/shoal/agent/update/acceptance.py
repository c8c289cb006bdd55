"""Acceptance of a release on this device: verdicts on the probe and on the observation.

The probe is measured by io/trial.py off the serving path; the observation by the agent while the
trial serves, and by programs that run their own session (serving/session_reports.py).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from shoal.agent.installed.record import Slot
from shoal.agent.serving.session_reports import SessionReport
from shoal.agent.serving.window import Vitals
from shoal.agent.update.machine import MAX_STARTS, Note
from shoal.profile import Profile

#: Timed runs of a round. Interference only adds latency, so the best of a few rounds counts.
RUNS = 50
#: Share of requests that may fail or be slow, beyond the share before the swap.
TOLERATED = 0.05
#: Requests for an "unhealthy" verdict during the observation, and at its end.
EARLY, LATE = 50, 5
_ODD, _ODD_ROWS = 0.01, 3
#: Seconds after which a running request counts as stuck.
STUCK_S = 15.0
#: A variant is chosen over one that the profile prefers when it needs at most this share of its
#: time; a smaller difference may be noise.
FASTER = 0.9


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Measurements of one variant by the probe.

    worst_error     largest difference from the golden outputs, over max(1, |golden|)
    labels_differ   golden rows with another predicted class, of golden_rows
    p50_ms, p99_ms  of one-row runs, in the best of its rounds
    rss_mb          resident memory of the probe with this variant loaded and warm
    disagree        share of recent local inputs with another label than the serving release's; -1
                    where there was nothing to compare
    compared        rows compared
    deviation       of a release of tensors: largest deviation from a golden output, where 1.0 is
                    the most that another CPU may cause, and `where` it is; -1 for one of rows
    """

    variant: str
    worst_error: float
    labels_differ: int
    golden_rows: int
    p50_ms: float
    p99_ms: float
    rss_mb: float
    load_ms: float = 0.0
    disagree: float = -1.0
    compared: int = 0
    deviation: float = -1.0
    where: str = ""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """cause "" for a pass; variant is the chosen one."""

    cause: str = ""
    detail: str = ""
    facts: dict[str, Any] = {}
    variant: str = ""

    @property
    def passed(self) -> bool:
        return not self.cause

    def note(self, at_s: float = 0.0) -> Note:
        """For the state machine."""
        return Note(at_s=at_s, cause=self.cause, detail=self.detail, facts=self.facts)


def judge_probe(measured: list[Measured], profile: Profile) -> Verdict:
    """The verdict on a probed release; `measured` in the profile's order of preference.

    A wrong output of any variant fails the release: the bundle or the CPU differs from what was
    validated. Otherwise the fastest variant within the budget is chosen; of those about as fast,
    the one that the profile prefers. (int8 is slower than fp32 for small models, and which are
    small differs between boards.)
    """
    for one in measured:
        if one.worst_error > profile.gate.golden_atol or one.labels_differ:
            return _golden(one, profile)
        if one.deviation > 1.0:
            return _golden_tensor(one)
    within = [m for m in measured if not _over(m, profile)]
    if within:
        chosen = _fastest(within)
        return Verdict(
            variant=chosen.variant, facts=_facts(chosen) | {"why": _why(measured, chosen)}
        )
    return _over(measured[0], profile) or Verdict(cause="unusable-model", detail="nothing to run")


def _fastest(within: list[Measured]) -> Measured:
    """The fastest by its median; the earlier of two that are about as fast."""
    chosen = within[0]
    for one in within[1:]:
        if one.p50_ms <= FASTER * chosen.p50_ms:
            chosen = one
    return chosen


def _why(measured: list[Measured], chosen: Measured) -> str:
    """One sentence on the choice, with every timing.

    >>> of = lambda name, ms: Measured(variant=name, worst_error=0, labels_differ=0, golden_rows=1,
    ...                                p50_ms=ms, p99_ms=ms, rss_mb=50)
    >>> _why([of("int8", 0.2), of("fp32", 0.1)], of("fp32", 0.1))
    'fp32 of int8 200 µs, fp32 100 µs'
    >>> _why([of("fp32", 0.1)], of("fp32", 0.1))
    'fp32 100 µs, the only variant'
    """
    times = ", ".join(f"{one.variant} {one.p50_ms * 1e3:.3g} µs" for one in measured)
    return f"{chosen.variant} of {times}" if len(measured) > 1 else f"{times}, the only variant"


def _golden(one: Measured, profile: Profile) -> Verdict:
    detail = (
        f"{one.variant}: golden outputs differ by up to {one.worst_error:.3g} "
        f"(allowed {profile.gate.golden_atol:g}), {one.labels_differ} of {one.golden_rows} labels "
        "differ"
    )
    return Verdict(cause="golden-mismatch", detail=detail, facts=_facts(one))


def _golden_tensor(one: Measured) -> Verdict:
    times = f"{one.deviation:.3g} times as far" if one.deviation < 1e9 else "farther"
    detail = f"{one.variant}: {one.where} is {times} from the signed one than a CPU may cause"
    return Verdict(cause="golden-mismatch", detail=detail, facts=_facts(one))


def _over(one: Measured, profile: Profile) -> Verdict | None:
    budget = profile.budget
    if one.p99_ms > budget.p99_ms:
        took = f"{one.variant}: p99 {one.p99_ms:.2f} ms"
        detail = f"{took}, profile {profile.name} allows {budget.p99_ms:g} ms"
        return Verdict(cause="too-slow", detail=detail, facts=_facts(one))
    if one.rss_mb > budget.rss_mb:
        took = f"{one.variant}: {one.rss_mb:.0f} MB resident"
        detail = f"{took}, profile {profile.name} allows {budget.rss_mb} MB"
        return Verdict(cause="too-big", detail=detail, facts=_facts(one))
    return None


def _facts(one: Measured) -> dict[str, Any]:
    facts = msgspec.structs.asdict(one)
    if one.deviation < 0:
        del facts["deviation"], facts["where"]
    return {k: round(v, 6) if isinstance(v, float) else v for k, v in facts.items()}


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """An observation of a trial, in monotonic seconds. before: vitals of the previous release."""

    since_s: float
    until_s: float
    before: Vitals = Vitals()


def judge_observation(watch: Watch, now: Vitals, now_s: float) -> Verdict | None:
    """The verdict at the end of the observation, or as soon as it is certain; None before.

    >>> watch = Watch(since_s=0, until_s=60)
    >>> judge_observation(watch, Vitals(requests=100, rows=100), 30.0) is None
    True
    >>> judge_observation(watch, Vitals(requests=100, errors=80, rows=20), 30.0).cause
    'unhealthy'
    """
    ended = now_s >= watch.until_s
    needed = LATE if ended else EARLY
    facts = msgspec.structs.asdict(now)
    if now.odd >= _ODD_ROWS and now.odd > _ODD * now.rows:
        detail = f"{now.odd} of {now.rows} outputs are not finite or no probabilities"
        return Verdict(cause="unhealthy", detail=detail, facts=facts)
    if now.longest_s > STUCK_S:
        detail = f"a request has been running for {now.longest_s:.0f} s"
        return Verdict(cause="unhealthy", detail=detail, facts=facts)
    for count, before, what, cause in (
        (now.errors, watch.before.errors, "failed", "unhealthy"),
        (now.slow, watch.before.slow, "were over the latency budget", "too-slow"),
    ):
        allowed = TOLERATED + before / max(1, watch.before.requests)
        if now.requests >= needed and count >= LATE and count > allowed * now.requests:
            detail = f"{count} of {now.requests} requests {what} while observed"
            return Verdict(cause=cause, detail=detail, facts=facts)
    return Verdict(facts=facts) if ended else None


def judge_all(
    watch: Watch, own: Vitals, reports: Iterable[SessionReport], trial: Slot, now_s: float
) -> Verdict | None:
    """The verdict on `trial` from the agent's own vitals and the sessions' reports; None: not yet.

    >>> trial = Slot(slot="a", model="m", release="m@2", path="", sha256="2", variant="",
    ...              model_sha256="", counter=1)
    >>> bad = SessionReport(model="m", sha256="2", vitals=Vitals(requests=60, errors=60))
    >>> judge_all(Watch(since_s=0, until_s=60), Vitals(requests=9), [bad], trial, 5.0).detail
    '60 of 69 requests failed while observed'
    """
    of_model = [one for one in reports if one.model == trial.model]
    serving = [one for one in of_model if one.sha256 == trial.sha256]
    together = sum((one.vitals for one in serving), own)
    before = sum((one.before for one in serving), watch.before)
    return (
        _crashed(serving)
        or _refused([one for one in of_model if one.refused == trial.sha256])
        or judge_observation(msgspec.structs.replace(watch, before=before), together, now_s)
    )


def _crashed(serving: Sequence[SessionReport]) -> Verdict | None:
    dead = sum(not one.lives for one in serving)
    if dead < MAX_STARTS:
        return None
    detail = f"programs that run it in a session of their own crashed {dead} times while observed"
    return Verdict(cause="crash-loop", detail=detail, facts={"starts": dead})


def _refused(refusing: Sequence[SessionReport]) -> Verdict | None:
    if not refusing:
        return None
    detail = f"a program on this device cannot load it in its session: {refusing[0].why}"
    return Verdict(cause="unhealthy", detail=detail, facts={"sessions": len(refusing)})
