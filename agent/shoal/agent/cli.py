"""Commands of `shoal-agent`: enroll, install, run, status, doctor, import, export, labels."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shoal.agent.host.io.folder import FOLDER
from shoal.errors import ShoalError

if TYPE_CHECKING:
    from shoal.agent.host.io.config import Source

#: Read by numpy's BLAS when it is loaded; set before that.
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


_folder = click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=FOLDER,
    show_default=True,
    envvar="SHOAL_AGENT_FOLDER",
    help="The agent's folder: settings, keys, models, journal.",
)


class _ErrorReporting(click.Group):
    """Prints a ShoalError as one sentence, with its hint, and exits with 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ShoalError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_ErrorReporting, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="shoal", prog_name="shoal-agent")
def main() -> None:
    """Shoal's agent: serves models on this machine, updates them safely, reports how they do.

    \b
    A device's first minutes (`shoal device token` prints the first line, with its token):
      shoal-agent enroll --controller https://HOST:8443 --name NAME
      shoal-agent doctor                       is all there that it needs
      shoal-agent run                          or: sudo shoal-agent install
      shoal-agent status                       what runs, what is wrong, what to do
    """


@main.command()
@_folder
@click.option("--controller", required=True, metavar="URL", help="https://host:port")
@click.option(
    "--token",
    required=True,
    envvar="SHOAL_JOIN_TOKEN",
    help="Join token, from: shoal device token. Better in SHOAL_JOIN_TOKEN than in a history.",
)
@click.option("--name", required=True, help="Name of this device, unique in the fleet.")
@click.option(
    "--ring",
    type=click.Choice(["stable", "canary"]),
    default="stable",
    show_default=True,
    help="canary also takes candidates that automation alone has signed.",
)
@click.option("--profile", default="", help="Firmware profile; found out when left out.")
@click.option("--line", default="", help="Line or machine this device belongs to.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="May be repeated.")
@click.option("--source", default="", metavar="replay:FILE", help="A CSV file to feed the model.")
@click.option("--source-label", default="", help="Column with the true class, to measure accuracy.")
def enroll(
    folder: Path,
    controller: str,
    token: str,
    name: str,
    ring: str,
    profile: str,
    line: str,
    labels: tuple[str, ...],
    source: str,
    source_label: str,
) -> None:
    """Join a fleet with a join token. Safe to run again: the key is kept."""
    from shoal.agent.host.io.facts import read_facts
    from shoal.agent.identity.io.enrol import EnrolOptions, enrol
    from shoal.agent.identity.io.renewal import complete_renewal

    complete_renewal(folder)
    options = EnrolOptions(
        controller=controller,
        token=token,
        name=name,
        ring=ring,
        profile=profile,
        line=line,
        labels=_pairs(labels),
        source=_source(source, source_label),
    )
    settings = enrol(folder, options, read_facts(), lambda floor: _raise_floor(folder, floor))
    device = settings.device
    click.echo(f"{device.name} joined site {device.site!r} as {device.profile}, ring {device.ring}")
    click.echo(f"start it: shoal-agent run --folder {folder}")


def _raise_floor(folder: Path, floor: int) -> None:
    """Refuse assignments below this version from now on."""
    from shoal.agent.host.io.folder import JOURNAL, give
    from shoal.agent.installed.io.journal import SqliteJournal

    if floor > 0:
        journal = SqliteJournal(folder / JOURNAL)
        journal.save_floors(journal.floors().raised(assignment=floor))
        journal.close()
        give(folder, folder.glob(f"{JOURNAL}*"))


@main.command()
@_folder
@click.option("--user", default="shoal", show_default=True, help="Runs as; made when not there.")
@click.option(
    "--memory-mb",
    type=click.IntRange(min=128),
    default=384,
    show_default=True,
    help="Memory beyond which the kernel slows it down; at half as much again it is ended.",
)
@click.option("--show", is_flag=True, help="Print the unit; change nothing.")
def install(folder: Path, user: str, memory_mb: int, show: bool) -> None:
    """Make it a systemd service of this machine: own user, watchdog, limits, sandbox.

    Run it again after a change of sources or sinks: they may touch what agent.toml names, no more.
    """
    from shoal.agent.feeds.io.plugins import outside
    from shoal.agent.host.io import install as service
    from shoal.agent.host.unit import PATH

    folder = folder.absolute()
    paths = outside(folder)
    if show:
        click.echo(service.text_of(folder, user, memory_mb, paths), nl=False)
        return
    for line in service.install(Path(PATH), folder, user, memory_mb, paths):
        click.echo(line)
    click.echo("start it: systemctl enable --now shoal-agent")


@main.command("run")
@_folder
def run_command(folder: Path) -> None:
    """Serve, update and report until SIGTERM or Ctrl-C."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from shoal.agent.host.io.disk_reserve import adjust_reserve
    from shoal.agent.serving.io.runtime import limit_malloc

    limit_malloc()
    adjust_reserve(folder)
    from shoal.agent.process import run

    sys.exit(run(folder))


@main.command()
@_folder
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def status(folder: Path, as_json: bool) -> None:
    """Show what serves, since when, what is wrong and what to do. Exits with 1 on a problem."""
    from shoal.agent.status import text
    from shoal.agent.status_reader import read_status

    found = read_status(folder)
    _print(found, text(found), as_json)
    sys.exit(1 if found.problems else 0)


@main.command("import")
@click.argument("source", metavar="SOURCE", type=click.Path(path_type=Path, file_okay=False))
@_folder
def import_(source: Path, folder: Path) -> None:
    """Import an offline bundle (shoal bundle export): assignments, releases, acks.

    All of SOURCE is verified first. The agent may run or not.
    """
    from shoal.agent.offline.io.cli import import_folder

    click.echo("\n".join(import_folder(folder, source)))


@main.command()
@click.argument("target", metavar="TARGET", type=click.Path(path_type=Path, file_okay=False))
@_folder
def export(target: Path, folder: Path) -> None:
    """Export windows, events and inventory to a folder, for shoal bundle import.

    They stay in the outbox until the controller acknowledges them. The agent may run or not.
    """
    from shoal.agent.offline.io.cli import export_folder
    from shoal.agent.process import number_outbox

    click.echo("\n".join(export_folder(folder, target, lambda: number_outbox(folder))))


@main.command()
@_folder
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def doctor(folder: Path, as_json: bool) -> None:
    """Check clock, disk, certificate, network, runtime and model. Exits with 1 when one fails."""
    import msgspec

    from shoal.agent.doctor import examine
    from shoal.agent.host.io.config import load
    from shoal.errors import hint_fields

    findings = examine(folder, load(folder))
    lines = [f"{'ok  ' if f.passed else 'FAIL'} {f.check:12} {f.detail}" for f in findings]
    hints = [f"     do: {f.check}: {f.hint}" for f in findings if f.hint]
    fields = [msgspec.structs.asdict(f) | hint_fields(f.hint) for f in findings]
    _print(fields, "\n".join([*lines, *hints]), as_json)
    sys.exit(0 if all(f.passed for f in findings) else 1)


@main.group()
def labels() -> None:
    """Labels and rows that this device trains on. They never leave the device."""


@labels.command("add")
@click.argument("given", metavar="FILE|ID=LABEL...", nargs=-1, required=True)
@_folder
@click.option(
    "--column", default="label", show_default=True, help="Column of FILE with the true class."
)
@click.option("--model", default="", help="Needed where several models serve here.")
def labels_add(given: tuple[str, ...], folder: Path, column: str, model: str) -> None:
    """Add labelled rows from a CSV or Parquet table, or label rows that were inferred with an id.

    A table has the columns of the model's sources. The rows stay on this disk, within the limits
    under [learning] in agent.toml. The agent may run or not.
    """
    from shoal.agent.federated.io import label_import

    click.echo(label_import.add(folder, given, column, model))


@labels.command("list")
@_folder
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def labels_list(folder: Path, as_json: bool) -> None:
    """Count the rows kept on this device, by model and label."""
    from shoal.agent.federated.io import label_import

    found = label_import.held(folder)
    _print(found, label_import.text_of(found), as_json)


@labels.command("clear")
@_folder
@click.option("--model", default="", help="Only rows of this model.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def labels_clear(folder: Path, model: str, yes: bool) -> None:
    """Delete the rows kept for training, permanently."""
    from shoal.agent.federated.io import label_import

    if not yes:
        click.confirm(f"delete all rows of {model or 'every model'} here?", abort=True)
    click.echo(f"{label_import.clear(folder, model)} rows deleted")


def _pairs(labels: tuple[str, ...]) -> dict[str, str]:
    from shoal.errors import SettingError

    for label in labels:
        if "=" not in label:
            raise SettingError(f"label {label!r}", "write it as key=value")
    return dict(label.split("=", 1) for label in labels)


def _source(text: str, label: str) -> "Source | None":
    from shoal.agent.host.io.config import Source
    from shoal.errors import SettingError

    if not text:
        return None
    kind, _, path = text.partition(":")
    if kind != "replay" or not path:
        raise SettingError(f"source {text!r}", "write it as replay:FILE")
    file = Path(path).absolute()
    if not file.is_file():
        raise SettingError(f"source replay:{path}: there is no file {file}", "is the path right?")
    if label:
        from shoal.agent.serving.io.row_table import read_table

        read_table(file, label)
    return Source(path=str(file), label=label)


def _print(thing: Any, text: str, as_json: bool) -> None:
    import msgspec

    click.echo(msgspec.json.encode(thing).decode() if as_json else text)
