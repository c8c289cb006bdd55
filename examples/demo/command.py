"""`shoal demo`: the command line of the demo."""

import importlib.util
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import click
import msgspec

from demo.scenario import Scenario
from shoal.cli.command import Command, Session
from shoal.errors import SettingError, ShoalError

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(cls=Command)
@click.option("--exit", "leave", is_flag=True, help="Exit after the last step; else Ctrl-C.")
@click.option(
    "--until",
    type=click.IntRange(1, 8),
    default=8,
    metavar="STEP",
    help="The last step to run, of 8: 3 is a fleet that serves, 5 a drift that was found.",
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Where everything goes; it is kept. Default: a fresh temporary folder.",
)
@click.option("--keep", is_flag=True, help="Keep the temporary folder after a good end too.")
@click.option("--data", type=_FILE, default=None, help="A CSV file of your own (also .gz).")
@click.option("--label", default="", metavar="COLUMN", help="The class to predict, with --data.")
@click.option("--site", default="", metavar="COLUMN", help="Site of a row; three or more.")
@click.option("--split", default="", metavar="COLUMN", help="Rows of one value stay together.")
@click.option(
    "--drop", multiple=True, metavar="COLUMN", help="Leave out; may be given often, or a,b,c."
)
@click.option(
    "--train-site",
    "train_sites",
    multiple=True,
    metavar="SITE",
    help="Train on this site first; conditions then change at the others.",
)
@click.pass_obj
def demo(
    session: Session,
    leave: bool,
    until: int,
    folder: Path | None,
    keep: bool,
    data: Path | None,
    label: str,
    site: str,
    split: str,
    drop: tuple[str, ...],
    train_sites: tuple[str, ...],
) -> None:
    """Run the demo on this machine: broker, controller and six real agents.

    Trains, signs and rolls out a model; changes the input of one site; detects the drift and
    retrains; stops two bad releases at the canaries; kills two agents during an update. Every line
    is read from the controller's API. Exit code 0 only if every step succeeded.

    \b
    Examples:
      shoal demo                      stay up afterwards, with the console
      shoal demo --exit
      shoal demo --until 3            a fleet that serves, to try things on
      shoal demo --exit --data rig.csv.gz --label pump_leak --site cooler_pct --train-site 100 \\
          --split group --drop cycle,valve_pct,accumulator_bar,unstable
    """
    # Before numpy is loaded: small matrices on a busy machine are fastest on one thread.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Here, not above: `shoal --help` needs none of it.
    from demo.run import RunOptions, run_demo

    _check_installed()
    dropped = tuple(name for names in drop for name in names.split(",") if name)
    scenario = _scenario(data, label, site, split, dropped, train_sites)
    where = folder.resolve() if folder else Path(tempfile.mkdtemp(prefix="shoal-demo-"))
    if folder and (where / "controller").exists():
        raise SettingError(f"{where} holds a demo already", "name another folder, or remove it")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        run_demo(session, RunOptions(where, leave, until), scenario)
    except (ShoalError, KeyboardInterrupt):
        session.err.print(f"kept: {where}  (logs in {where / 'log'})")
        raise
    if session.json:
        click.echo(msgspec.json.format((where / "demo.json").read_bytes(), indent=2).decode())
    if folder or keep:
        session.print_line(f"kept: {where}  (numbers in demo.json, logs in log/)")
    else:
        shutil.rmtree(where, ignore_errors=True)


def _scenario(
    data: Path | None,
    label: str,
    site: str,
    split: str,
    drop: tuple[str, ...],
    train_sites: tuple[str, ...],
) -> Callable[[], Scenario]:
    """Factory of the scenario of the options."""
    if data is None:
        if label or site or split or drop or train_sites:
            raise SettingError("--label and the like describe a table", "name it with --data FILE")
        from demo.digits import lot_codes

        return lot_codes
    if not label:
        raise SettingError("--data needs --label", "name the column to predict")
    if train_sites and not site:
        raise SettingError("--train-site needs --site", "name the column that holds the site")
    from demo.user_table import Choice, user_table

    choice = Choice(data, label, site, split, drop, train_sites)
    return lambda: user_table(choice)


def _check_installed() -> None:
    """Raise SettingError unless agent, controller and broker are installed."""
    needed = ("sklearn", "flask", "onnx", "onnxruntime", "httptools", "paho")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingError(
            f"the demo runs controller and agents here, and lacks {', '.join(missing)}",
            "install shoal[agent,controller,broker]",
        )


def _interrupt(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends the demo and its processes, as Ctrl-C does."""
    raise KeyboardInterrupt
