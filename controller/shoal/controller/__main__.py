"""shoal-controller: creates a controller, serves it, and runs each of its processes."""

import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from shoal.address import url_of
from shoal.errors import ConflictError, InputError, ShoalError

#: Exit codes: 0 success, 1 failure with a message, 2 wrong usage (click's own).
FAILED = 1
_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


def _report_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Print a ShoalError as one line with its hint, without a traceback."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except ShoalError as error:
            logging.getLogger("shoal").debug("traceback", exc_info=True)
            click.echo(f"ERROR {error}", err=True)
            sys.exit(FAILED)

    return run


def _folder(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--folder",
        type=click.Path(file_okay=False, path_type=Path),
        envvar="SHOAL_FOLDER",
        default=Path("shoal-controller"),
        show_default=True,
        help="Folder of this controller.",
    )(_report_errors(command))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="shoal")
def main() -> None:
    """Make and serve a Shoal controller.

    \b
    A server's first minutes:
      shoal-controller init --folder /var/lib/shoal --name HOST    prints the first password
      shoal-controller serve --folder /var/lib/shoal
      shoal-controller doctor --folder /var/lib/shoal              checks, each failure with a hint
      shoal login https://HOST:8443                                then: shoal --help
    """


@main.command()
@_folder
@click.option(
    "--name",
    "names",
    multiple=True,
    help="DNS name or address of this machine for others; may be given again.",
)
@click.option("--host", help="Address to bind.  [default: 127.0.0.1, or all when --name is given]")
@click.option("--port", type=int, help="API and console.  [default: 8443]")
@click.option("--artifacts-port", "artifacts", type=int, help="Artifact server.  [default: 8444]")
@click.option("--mqtt-port", "mqtt", type=int, help="Embedded broker.  [default: 8883]")
@click.option("--window-s", type=float, help="Length of a telemetry window.  [default: 60]")
@click.option(
    "--baseline-windows", type=int, help="Windows of a device's own baseline.  [default: 96]"
)
@click.option(
    "--cycle",
    type=click.Choice(["day", "none"]),
    default="day",
    help="none: no process has a daily cycle, and drift is found on the first day too.",
)
@click.option("--broker", default="", help="mqtts://HOST:PORT of a broker of your own.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def init(folder: Path, as_json: bool, **options: Any) -> None:
    """Make a controller: settings, keys, certificates, database, and the first admin."""
    from shoal.controller.access.users import first_admin
    from shoal.controller.fleet.io.ca import Authority
    from shoal.controller.initialization import InitOptions, make_folder
    from shoal.controller.wiring import open_context

    folder = folder.resolve()
    network = make_folder(folder, InitOptions(**options), time.time()).network
    try:
        password = first_admin(open_context(folder))
    except ConflictError as error:
        raise ConflictError(
            f"{folder} already is a controller",
            "change its controller.toml, or choose another --folder",
        ) from error
    made = {
        "admin_password": password,
        "url": url_of("https", network.names[0], network.port),
        "ca_fingerprint": Authority.open(folder / "pki").root_fingerprint,
    }
    if as_json:
        click.echo(json.dumps(made))
        return
    click.echo(f"made {folder}")
    click.echo(f"  address         {made['url']}")
    click.echo(f"  CA fingerprint  {made['ca_fingerprint']}")
    click.echo(f"  user admin, password {password}   (shown this once; kept nowhere)")
    click.echo(f"next: shoal-controller serve --folder {folder}")


@main.command()
@_folder
def serve(folder: Path) -> None:
    """Run everything until Ctrl-C: broker, API and console, artifact server, engine."""
    from shoal.controller.host import settings
    from shoal.controller.supervisor import Supervisor

    configured = settings.load(folder)
    Supervisor(folder.resolve(), configured, report=lambda text: click.echo(text)).run()


@main.command()
@_folder
def broker(folder: Path) -> None:
    """Run the embedded broker alone."""
    from shoal.controller.broker.io.nats import NatsServer, find_binary
    from shoal.controller.broker.io.process import EnrolledDevices, run
    from shoal.controller.host import settings
    from shoal.controller.host.io.lifetime import stop_event
    from shoal.controller.store.io.database import Store, url_of

    _start_child()
    configured = settings.load(folder)
    network = configured.network
    server = NatsServer(
        find_binary(os.environ),
        folder / "broker",
        folder / "pki",
        host=network.host,
        port=network.mqtt,
    )
    run(server, EnrolledDevices(Store.open(url_of(folder, configured))), stop_event())


@main.command()
@_folder
def artifacts(folder: Path) -> None:
    """Run the artifact server alone."""
    from shoal.controller.host import settings
    from shoal.controller.releases.io.artifacts import serve as serve_artifacts

    _start_child()
    asyncio.run(_until_terminated(serve_artifacts(folder, settings.load(folder))))


@main.command()
@_folder
def web(folder: Path) -> None:
    """Run API and console alone."""
    from shoal.controller.host import settings
    from shoal.controller.host.io.web_server import serve as serve_web

    def make_app() -> Any:
        from shoal.controller.app import create_app
        from shoal.controller.wiring import open_context

        return create_app(open_context(folder))

    _start_child()
    serve_web(make_app, settings.load(folder).network, folder / "pki")


@main.command()
@_folder
def engine(folder: Path) -> None:
    """Run ingest, rollouts, monitoring and retraining alone."""
    from shoal.controller.engine_jobs import run
    from shoal.controller.host.io.lifetime import stop_event
    from shoal.controller.wiring import open_context

    _start_child()
    run(open_context(folder), stop_event())


@main.command()
@click.argument("id_", metavar="ID")
@_folder
def operation(id_: str, folder: Path) -> None:
    """Run one operation that the engine has claimed."""
    from shoal.controller.host.io import process_limits
    from shoal.controller.host.io.lifetime import die_with_parent
    from shoal.controller.operations import operations
    from shoal.controller.runs.records import IMPORT
    from shoal.controller.wiring import open_context, operation_kinds

    _start_child()
    ctx = open_context(folder)
    if operations.get_operation(ctx, id_).kind == IMPORT and not process_limits.leave_network():
        click.echo("the model runs with this machine's network: the system allows no namespace")
    die_with_parent()  # again: a new namespace may have dropped it
    allowed = ctx.settings.operations
    memory_mb = process_limits.limit(
        memory_mb=allowed.memory_mb, cpu_s=allowed.cpu_s, file_mb=allowed.file_mb
    )
    operations.run(ctx, id_, operation_kinds(), memory_mb)


@main.command("mosquitto-config")
@_folder
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where to write.  [default: FOLDER/mosquitto]",
)
@click.option("--listen", default="", help="Address for Mosquitto to bind.  [default: all]")
@click.option("--user", default="", help="User that Mosquitto switches to when started as root.")
@click.option(
    "--pid-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="PID file of the running Mosquitto, which gets SIGHUP after changes.",
)
@click.option(
    "--watch", is_flag=True, help="Keep running, and rewrite the access list at every enrolment."
)
def mosquitto_config(
    folder: Path, out: Path | None, listen: str, user: str, pid_file: Path | None, watch: bool
) -> None:
    """Write mosquitto.conf and its access list, for a broker of your own."""
    from shoal.controller.broker.io.mosquitto import MosquittoFiles
    from shoal.controller.broker.io.process import EnrolledDevices, keep_updated
    from shoal.controller.host import settings
    from shoal.controller.host.io.lifetime import stop_event
    from shoal.controller.store.io.database import Store, url_of
    from shoal.mqtt import broker_address

    configured = settings.load(folder)
    network = configured.network
    port = broker_address(network.broker).port if network.broker else network.mqtt
    enrolled = EnrolledDevices(Store.open(url_of(folder, configured)))
    target = (out or folder / "mosquitto").resolve()
    names = enrolled.names()
    MosquittoFiles(target).write(folder / "pki", names, host=listen, port=port, user=user)
    click.echo(f"wrote {target}; Mosquitto's user must be able to read it. Then:")
    click.echo(f"  mosquitto -c {target / 'mosquitto.conf'}")
    running = MosquittoFiles(target, pid_file)
    if pid_file is not None:
        running.set_devices(names)
    if watch:
        _start_child()
        keep_updated(enrolled, running, names, stop_event().wait)


