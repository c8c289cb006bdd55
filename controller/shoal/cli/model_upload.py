"""Files that `shoal model train` and `import` send, and the release that they wait for."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from shoal.cli.api import at
from shoal.cli.command import Session
from shoal.cli.operation import operation_card
from shoal.cli.release import release_card
from shoal.cli.waiting import follow
from shoal.errors import SettingError

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
wait_option = click.option(
    "--wait/--no-wait", default=True, show_default=True, help="Wait until it has ended."
)


def pairs(texts: tuple[str, ...], option: str) -> dict[str, str]:
    """Options of the form NAME=VALUE as a dictionary.

    >>> pairs(("a=1", "b=x=y"), "--param")
    {'a': '1', 'b': 'x=y'}
    """
    found = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise SettingError(f"{option} {text!r}", f"write it as {option} NAME=VALUE")
        found[name] = value
    return found


def open_upload(opened: ExitStack, path: Path) -> tuple[str, Any]:
    """A file to send, open until `opened` is left; SettingError for one that cannot be read."""
    try:
        return path.name, opened.enter_context(path.open("rb"))
    except OSError as error:
        raise SettingError(f"{path}: {error.strerror}") from error


def finish(session: Session, started: dict[str, Any], wait: bool, timeout: float) -> None:
    """Wait if requested, and show the resulting release."""
    if not wait:
        session.show(started, lambda: operation_card(started))
        session.print_line(f"watch it with: shoal operation watch {started['id']}")
        return
    ended = follow(session, started, timeout)
    release = session.api.get(at("releases", ended["result"]["release"]))
    session.show(ended | {"release": release}, lambda: release_card(release))
