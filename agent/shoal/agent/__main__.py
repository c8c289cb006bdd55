"""`shoal-agent`: enroll, run, status, doctor, install. The only place that builds adapters."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shoal.agent.io.folder import FOLDER
from shoal.errors import ShoalError

if TYPE_CHECKING:
    import asyncio

    from shoal.agent.io.config import Settings, Source
    from shoal.agent.io.feeds.running import Feeds
    from shoal.agent.io.notify import Notifier, Watchdog
    from shoal.agent.io.upkeep import Upkeep
    from shoal.agent.loop import Agent
    from shoal.mqtt import Link

    Spawn = Callable[[Callable[[], None]], None]

#: Read by numpy's BLAS when it is loaded, which is before any adapter can say so.
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


_folder = click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=FOLDER,
    show_default=True,
    envvar="SHOAL_AGENT_FOLDER",
    help="The agent's folder: settings, keys, models, journal.",
)


class _Told(click.Group):
    """Prints a ShoalError as one sentence, with the mend, and exits with 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ShoalError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Told, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="shoal", prog_name="shoal-agent")
def main() -> None:
    """Shoal's agent: serves models on this machine, updates them safely, reports how they do."""


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
    from shoal.agent.io.enrol import Wish, enrol
    from shoal.agent.io.facts import read_facts
    from shoal.agent.io.renewal import settle

    settle(folder)
    wish = Wish(
        controller=controller,
        token=token,
        name=name,
        ring=ring,
        profile=profile,
        line=line,
        labels=_pairs(labels),
        source=_source(source, source_label),
    )
    settings = enrol(folder, wish, read_facts())
    device = settings.device
    click.echo(f"{device.name} joined site {device.site!r} as {device.profile}, ring {device.ring}")
    click.echo(f"start it: shoal-agent run --folder {folder}")


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
    """Make it a systemd service of this machine: own user, watchdog, limits, sandbox."""
    from shoal.agent.io import install as service
    from shoal.agent.unit import PATH, unit

    folder = folder.absolute()
    if show:
        program = service.program()
        text = unit(program=program, folder=str(folder), user=user, memory_mb=memory_mb)
        click.echo(text, nl=False)
        return
    for line in service.install(Path(PATH), folder, user, memory_mb):
        click.echo(line)
    click.echo("start it: systemctl enable --now shoal-agent")


