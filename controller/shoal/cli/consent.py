"""Asking a person before something that cannot be taken back."""

import click

from shoal.cli.exits import FailedError


def ask(question: str, *, without: str = "--yes") -> None:
    """Go on when a person says yes; FailedError when not, or when there is nobody to be asked.

    without   the option with which nobody is asked
    """
    try:
        said_yes = click.confirm(question, err=True)
    except click.Abort:
        click.echo(err=True)  # the question stands on an open line
        raise FailedError("nobody answered, nothing was done", f"say {without}") from None
    if not said_yes:
        raise FailedError("nothing was done")
