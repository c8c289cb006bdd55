"""Base classes of all commands: --json, examples in --help, errors with hints, exit codes."""

import os
import random
import sys
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import click
import msgspec
from rich.console import Console

from shoal.cli import account
from shoal.cli.api import Api
from shoal.cli.exit_codes import INTERRUPTED, ProblemError, exit_code
from shoal.errors import ShoalError, hint_fields

_PIPE_WIDTH = 160


class Session:
    """Context of one command run: output, clock and the API client.

    json   print machine output on stdout, progress on stderr
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.json = False
        self.environment = environment
        self.clock: Callable[[], float] = time.monotonic
        self.now: Callable[[], float] = time.time
        self.sleep: Callable[[float], None] = time.sleep
        self.random = random.Random()

    @cached_property
    def out(self) -> Console:
        return _console(stderr=False)

    @cached_property
    def err(self) -> Console:
        return _console(stderr=True)

    @cached_property
    def api(self) -> Api:
        """API client of the signed-in account; DeniedError when not signed in."""
        return Api(account.load(self.environment))

    def show(self, value: Any, render: Callable[[], Any]) -> None:
        """Print `value` as JSON, or rendered for a person."""
        if self.json:
            click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
        else:
            _print(self.out, render())

    def print_line(self, text: str) -> None:
        """Print a line on stdout; with --json on stderr."""
        (self.err if self.json else self.out).print(text, soft_wrap=True)


def _print(console: Console, drawn: Any) -> None:
    """Print plain text unwrapped (it may be copied) and, in a pipe, without trailing blanks."""
    if isinstance(drawn, str) or console.is_terminal:
        console.print(drawn, soft_wrap=isinstance(drawn, str))
        return
    with console.capture() as captured:
        console.print(drawn)
    click.echo("\n".join(line.rstrip() for line in captured.get().split("\n")), nl=False)


def _console(*, stderr: bool) -> Console:
    """A console as wide as the terminal; in a pipe, wide enough for whole rows."""
    stream = sys.stderr if stderr else sys.stdout
    piped = not stream.isatty() and "COLUMNS" not in os.environ
    width = _PIPE_WIDTH if piped else None
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=False)


class Command(click.Command):
    """A command with --json that reports a ShoalError with its hint and exit code."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.params.append(
            click.Option(
                ["--json"],
                is_flag=True,
                expose_value=False,
                callback=_set_json,
                is_eager=True,
                help="Print the answer as JSON on stdout; progress and errors go to stderr.",
            )
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            _misused(error, ctx, given)
            raise

    def invoke(self, ctx: click.Context) -> Any:
        session = ctx.find_object(Session)
        try:
            return super().invoke(ctx)
        except ShoalError as error:
            report(error, session)
            ctx.exit(exit_code(error))
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)


class CommandGroup(click.Group):
    """A group of commands on one kind of object."""

    command_class = Command
    group_class = type

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            _misused(error, ctx, args)
            raise


def _set_json(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Session).json = True


def _misused(error: click.UsageError, ctx: click.Context, args: list[str]) -> None:
    """Report a usage error as JSON when --json was given; otherwise click prints it."""
    if "--json" not in args:
        return
    body = {
        "code": "usage",
        "detail": error.format_message(),
        **hint_fields(f"see: {ctx.command_path} --help"),
    }
    click.echo(msgspec.json.encode(body).decode(), err=True)
    ctx.exit(error.exit_code)


def report(error: ShoalError, session: Session | None) -> None:
    """Print an error with its hint on stderr."""
    if session is not None and session.json:
        body = error.body if isinstance(error, ProblemError) else {"detail": error.message}
        fields = {"code": error.code, **hint_fields(error.hint), **body}
        click.echo(msgspec.json.encode(fields).decode(), err=True)
        return
    click.secho("error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(error.message, err=True)
    if error.hint:
        click.echo(f"  hint: {error.hint}", err=True)
