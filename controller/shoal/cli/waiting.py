"""Waiting for long work: one line of progress that moves, and an error when it ends badly."""

from collections.abc import Callable
from typing import Any, TypeVar

from shoal.cli.api import JsonObject, at
from shoal.cli.command import Session
from shoal.cli.exit_codes import FailedError, StillGoingError
from shoal.cli.render import plain
from shoal.errors import LinkError

_T = TypeVar("_T")
EVERY_S = 0.4
#: A controller that restarts is away for seconds; a watch outlives that.
FORGIVEN_S = 30.0


def poll(
    session: Session,
    look: Callable[[], _T],
    done: Callable[[_T], bool],
    *,
    again: str,
    timeout_s: float = 0.0,
    why: Callable[[_T], str] = lambda _: "",
) -> _T:
    """Look until `done`; StillGoingError after `timeout_s` (0: never), with what it waits for.

    again   the command that looks on
    why     what is seen waits for, "" where nothing is known of that

    A controller out of reach for less than FORGIVEN_S is asked again.
    """
    start = answered = session.clock()
    waits = ""
    while True:
        try:
            seen = look()
            answered = session.clock()
            if done(seen):
                return seen
            waits = why(seen)
        except LinkError:
            if session.clock() - answered > FORGIVEN_S:
                raise
        if timeout_s and session.clock() - start > timeout_s:
            told = f"not done after {timeout_s:g} s{': ' if waits else ''}{waits}"
            raise StillGoingError(told, f"it goes on; look again: {again}")
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
    share = f"{100 * operation['progress']:3.0f} %"
    step = plain(operation["step"]) or operation["state"]
    return f"{operation['kind']} {plain(operation['subject'])}  {share}  {step}"


def finish(session: Session, operation: JsonObject, *, wait: bool, timeout_s: float) -> Any:
    """Wait for `operation` or say how to; its last state."""
    return follow(session, operation, timeout_s) if wait else operation