@main.command()
@_folder
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(folder: Path, as_json: bool) -> None:
    """Check the controller; every failure has a hint. Exit code 1 if a check fails."""
    from shoal.controller.doctor import ERROR, run_checks, worst_state

    checks = run_checks(folder.resolve(), time.time())
    if as_json:
        listing = [{"name": c.name, "state": c.state, "detail": c.detail} for c in checks]
        click.echo(json.dumps({"state": worst_state(checks), "checks": listing}))
    else:
        colours = {"ok": "green", "warning": "yellow", "error": "red"}
        for check in checks:
            state = click.style(f"{check.state:8}", fg=colours[check.state])
            click.echo(f"{state} {check.name:26} {check.detail}")
    sys.exit(FAILED if worst_state(checks) == ERROR else 0)


@main.command()
@click.argument("target", metavar="TO", type=click.Path(file_okay=False, path_type=Path))
@_folder
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def backup(folder: Path, target: Path, as_json: bool) -> None:
    """Copy a controller into the new folder TO, while it serves or not.

    \b
      shoal-controller backup /mnt/backup/2026-12-01 --folder /var/lib/shoal

    The copy is consistent: database, windows, keys, metadata and files fit together. It holds the
    signing keys that are on this machine: keep it as safe as the controller.
    """
    from shoal.controller.backup import back_up

    done = back_up(folder.resolve(), target.resolve(), time.time())
    if as_json:
        click.echo(json.dumps({"folder": str(target), "files": done.files, "bytes": done.bytes}))
        return
    click.echo(f"backed up {folder} to {target}: {done.files} files, {done.bytes / 1e6:.1f} MB")
    click.echo(f"to try it: shoal-controller restore {target} --folder NEW-FOLDER")


