"""Confirmation prompt before an irreversible command."""

import click

from shoal.cli.exit_codes import FailedError


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
