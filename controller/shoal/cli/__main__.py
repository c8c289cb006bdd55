"""`shoal`: the operator's command line."""

import os
import sys

import click

from shoal.cli import checkpoint, device_override
from shoal.cli.alert import alert
from shoal.cli.audit import audit
from shoal.cli.bundle import bundle
from shoal.cli.command import CommandGroup, Session, report
from shoal.cli.dataset import dataset
from shoal.cli.demo import demo_command
from shoal.cli.device import device
from shoal.cli.doctor import doctor
from shoal.cli.drift import drift
from shoal.cli.exit_codes import MEANING, exit_code
from shoal.cli.group import group
from shoal.cli.lineage import lineage
from shoal.cli.login import login
from shoal.cli.mlflow import mlflow
from shoal.cli.model import model
from shoal.cli.needs import needs
from shoal.cli.notify import notify
from shoal.cli.operation import operation
from shoal.cli.release import release
from shoal.cli.rollout import rollout
from shoal.cli.round import round_
from shoal.cli.run import run
from shoal.cli.token import token
from shoal.cli.user import user
from shoal.errors import ShoalError

_EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code:<4} {text}" for code, text in MEANING.items())


@click.group(
    cls=CommandGroup, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="shoal")
def cli() -> None:
    """MLOps for fleets of small machines.

    \b
    A first hour:
      shoal login https://HOST:8443            sign in; saved for later commands
      shoal device token --site north          a command for a new device
      shoal dataset add parts.csv --name parts --label ok
      shoal model train parts-ok --dataset parts
      shoal release publish parts-ok@1
      shoal rollout start parts-ok@1
      shoal needs                              what waits for you

    SHOAL_URL, SHOAL_TOKEN and SHOAL_CA (a PEM file) override the account that `shoal login` saves
    in ~/.config/shoal/. Every command takes --json.
    """


for _command in (
    login, needs, device, group, dataset, model, mlflow, run, lineage, release, rollout, round_,
    bundle, alert, drift, notify, operation, user, token, audit, doctor, demo_command(),
):  # fmt: skip
    cli.add_command(_command)
for _verb in checkpoint.COMMANDS:
    round_.add_command(_verb)
for _verb in device_override.COMMANDS:
    device.add_command(_verb)


def main() -> None:
    """Entry point of the `shoal` console script."""
    session = Session(os.environ)
    try:
        cli(obj=session)
    except ShoalError as error:
        report(error, session)
        sys.exit(exit_code(error))


if __name__ == "__main__":
    main()
