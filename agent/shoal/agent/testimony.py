"""What programs with a session of their own (io/embedded.py) say of a release on trial: pure.

The agent sees what its endpoint and its sources do. A session runs the model elsewhere; while a
release is observed it says what it saw, and OBSERVING judges all of it together.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

from shoal.agent.probation import Verdict, Vitals, Watch, judge_observation
from shoal.agent.update import MAX_STARTS, Slot


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """One session's word.

    sha256    of the manifest that it serves; "" for none
    vitals    since it serves that; before  what the release before had done there
    refused   sha256 of a manifest that it could not load, and why; "" when it can
    lives     whether the session is still open: one that ended is gone, one that crashed is not
    """

    model: str
    sha256: str = ""
    vitals: Vitals = Vitals()
    before: Vitals = Vitals()
    refused: str = ""
    why: str = ""
    lives: bool = True


class Accounts(Protocol):
    """Asks the sessions on this machine; a session answers within a second. Never raises.

    read   what they have said by now; from the first time on they are asked
    end    the model is not observed any more: nobody is asked, who crashed is forgotten
    """

    def read(self) -> list[Account]: ...
    def end(self, model: str) -> None: ...


class Nobody:
    """Accounts where no program can have a session."""

    def read(self) -> list[Account]:
        return []

    def end(self, model: str) -> None:
        """Nothing to do."""


def judge_all(
    watch: Watch, own: Vitals, said: Iterable[Account], trial: Slot, now_s: float
) -> Verdict | None:
    """The verdict on `trial`, by what the agent saw itself and what sessions said; None: not yet.

    >>> trial = Slot(slot="a", model="m", release="m@2", path="", sha256="2", variant="",
    ...              model_sha256="", counter=1)
    >>> bad = Account(model="m", sha256="2", vitals=Vitals(requests=60, errors=60))
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


def _crashed(serving: Sequence[Account]) -> Verdict | None:
    dead = sum(not one.lives for one in serving)
    if dead < MAX_STARTS:
        return None
    detail = f"programs that run it in a session of their own crashed {dead} times while observed"
    return Verdict(cause="crash-loop", detail=detail, facts={"starts": dead})


def _refused(refusing: Sequence[Account]) -> Verdict | None:
    if not refusing:
        return None
    detail = f"a program on this device cannot load it in its session: {refusing[0].why}"
    return Verdict(cause="unhealthy", detail=detail, facts={"sessions": len(refusing)})