@main.command()
@click.argument("source", metavar="FROM", type=click.Path(file_okay=False, path_type=Path))
@_folder
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def restore(folder: Path, source: Path, as_json: bool) -> None:
    """Make the controller of the backup FROM in a new folder. Nothing is overwritten.

    \b
      shoal-controller restore /mnt/backup/2026-12-01 --folder /var/lib/shoal
      shoal-controller serve --folder /var/lib/shoal

    Every file is checked first. Devices send again what the backup does not hold and they were
    not acknowledged; what was acknowledged after the backup is lost.
    """
    from shoal.controller.backup import restore as restore_backup

    done = restore_backup(source.resolve(), folder.resolve())
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "files": done.files, "bytes": done.bytes}))
        return
    click.echo(f"restored {folder} from {source}: {done.files} files, {done.bytes / 1e6:.1f} MB")
    click.echo(f"next: shoal-controller serve --folder {folder}")


@main.command()
@click.argument("file", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_report_errors
def replay(file: Path, as_json: bool) -> None:
    """Compute every verdict in FILE, of `shoal rollout receipts`, again: no controller is needed.

    \b
      shoal rollout receipts 01h9 --out receipts.json
      shoal-controller replay receipts.json

    Exit code 1 when an input was changed, which is named, or a verdict comes out otherwise.
    """
    from shoal.controller.rollouts import receipts

    try:
        export = receipts.read_export(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}", "name a file that exists") from error
    found = receipts.differences(export)
    if as_json:
        click.echo(json.dumps({"looks": len(export.looks), "differences": found}))
    elif not found:
        click.echo(
            f"{len(export.looks)} looks of {export.rollout}: every verdict comes out the same"
        )
    else:
        click.echo("\n".join(found))
    if found:
        sys.exit(FAILED)


@main.command()
@click.argument("target", metavar="TO", type=click.Path(file_okay=False, path_type=Path))
@_folder
@click.option("--since", default="", metavar="DATE", help="First day of arrival.  [default: all]")
@click.option("--until", default="", metavar="DATE", help="Day to stop before.  [default: none]")
@click.option("--features/--no-features", default=True, help="A row for each feature too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def export(
    folder: Path, target: Path, since: str, until: str, features: bool, as_json: bool
) -> None:
    """Write telemetry as Parquet into TO, while the controller serves or not.

    \b
      shoal-controller export /mnt/telemetry --folder /var/lib/shoal --since 2026-11-01

    Run again, it adds what has arrived since. DuckDB, pandas, Spark and Polars read the folders
    windows, features and sums as tables; sketches hold no value of a row.
    """
    from shoal.controller.monitoring.io.telemetry_export import export as export_telemetry
    from shoal.controller.wiring import open_context

    done = export_telemetry(
        open_context(folder.resolve()), target, since=since, until=until, features=features
    )
    if as_json:
        click.echo(json.dumps({"folder": str(target)} | done._asdict()))
        return
    click.echo(
        f"wrote {done.days} days to {target}: {done.windows} windows, {done.features} features"
    )
    if done.unknown:
        click.echo(f"{done.unknown} windows are of deleted releases: without features")


def _start_child() -> None:
    """Start of every child process: log to stderr, and end with the supervisor."""
    from shoal.controller.host.io.lifetime import die_with_parent
    from shoal.controller.host.io.processes import SUPERVISED

    logging.basicConfig(level=os.environ.get("SHOAL_LOG", "INFO"), format=_FORMAT)
    logging.Formatter.converter = time.gmtime
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    if os.environ.pop(SUPERVISED, ""):
        die_with_parent()


async def _until_terminated(work: Any) -> None:
    task = asyncio.ensure_future(work)
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return


if __name__ == "__main__":
    main()
