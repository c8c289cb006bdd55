"""State machines as tables: enums named after their members, and the look-up of a transition."""

import enum
from collections.abc import Mapping
from typing import TypeVar

from shoal.errors import ConflictError


class NamedEnum(enum.StrEnum):
    """Enum in which the value of `enum.auto()` is the member's name.

    >>> class State(NamedEnum):
    ...     IDLE = enum.auto()
    >>> State.IDLE
    <State.IDLE: 'IDLE'>
    """

    @staticmethod
    def _generate_next_value_(name: str, *_: object) -> str:
        return name


_State = TypeVar("_State", bound=enum.StrEnum)
_Event = TypeVar("_Event", bound=enum.StrEnum)
_Effect = TypeVar("_Effect")


def transition(
    table: Mapping[tuple[_State, _Event], tuple[_State, _Effect]],
    state: _State,
    event: _Event,
    what: str,
    verb: str = "",
) -> tuple[_State, _Effect]:
    """State and effect after `event`; ConflictError where the table has none.

    what   the thing, for the error message
    verb   participle of the event for the message, where its name is another
    """
    try:
        return table[state, event]
    except KeyError:
        raise ConflictError(
            f"{what} is {state}: it cannot be {verb or event.lower()}",
            state=state.value,
            event=event.value,
        ) from None