@main.command()
@_folder
def run(folder: Path) -> None:
    """Serve, update and report until told to stop (SIGTERM, Ctrl-C)."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from shoal.agent.io.reserve import settle
    from shoal.agent.io.runtime import limit_arenas

    limit_arenas()
    settle(folder)
    sys.exit(_run(folder))


@main.command()
@_folder
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def status(folder: Path, as_json: bool) -> None:
    """What runs, since when, what is wrong, what to do. Exits with 1 when something is wrong."""
    from shoal.agent.io.local import read_standing
    from shoal.agent.standing import text

    standing = read_standing(folder)
    _print(standing, text(standing), as_json)
    sys.exit(1 if standing.problems else 0)


@main.command()
@_folder
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def doctor(folder: Path, as_json: bool) -> None:
    """Check clock, disk, certificate, network, runtime and model. Exits with 1 when one fails."""
    from shoal.agent.io.config import load
    from shoal.agent.io.doctor import examine

    findings = examine(folder, load(folder))
    lines = [f"{'ok  ' if f.passed else 'FAIL'} {f.check:12} {f.detail}" for f in findings]
    mends = [f"     do: {f.check}: {f.mend}" for f in findings if f.mend]
    _print(findings, "\n".join([*lines, *mends]), as_json)
    sys.exit(0 if all(f.passed for f in findings) else 1)


def _run(folder: Path) -> int:
    """Build the agent in `folder` and run it; exit code."""
    import asyncio
    import logging

    from shoal.agent.io import config, local, renewal

    settings = config.load(folder)
    logging.basicConfig(
        level=logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("shoal").setLevel(settings.log_level.upper())
    held = local.lock(folder)
    try:
        renewal.settle(folder)
        return asyncio.run(_serve(folder, settings))
    finally:
        os.close(held)


async def _serve(folder: Path, settings: "Settings") -> int:
    """Everything, until SIGTERM, Ctrl-C or a failure of the control loop."""
    import asyncio
    import signal

    from shoal.agent.faults import Fault
    from shoal.agent.inference import Inference
    from shoal.agent.io.endpoint import Endpoint
    from shoal.agent.io.folder import ADDRESS, SOCKET, SPOOL
    from shoal.agent.io.notify import Notifier
    from shoal.agent.io.running import ControlThread, Jobs
    from shoal.agent.io.slots import write_durable
    from shoal.agent.io.spool import Spool
    from shoal.agent.loop import Trouble

    loop, stop, failed = asyncio.get_running_loop(), asyncio.Event(), []
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def fail() -> None:
        failed.append(1)
        loop.call_soon_threadsafe(stop.set)

    jobs = Jobs()
    agent, link = _build(folder, settings, jobs.spawn)
    feeds = _feeds_of(folder, settings, agent)
    agent.feeds = feeds.health
    inference = Inference(
        agent.serving,
        standing=agent.standing,
        version=agent.identity.version,
        pushes=feeds.pushes,
    )
    endpoint = Endpoint(
        inference,
        host=settings.endpoint.host,
        port=settings.endpoint.port,
        socket=folder / SOCKET if settings.endpoint.socket else None,
    )
    await endpoint.start()
    agent.endpoint = endpoint.address
    write_durable(folder / ADDRESS, endpoint.address.encode())

    spool = Spool(folder / SPOOL)
    notifier = Notifier(os.environ)
    watchdog = _watchdog(notifier, agent, loop)

    def tick() -> float:
        idle = agent.tick()
        watchdog.tick()
        if link.revive():
            agent.post(Trouble(Fault("link-died", "the broker link's thread ended; started anew")))
        if agent.voice.saved:
            spool.take(agent.voice.add, agent.voice.fault)
        if agent.restart_asked:
            loop.call_soon_threadsafe(stop.set)
        return idle

    upkeep = _upkeep_of(folder, settings, agent)
    control = ControlThread(begin=agent.start, tick=tick, end=agent.stop, failed=fail)
    agent.wake = control.wake
    control.start()
    await loop.run_in_executor(None, control.begun.wait)
    link.start()
    feeds.start()
    upkeep.start()
    click.echo(f"{settings.device.name} serves at {endpoint.address}", err=True)
    notifier.tell(READY="1", STATUS=f"serves at {endpoint.address}")
    await stop.wait()
    notifier.tell(STOPPING="1")
    upkeep.finish()
    await loop.run_in_executor(None, feeds.stop)
    await loop.run_in_executor(None, control.finish)
    await loop.run_in_executor(None, link.stop)
    jobs.finish()
    await endpoint.stop()
    (folder / ADDRESS).unlink(missing_ok=True)
    return 1 if failed else 0


def _watchdog(
    notifier: "Notifier", agent: "Agent", loop: "asyncio.AbstractEventLoop"
) -> "Watchdog":
    """Fed when every model answers a row, the endpoint's loop turns, and the control loop calls."""
    import time

    from shoal.agent.io.notify import Watchdog

    turned = [True]

    def infer() -> None:
        for serving in list(agent.serving.values()):
            serving.try_out()

    def answers() -> bool:
        answered, turned[0] = turned[0], False
        loop.call_soon_threadsafe(turned.__setitem__, 0, True)
        return answered

    return Watchdog(notifier, monotonic=time.monotonic, infer=infer, answers=answers)


