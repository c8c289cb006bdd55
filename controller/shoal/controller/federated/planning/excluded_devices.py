"""Whom the failure of a round names: the task's next tries go without it, for a day."""

from sqlalchemy import Connection, select

from shoal.controller.federated.rounds.machine import State
from shoal.controller.store.tables import federated_round
from shoal.errors import ShoalError

#: Why it is not invited.
REASON = "failed-before"
_KEY = "to_blame"
_DAY_S = 86_400.0


def of(error: ShoalError) -> dict[str, str]:
    """What a round's result keeps of an error: the device that it names, or nothing."""
    named = error.facts.get(_KEY, "")
    return {_KEY: str(named)} if named else {}


def devices(db: Connection, task: str, now_s: float) -> dict[str, str]:
    """device -> why it is left out."""
    lately = federated_round.c.ended_at > now_s - _DAY_S
    query = select(federated_round.c.result).where(
        federated_round.c.task == task, federated_round.c.state == State.FAILED.value, lately
    )
    named = {(result or {}).get(_KEY, "") for result in db.scalars(query)}
    return dict.fromkeys(sorted(named - {""}), REASON)
