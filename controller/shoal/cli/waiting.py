"""Wait for operations with a progress line; an error when they fail."""

from collections.abc import Callable
from typing import TypeVar

from shoal.cli.api import JsonObject, at
from shoal.cli.command import Session
from shoal.cli.exit_codes import FailedError, StillRunningError
from shoal.cli.render import plain
from shoal.errors import LinkError

_T = TypeVar("_T")
EVERY_S = 0.4
#: A restarting controller is unreachable for seconds; a watch survives that.
TOLERATED_S = 30.0


def poll(
    session: Session,
    look: Callable[[], _T],
    done: Callable[[_T], bool],
    *,
    again: str,
    timeout_s: float = 0.0,
    why: Callable[[_T], str] = lambda _: "",
) -> _T:
    """Poll until `done`; StillRunningError after `timeout_s` (0: never).

    look    fetches the current state
    again   command for continuing to watch
    why     what the state waits for, "" if unknown

    An unreachable controller is retried for TOLERATED_S.
    """
    start = reached = session.clock()
    waits_for = ""
    while True:
        try:
            seen = look()
            reached = session.clock()
            if done(seen):
                return seen
            waits_for = why(seen)
        except LinkError:
            if session.clock() - reached > TOLERATED_S:
                raise
        if timeout_s and session.clock() - start > timeout_s:
            message = f"not done after {timeout_s:g} s{': ' if waits_for else ''}{waits_for}"
            raise StillRunningError(message, f"it continues; watch it with: {again}")
        session.sleep(EVERY_S)


def follow(session: Session, operation: JsonObject, timeout_s: float = 0.0) -> JsonObject:
    """Show an operation's progress on stderr until it ends; FailedError unless it succeeded."""
    with session.err.status("") as line:

        def look() -> JsonObject:
            seen: JsonObject = session.api.get(at("operations", operation["id"]))
            line.update(progress_line(seen))
            return seen

        again = f"shoal operation watch {operation['id']}"
        ended = poll(session, look, is_over, again=again, timeout_s=timeout_s)
    if ended["state"] != "succeeded":
        raise FailedError(f"{ended['kind']} of {ended['subject']}: {ended['error']}")
    return ended


def is_over(operation: JsonObject) -> bool:
    return operation["state"] in ("succeeded", "failed", "canceled")


def progress_line(operation: JsonObject) -> str:
    """One line: what, how far, and the step or the place in the queue."""
    share = f"{100 * operation['progress']:3.0f} %"
    step = plain(operation["step"]) or operation["state"]
    if place := operation.get("position", 0):
        step = f"{ordinal(place)} in the queue"
    return f"{operation['kind']} {plain(operation['subject'])}  {share}  {step}"


def ordinal(number: int) -> str:
    """
    >>> ordinal(1), ordinal(2), ordinal(11), ordinal(23)
    ('1st', '2nd', '11th', '23rd')
    """
    ending = "th" if 10 < number % 100 < 14 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