def _build(folder: Path, settings: "Settings", spawn: "Spawn") -> "tuple[Agent, Link]":
    """The agent's core with its real adapters, and the link that feeds it."""
    import random
    import secrets
    import threading
    import time

    from shoal import topics
    from shoal.agent.hours import Pace, parse
    from shoal.agent.io import download, facts, health, journal, outbox, pressure, probe
    from shoal.agent.io import folder as names
    from shoal.agent.io.optimised import Optimised
    from shoal.agent.io.renewal import session_name
    from shoal.agent.io.runtime import OrtLoader
    from shoal.agent.io.slots import DiskSlots
    from shoal.agent.loop import Agent, Connection, Heard
    from shoal.agent.ports import Ports
    from shoal.agent.telling import Identity
    from shoal.mqtt import Link
    from shoal.profile import detect, profile
    from shoal.trust import ImageRepository

    device, known = settings.device, facts.read_facts()
    identity = Identity(
        device=device.name,
        site=device.site,
        ring=device.ring,
        profile=profile(device.profile) if device.profile else detect(known),
        line=device.line,
        labels=device.labels,
        facts=known,
        version=facts.version_of("shoal"),
    )
    slots = DiskSlots(folder / names.MODELS)
    downloads = download.HttpsDownloads(
        ca=folder / names.CA,
        artifacts=settings.controller.artifacts,
        stage=lambda model: slots.path(model, "stage"),
        max_kbps=settings.update.max_kbps,
        monotonic=time.monotonic,
        sleep=time.sleep,
    )
    chance = random.SystemRandom()
    load = pressure.PressureSampler(time.monotonic)
    # The link and the agent know each other: the link is made first and speaks through `box`.
    box: list[Agent] = []
    link = Link(
        url=settings.controller.broker,
        client_id=device.name,
        session=session_name(folder, device.name),
        ca=folder / names.CA,
        certificate=folder / names.CERTIFICATE,
        key=folder / names.KEY,
        subscriptions=[topics.all_down(device.name), topics.BUDGET],
        on_message=lambda topic, payload: box[0].post(Heard(topic, payload)),
        on_connection=lambda up: box[0].post(Connection(up)),
        will=lambda: box[0].voice.will(),
        random=chance,
    )
    ports = Ports(
        journal=journal.SqliteJournal(folder / names.JOURNAL),
        outbox=outbox.SqliteOutbox(
            folder / names.OUTBOX,
            limit_bytes=int(settings.outbox.limit_mb * 2**20),
            boot_name=lambda: secrets.token_hex(8),
        ),
        slots=slots,
        downloads=downloads,
        images=ImageRepository(
            folder / names.METADATA, names.read_trusted(folder, names.ROOT), downloads.metadata
        ),
        loader=OrtLoader(slots.path, Optimised(folder / names.CACHE, facts.read_facts)),
        prober=probe.SubprocessProber(slots.path, dict(os.environ)),
        link=link,
        health=health.HealthSampler(folder, time.monotonic, load),
        load=load,
        spawn=spawn,
        lock=threading.Lock,
        wall=time.time,
        monotonic=time.monotonic,
        timer=time.perf_counter,
        random=chance,
    )
    pace = Pace(observe_s=settings.update.observe_s, hours=parse(settings.update.hours))
    director_root = names.read_trusted(folder, names.DIRECTOR)
    agent = Agent(identity, ports, director_root=director_root, pace=pace)
    box.append(agent)
    return agent, link


def _feeds_of(folder: Path, settings: "Settings", agent: "Agent") -> "Feeds":
    """The sources and sinks that agent.toml names, not started yet."""
    import random
    import time

    import msgspec

    from shoal.agent.io.feeds.running import Feeds, World
    from shoal.agent.loop import Trouble

    short = {"source": msgspec.structs.asdict(settings.source)} if settings.source else {}
    world = World(
        folder=folder,
        serving=lambda: agent.serving,
        fault=lambda fault: agent.post(Trouble(fault)),
        wall=time.time,
        monotonic=time.monotonic,
        random=random.SystemRandom(),
        rate=lambda: agent.easing.rate,
    )
    return Feeds(short | settings.sources, settings.sinks, world)


def _upkeep_of(folder: Path, settings: "Settings", agent: "Agent") -> "Upkeep":
    """What renews the certificate, not started yet."""
    import random

    from shoal.agent.io.upkeep import Upkeep
    from shoal.agent.loop import Rooted, Trouble

    return Upkeep(
        folder,
        settings.controller.url,
        settings.device.name,
        clock=agent.clock,
        random=random.SystemRandom(),
        fault=lambda fault: agent.post(Trouble(fault)),
        rooted=lambda root: agent.post(Rooted(root)),
    )


def _pairs(labels: tuple[str, ...]) -> dict[str, str]:
    from shoal.errors import SettingError

    for label in labels:
        if "=" not in label:
            raise SettingError(f"label {label!r}", "write it as key=value")
    return dict(label.split("=", 1) for label in labels)


def _source(text: str, label: str) -> "Source | None":
    from shoal.agent.io.config import Source
    from shoal.errors import SettingError

    if not text:
        return None
    kind, _, path = text.partition(":")
    if kind != "replay" or not path:
        raise SettingError(f"source {text!r}", "write it as replay:FILE")
    return Source(path=str(Path(path).absolute()), label=label)


def _print(thing: Any, text: str, as_json: bool) -> None:
    import msgspec

    click.echo(msgspec.json.encode(thing).decode() if as_json else text)


if __name__ == "__main__":
    main()
