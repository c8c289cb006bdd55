"""The end of a round for its devices: each is told, and then nothing of what they sent is kept."""

import logging
from collections.abc import Callable, Iterator, Set
from typing import Any

from sqlalchemy import Connection, Row, select

from shoal import wire
from shoal.controller.federated.aggregation import strategy_state
from shoal.controller.federated.ports import Files
from shoal.controller.federated.rounds import machine, rows
from shoal.controller.federated.rounds.machine import STILL_TRAINING, Mark, State
from shoal.controller.host.context import Context
from shoal.controller.store.tables import federated_round, participation
from shoal.errors import LinkError
from shoal.federated.messages import Dismiss

_log = logging.getLogger(__name__)
_GAVE = (Mark.UPDATED, Mark.REVEALED, Mark.MEASURED)


def dismiss(
    ctx: Context, files: Files, post: Callable[[str, wire.RoundCall], None], *, running: Set[str]
) -> None:
    """Of every round that has ended and still has files; those of a lost link have them longer."""
    for ident in files.rounds():
        if ident in running:
            continue
        with ctx.store.read() as db:
            query = select(federated_round).where(federated_round.c.id == ident)
            row = db.execute(query).first()
            said = list(_said(db, row)) if row is not None else []
        try:
            for device, call in said:
                post(device, call)
        except LinkError as error:
            _log.debug("round %s is over, its devices are told later: %s", ident, error)
            continue
        files.forget(ident)
        if row is not None:
            strategy_state.forget_old(ctx, row.task, row.number)


def _said(db: Connection, row: Row[Any]) -> Iterator[tuple[str, wire.RoundCall]]:
    """To everybody who was invited but who trains on for a later round."""
    journal = rows.journal_of(row)
    in_it = select(participation.c.device).where(
        participation.c.round == row.id, participation.c.chosen
    )
    chosen = set(db.scalars(in_it))
    for device in sorted(journal.marks):
        if journal.reasons.get(device) == STILL_TRAINING:
            continue
        origin = journal.carried.get(device)
        attempt = origin.attempt if origin else journal.attempt
        reason = _reason(journal, device, chosen)
        yield device, wire.RoundCall(attempt=attempt, said=Dismiss(reason=reason))


def _reason(journal: machine.Round, device: str, chosen: Set[str]) -> str:
    """ "" for whose update is in the checkpoint: what it remembers of it holds."""
    if journal.state is not State.DONE:
        return journal.reason or "failed"
    if device in chosen:
        return ""
    given = journal.marks[device] in _GAVE
    return "not-chosen" if given else journal.reasons.get(device, "not-needed")
