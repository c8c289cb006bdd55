"""Waiting for long work: one line of progress that moves, and an error when it ends badly."""

from collections.abc import Callable
from typing import Any, TypeVar

from shoal.cli.api import Thing, at
from shoal.cli.exits import FailedError, StillGoingError
from shoal.cli.show import plain
from shoal.cli.verb import Session
from shoal.errors import LinkError

_T = TypeVar("_T")
EVERY_S = 0.4
#: A controller that restarts is away for seconds; a watch outlives that.
FORGIVEN_S = 30.0


def poll(
    session: Session, look: Callable[[], _T], done: Callable[[_T], bool], *, timeout_s: float = 0.0
) -> _T:
    """Look until `done`; StillGoingError after `timeout_s` (0: never).

    A controller out of reach for less than FORGIVEN_S is asked again.
    """
    start = answered = session.clock()
    while True:
        try:
            seen = look()
            answered = session.clock()
            if done(seen):
                return seen
        except LinkError:
            if session.clock() - answered > FORGIVEN_S:
                raise
        if timeout_s and session.clock() - start > timeout_s:
            raise StillGoingError(f"not done after {timeout_s:g} s", "it goes on; watch it again")
        session.sleep(EVERY_S)


def follow(session: Session, operation: Thing, timeout_s: float = 0.0) -> Thing:
    """Show an operation's progress on stderr until it ends; FailedError unless it succeeded."""
    with session.err.status("") as line:

        def look() -> Thing:
            seen: Thing = session.api.get(at("operations", operation["id"]))
            line.update(progress_line(seen))
            return seen

        ended = poll(session, look, is_over, timeout_s=timeout_s)
    if ended["state"] != "succeeded":
        raise FailedError(f"{ended['kind']} of {ended['subject']}: {ended['error']}")
    return ended


def is_over(operation: Thing) -> bool:
    return operation["state"] in ("succeeded", "failed", "canceled")


def progress_line(operation: Thing) -> str:
    share = f"{100 * operation['progress']:3.0f} %"
    step = plain(operation["step"]) or operation["state"]
    return f"{operation['kind']} {plain(operation['subject'])}  {share}  {step}"


def finish(session: Session, operation: Thing, *, wait: bool, timeout_s: float) -> Any:
    """Wait for `operation` or say how to; its last state."""
    return follow(session, operation, timeout_s) if wait else operation
