"""Whether a release may serve here: verdicts on what the probe measured and on what was observed.

Numbers in, verdict out. Who measures is io/trial.py (off the serving path) and serving.py.
"""

from typing import Any

import msgspec

from shoal.agent.serving.served_model import Vitals
from shoal.profile import Profile

#: Interference only ever adds latency, so the best of a few rounds is judged (io/trial.py).
RUNS = 50
#: Share of requests that may go wrong or be slow beyond what they did before the swap.
TOLERATED = 0.05
#: Requests before an early "unhealthy" is believed; at the end of the watch fewer will do.
EARLY, LATE = 50, 5
_ODD, _ODD_ROWS = 0.01, 3
#: Seconds after which a request that is not answered will never be.
STUCK_S = 15.0
#: A variant is preferred to those that the profile prefers when it needs this share of their time
#: or less: a smaller difference is not worth it, and may be chance.
FASTER = 0.9


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What the probe measured of one variant.

    worst_error     largest difference from the golden outputs, over max(1, |golden|)
    labels_differ   golden rows whose predicted class is another one; golden_rows of them in all
    p50_ms, p99_ms  of one-row runs, in the best of its rounds
    rss_mb          resident memory of the probe with this variant loaded and warm
    disagree        share of recent local inputs that the serving release labels otherwise; -1
                    where there was nothing to compare
    compared        how many rows that share is of
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


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """cause is "" for a pass; variant is the one that shall serve."""

    cause: str = ""
    detail: str = ""
    facts: dict[str, Any] = {}
    variant: str = ""

    @property
    def passed(self) -> bool:
        return not self.cause


def judge_probe(measured: list[Measured], profile: Profile) -> Verdict:
    """The verdict on a probed release; `measured` in the profile's order of preference.

    A wrong answer in any variant fails the release: the bundle, or the CPU, is not what was
    validated. Otherwise the fastest variant within the budget serves; of those about as fast, the
    one that the profile prefers. (int8 is slower than fp32 for small models, and which ones are
    small differs between boards.)
    """
    for one in measured:
        if one.worst_error > profile.gate.golden_atol or one.labels_differ:
            return _golden(one, profile)
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
    return {k: round(v, 6) if isinstance(v, float) else v for k, v in facts.items()}


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """A release being observed. before: what its predecessor did, for comparison."""

    since_s: float
    until_s: float
    before: Vitals = Vitals()


def judge_observation(watch: Watch, now: Vitals, now_s: float) -> Verdict | None:
    """None while the watch goes on; then, or as soon as it is clear, the verdict.

    >>> watch = Watch(since_s=0, until_s=60)
    >>> judge_observation(watch, Vitals(requests=100, rows=100), 30.0) is None
    True
    >>> judge_observation(watch, Vitals(requests=100, errors=80, rows=20), 30.0).cause
    'unhealthy'
    """
    ended = now_s >= watch.until_s
    enough = LATE if ended else EARLY
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
        if now.requests >= enough and count >= LATE and count > allowed * now.requests:
            detail = f"{count} of {now.requests} requests {what} while observed"
            return Verdict(cause=cause, detail=detail, facts=facts)
    return Verdict(facts=facts) if ended else None
