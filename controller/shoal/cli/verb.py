"""How every command is built: --json everywhere, examples in --help, errors with their hints."""

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
from shoal.cli.exits import INTERRUPTED, ProblemError, exit_code
from shoal.errors import ShoalError, hint_fields

_PIPE_WIDTH = 160


class Session:
    """What one command run has: where to print, and the controller to ask.

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
        """Signed in, or DeniedError."""
        return Api(account.load(self.environment))

    def show(self, value: Any, picture: Callable[[], Any]) -> None:
        """Print `value` as JSON, or the picture of it for a person."""
        if self.json:
            click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
        else:
            _print(self.out, picture())

    def say(self, text: str) -> None:
        """A line for the person: on stdout, or on stderr beside machine output."""
        (self.err if self.json else self.out).print(text, soft_wrap=True)


def _print(console: Console, drawn: Any) -> None:
    """A plain line is never broken: it may be there to be copied. A pipe gets no blanks at the ends
    of lines, with which a table is filled up to its width."""
    if isinstance(drawn, str) or console.is_terminal:
        console.print(drawn, soft_wrap=isinstance(drawn, str))
        return
    with console.capture() as captured:
        console.print(drawn)
    click.echo("\n".join(line.rstrip() for line in captured.get().split("\n")), nl=False)


def _console(*, stderr: bool) -> Console:
    """As wide as the terminal; wide enough for whole rows where it is a pipe."""
    stream = sys.stderr if stderr else sys.stdout
    piped = not stream.isatty() and "COLUMNS" not in os.environ
    width = _PIPE_WIDTH if piped else None
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=False)


class Verb(click.Command):
    """A command with --json, whose docstring ends in examples, and whose errors are told well."""

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


class Noun(click.Group):
    """A thing that commands act on."""

    command_class = Verb
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
    """For a machine that asked for JSON, say so in JSON; a person gets click's own words."""
    if "--json" not in args:
        return
    said = {
        "code": "usage",
        "detail": error.format_message(),
        **hint_fields(f"see: {ctx.command_path} --help"),
    }
    click.echo(msgspec.json.encode(said).decode(), err=True)
    ctx.exit(error.exit_code)


def report(error: ShoalError, session: Session | None) -> None:
    """Say on stderr what went wrong and what to do about it."""
    if session is not None and session.json:
        body = error.body if isinstance(error, ProblemError) else {"detail": error.message}
        said = {"code": error.code, **hint_fields(error.hint), **body}
        click.echo(msgspec.json.encode(said).decode(), err=True)
        return
    click.secho("error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(error.message, err=True)
    if error.hint:
        click.echo(f"  hint: {error.hint}", err=True)
