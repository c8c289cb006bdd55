"""`shoal demo`: the demo of a source checkout (examples/demo), which is not in the wheel."""

import importlib
import sys
from pathlib import Path

import click

from shoal.errors import SettingError

_EXAMPLES = Path(__file__).parents[3] / "examples"


def demo_command() -> click.Command:
    """The command of the checkout that this module is in; in an installed wheel, how to get one."""
    if not (_EXAMPLES / "demo").is_dir():
        return _not_installed
    if str(_EXAMPLES) not in sys.path:
        sys.path.append(str(_EXAMPLES))
    command: click.Command = importlib.import_module("demo.command").demo
    return command


@click.command("demo", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def _not_installed(options: tuple[str, ...]) -> None:
    """Run a whole fleet on this machine (in a source checkout only)."""
    raise SettingError(
        "the demo is in Shoal's source, not in the installed package",
        "get the source, and in its folder run: make demo",
    )
