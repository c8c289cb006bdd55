"""States of the drift decision: the most recently used in memory, all of them in the database.

A state is written back some time after it changed, not with every window: it carries the id of the
last window that it knows, so what came after is read and applied again when it is loaded.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select
from sqlalchemy.dialects.sqlite import insert

from shoal.controller.monitoring.drift_state import State
from shoal.controller.monitoring.findings import Subject, columns
from shoal.controller.store.drift_tables import drift_state

#: A changed state is written back after so many of its windows, and after so long at the latest.
WINDOWS, AGE_S = 15, 900.0
#: Most states that are written in one transaction, which holds the write lock.
BATCH = 200


@dataclass
class _Held:
    state: State
    changed_at: float = math.inf


class DriftStates:
    """States by subject, up to `limit` bytes in memory; the least recently used leave first."""

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes = limit, 0
        self._held: OrderedDict[Subject, _Held] = OrderedDict()
        self._leaving: dict[Subject, State] = {}

    def __len__(self) -> int:
        return len(self._held)

    @property
    def nbytes(self) -> int:
        """Bytes of the states in memory."""
        return self._bytes

    def get(self, subject: Subject) -> State | None:
        """A state that is in memory."""
        held = self._held.get(subject)
        if held is not None:
            self._held.move_to_end(subject)
            return held.state
        return self._leaving.get(subject)

    def load(self, db: Connection, subjects: Iterable[Subject]) -> None:
        """Read into memory those that are not there."""
        for subject in subjects:
            if self.get(subject) is None:
                wanted = (drift_state.c[k] == v for k, v in columns(subject).items())
                data = db.scalar(select(drift_state.c.state).where(*wanted))
                if data is not None:
                    self._put(subject, _Held(State.from_bytes(bytes(data))))

    def add(self, subject: Subject, state: State) -> None:
        """Put a new subject's state; it is written with the next batch."""
        self._put(subject, _Held(state, -math.inf))

    def change(self, subject: Subject, state: State, now: float) -> None:
        """Put a subject's state after a window."""
        held = self._held.get(subject)
        since = min(now, held.changed_at) if held is not None else now
        self._put(subject, _Held(state, since))

    def replace(self, subject: Subject, state: State) -> None:
        """Put a state that the database has."""
        self._put(subject, _Held(state))

    def save(
        self, db: Connection, now: float, window_s: float, *, all_of_them: bool = False
    ) -> None:
        """Write what has waited long enough, at most BATCH states; or all that changed."""
        age = 0.0 if all_of_them else min(AGE_S, WINDOWS * window_s)
        due = [(one, held) for one, held in self._held.items() if held.changed_at <= now - age]
        due = due if all_of_them else due[:BATCH]
        leaving, self._leaving = self._leaving, {}
        write(db, now, [*leaving.items(), *((one, held.state) for one, held in due)])
        for _, held in due:
            held.changed_at = math.inf

    @property
    def waiting(self) -> bool:
        """Whether states have left memory and must be written."""
        return bool(self._leaving)

    def clear(self) -> None:
        """Forget what is in memory: what the database has is read again."""
        self._held.clear()
        self._leaving.clear()
        self._bytes = 0

    def _put(self, subject: Subject, held: _Held) -> None:
        old = self._held.pop(subject, None)
        self._leaving.pop(subject, None)
        self._bytes += held.state.nbytes - (old.state.nbytes if old else 0)
        self._held[subject] = held
        while self._bytes > self._limit and len(self._held) > 1:
            gone, last = self._held.popitem(last=False)
            self._bytes -= last.state.nbytes
            if last.changed_at < math.inf:
                self._leaving[gone] = last.state


def write(db: Connection, now: float, states: Sequence[tuple[Subject, State]]) -> None:
    """Write states, in the caller's transaction."""
    if not states:
        return
    rows = [
        columns(subject) | {"saved_at": now, "state": state.to_bytes()} for subject, state in states
    ]
    query = insert(drift_state)
    changed = {"saved_at": query.excluded.saved_at, "state": query.excluded.state}
    db.execute(query.on_conflict_do_update(set_=changed), rows)
