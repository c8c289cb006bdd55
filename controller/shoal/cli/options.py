"""Options that several commands share: durations, --timeout, and the question that --yes skips."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from shoal.cli.exit_codes import FailedError

Command = TypeVar("Command", bound=Callable[..., Any])
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class DurationType(click.ParamType):
    """Seconds from "90", "90s", "5m", "12h" or "30d"."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        text = str(value).strip()
        unit = _SECONDS.get(text[-1:], 0)
        try:
            seconds = float(text[:-1]) * unit if unit else float(text)
        except ValueError:
            self.fail(f"{value!r} is no duration; write 90s, 5m, 12h or 30d", param, ctx)
        return seconds


DURATION = DurationType()
timeout_option = click.option(
    "--timeout", type=DURATION, default="0", help="Stop waiting after this; 0 for never."
)
_limit_option = click.option(
    "--limit", default=100, show_default=True, help="Maximum number; 0 for all."
)
_search_option = click.option("--search", "-q", default="", help="Part of what a line says.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


def listed(command: Command) -> Command:
    """Options of a list: --search and --limit."""
    return _search_option(_limit_option(command))


def names_of(text: str) -> list[str]:
    """Names between commas, without the spaces around them.

    >>> names_of("good, bad,")
    ['good', 'bad']
    """
    return [one.strip() for one in text.split(",") if one.strip()]


def confirm(question: str, *, without: str = "--yes") -> None:
    """Continue on yes; FailedError on no, or without a terminal.

    without   the option that skips the question
    """
    try:
        confirmed = click.confirm(question, err=True)
    except click.Abort:
        click.echo(err=True)  # end the line of the question
        raise FailedError("no confirmation, nothing was done", f"use {without}") from None
    if not confirmed:
        raise FailedError("nothing was done")
