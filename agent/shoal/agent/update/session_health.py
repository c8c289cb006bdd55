"""What programs with a session of their own (io/embedded.py) say of a release on trial: pure.

The agent sees what its endpoint and its sources do. A session runs the model elsewhere; while a
release is observed it says what it saw, and OBSERVING judges all of it together.
"""

from collections.abc import Iterable, Sequence

import msgspec

from shoal.agent.installed.record import Slot
from shoal.agent.serving.served_model import Vitals
from shoal.agent.serving.session_reports import SessionReport
from shoal.agent.update.acceptance import Verdict, Watch, judge_observation
from shoal.agent.update.machine import MAX_STARTS


def judge_all(
    watch: Watch, own: Vitals, said: Iterable[SessionReport], trial: Slot, now_s: float
) -> Verdict | None:
    """The verdict on `trial`, by what the agent saw itself and what sessions said; None: not yet.

    >>> trial = Slot(slot="a", model="m", release="m@2", path="", sha256="2", variant="",
    ...              model_sha256="", counter=1)
    >>> bad = SessionReport(model="m", sha256="2", vitals=Vitals(requests=60, errors=60))
    >>> judge_all(Watch(since_s=0, until_s=60), Vitals(requests=9), [bad], trial, 5.0).detail
    '60 of 69 requests failed while observed'
    """
    of_model = [one for one in said if one.model == trial.model]
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
