"""States of an alert: what people and its cause do to it."""

import enum

from shoal.machine import transition

OPEN, ACKNOWLEDGED, SNOOZED, CLOSED = "open", "acknowledged", "snoozed", "closed"
STATES = (OPEN, ACKNOWLEDGED, SNOOZED, CLOSED)
UNRESOLVED = (OPEN, ACKNOWLEDGED, SNOOZED)


class State(enum.StrEnum):
    """state of an alert, as stored."""

    OPEN = OPEN
    ACKNOWLEDGED = ACKNOWLEDGED
    SNOOZED = SNOOZED
    CLOSED = CLOSED


class Event(enum.StrEnum):
    """What happens to an alert; past participles, which its history shows.

    WOKEN     a snooze or silence ended, or was ended
    RESOLVED  by a person
    ENDED     its cause is gone
    REOPENED  its cause returned soon after
    """

    ACKNOWLEDGED = "acknowledged"
    SNOOZED = "snoozed"
    WOKEN = "woken"
    RESOLVED = "resolved"
    ENDED = "ended"
    REOPENED = "reopened"


#: (state, event) -> state after it, and whether a notification about it makes sense
TRANSITIONS = {
    (State.OPEN, Event.ACKNOWLEDGED): (State.ACKNOWLEDGED, False),
    (State.OPEN, Event.SNOOZED): (State.SNOOZED, False),
    (State.OPEN, Event.RESOLVED): (State.CLOSED, True),
    (State.OPEN, Event.ENDED): (State.CLOSED, True),
    (State.ACKNOWLEDGED, Event.ACKNOWLEDGED): (State.ACKNOWLEDGED, False),
    (State.ACKNOWLEDGED, Event.SNOOZED): (State.SNOOZED, False),
    (State.ACKNOWLEDGED, Event.RESOLVED): (State.CLOSED, True),
    (State.ACKNOWLEDGED, Event.ENDED): (State.CLOSED, True),
    (State.SNOOZED, Event.ACKNOWLEDGED): (State.ACKNOWLEDGED, False),
    (State.SNOOZED, Event.SNOOZED): (State.SNOOZED, False),
    (State.SNOOZED, Event.WOKEN): (State.OPEN, True),
    (State.SNOOZED, Event.RESOLVED): (State.CLOSED, False),
    (State.SNOOZED, Event.ENDED): (State.CLOSED, False),
    (State.CLOSED, Event.REOPENED): (State.OPEN, True),
}


def step(state: str, event: Event, what: str) -> State:
    """The state after `event`; ConflictError, which names `what`, where there is none."""
    after, _ = transition(TRANSITIONS, State(state), event, what, event.value)
    return after
