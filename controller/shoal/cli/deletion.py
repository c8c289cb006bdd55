"""`delete` of releases, models and datasets: shows what depends on it, asks, deletes."""

from typing import Any

import click

from shoal.cli.api import JsonObject, at
from shoal.cli.command import Command, Session
from shoal.cli.options import confirm, yes_option
from shoal.cli.render import Columns, plain, table

_NAMES = {"releases": "MODEL@N", "models": "NAME", "datasets": "NAME@N"}
_with_dependents = click.option(
    "--with-dependents",
    is_flag=True,
    help="Also what is safe to delete with it; never what is on devices.",
)


def deletion_of(kind: str, what: str, example: str, *, alone: bool = False) -> click.Command:
    """The command that deletes one of `kind`, a part of the API's path.

    alone   there is no --with-dependents
    """

    def act(session: Session, name: str, yes: bool, with_dependents: bool = False) -> None:
        found = list(session.api.items(at(kind, name, "dependents")))
        if found and not session.json:
            session.err.print(table(found, _COLUMNS, empty=""), soft_wrap=True)
        if not yes:
            also = " with what is safe to delete with it" if with_dependents else ""
            confirm(f"Delete {name}{also}? It cannot be brought back.")
        query: dict[str, Any] = {"with_dependents": "true"} if with_dependents else {}
        gone = session.api.delete(at(kind, name), **query)
        session.show(gone, lambda: _lines(gone))

    wrapped: Any = click.pass_obj(act)
    options = [yes_option] if alone else [_with_dependents, yes_option]
    for option in (*reversed(options), click.argument("name", metavar=_NAMES[kind])):
        wrapped = option(wrapped)
    text = f"""Delete {what}.

    It is refused while something depends on it, which is named with the next step. The audit log
    stays, and the version number is never used again.

    \b
    Example:
      {example}
    """
    return click.command("delete", cls=Command, help=text)(wrapped)


_COLUMNS: Columns = {"depends on it": "why", "next step": "next_step"}


def _lines(gone: JsonObject) -> str:
    return "\n".join(f"{plain(one)} is deleted" for one in gone["deleted"])
