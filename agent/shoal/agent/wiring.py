"""Builds the adapters of the agent's process: the only module besides __main__ that may."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import asyncio

    from shoal.agent.federated.client import ClientPorts, RoundJournal
    from shoal.agent.federated.io.row_collection import Keeping
    from shoal.agent.federated.ports import FederatedPorts
    from shoal.agent.feeds.io.runner import Feeds
    from shoal.agent.host.io.config import Settings
    from shoal.agent.host.io.notify import Notifier, Watchdog
    from shoal.agent.host.ports import HostPorts
    from shoal.agent.installed.ports import UpdateJournal
    from shoal.agent.loop import Agent
    from shoal.agent.offline.io.exchange import OfflineExchange
    from shoal.agent.peers.io.network import Neighbourhood
    from shoal.agent.telemetry.ports import Outbox
    from shoal.agent.upkeep import Upkeep
    from shoal.mqtt import Link

    Spawn = Callable[[Callable[[], None]], None]

#: Is there once systemd-timesyncd has set the clock, in this boot.
_TIMESYNC = Path("/run/systemd/timesync/synchronized")


class Core(NamedTuple):
    """The agent with its real adapters, and those that other parts of the process use as well."""

    agent: "Agent"
    link: "Link"
    journal: "UpdateJournal"
    outbox: "Outbox"
    rounds: "FederatedPorts | None"


def watchdog(notifier: "Notifier", agent: "Agent", loop: "asyncio.AbstractEventLoop") -> "Watchdog":
    """Fed when every model answers a row, the endpoint's loop turns, and the control loop calls."""
    import time

    from shoal.agent.host.io.notify import Watchdog

    turned = [True]

    def infer() -> None:
        for serving in list(agent.serving.values()):
            serving.self_test()

    def answers() -> bool:
        answered, turned[0] = turned[0], False
        loop.call_soon_threadsafe(turned.__setitem__, 0, True)
        return answered

    return Watchdog(notifier, monotonic=time.monotonic, infer=infer, answers=answers)


def build(folder: Path, settings: "Settings", spawn: "Spawn", near: "Neighbourhood") -> Core:
    """The agent's core with its real adapters, and the link that feeds it."""
    import random
    import secrets
    import threading
    import time

    from shoal import topics
    from shoal.agent.federated.io.gateway import facts_of
    from shoal.agent.federated.upload import AHEAD
    from shoal.agent.host.hours import parse
    from shoal.agent.host.io import facts, health, pressure
    from shoal.agent.host.io import folder as names
    from shoal.agent.host.io.memory_headroom import Room
    from shoal.agent.host.ports import HostPorts
    from shoal.agent.identity.io.renewal import session_name
    from shoal.agent.installed.io.journal import SqliteJournal
    from shoal.agent.installed.io.slots import DiskSlots
    from shoal.agent.loop import Agent, Trouble
    from shoal.agent.offline.io import cache
    from shoal.agent.serving.io.runtime import OrtLoader
    from shoal.agent.serving.io.session_cache import SessionCache
    from shoal.agent.serving.io.session_reports import SessionReportReader
    from shoal.agent.telemetry.io.outbox_store import SqliteOutbox
    from shoal.agent.telemetry.ports import ReporterPorts
    from shoal.agent.telemetry.reporter import Identity
    from shoal.agent.update.download_window import Pace
    from shoal.agent.update.io import download, probe
    from shoal.agent.update.ports import UpdatePorts
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
        facts=known | near.facts | facts_of(settings),
        version=facts.version_of("shoal"),
    )
    slots = DiskSlots(folder / names.MODELS)

    def stage(model: str) -> Path:
        return slots.path(model, "stage")

    network = download.HttpsDownloads(
        ca=folder / names.CA,
        artifacts=settings.controller.artifacts,
        stage=stage,
        max_kbps=settings.update.max_kbps,
        monotonic=time.monotonic,
        sleep=time.sleep,
    )
    downloads = cache.CachedDownloads(
        near.downloads(network, stage), cache.OfflineCache(folder), stage, time.monotonic
    )
    session_cache = SessionCache(folder / names.CACHE, facts.read_facts, slots.present)
    chance = random.SystemRandom()
    load = pressure.PressureSampler(time.monotonic)
    link = Link(
        url=settings.controller.broker,
        client_id=device.name,
        session=session_name(folder, device.name),
        ca=folder / names.CA,
        certificate=folder / names.CERTIFICATE,
        key=folder / names.KEY,
        subscriptions=[topics.all_down(device.name), topics.BUDGET],
        random=chance,
    )
    host = HostPorts(
        wall=time.time,
        monotonic=time.monotonic,
        timer=time.perf_counter,
        random=chance,
        spawn=spawn,
        lock=threading.Lock,
        health=health.HealthSampler(folder, time.monotonic, load),
        load=load,
        disciplined=_TIMESYNC.exists,
    )
    journal = SqliteJournal(folder / names.JOURNAL)
    outbox = SqliteOutbox(
        folder / names.OUTBOX,
        limit_bytes=int(settings.outbox.limit_mb * 2**20),
        boot_name=lambda: secrets.token_hex(8),
    )
    updates = UpdatePorts(
        journal=journal,
        slots=slots,
        downloads=downloads,
        images=ImageRepository(
            folder / names.METADATA, names.read_trusted(folder, names.ROOT), downloads.metadata
        ),
        loader=OrtLoader(slots.path, session_cache),
        prober=probe.SubprocessProber(slots.path, dict(os.environ), Room()),
        spawn=spawn,
        random=chance,
        sessions=SessionReportReader(folder / names.SPOOL),
    )
    rounds = learning_of(folder, settings, host, journal, lambda: link.unacked < AHEAD)
    pace = Pace(observe_s=settings.update.observe_s, hours=parse(settings.update.hours))
    director_root = names.read_trusted(folder, names.DIRECTOR)
    agent = Agent(
        identity,
        host,
        updates=updates,
        reporter=ReporterPorts(link, outbox, chance),
        rounds=rounds,
        director_root=director_root,
        pace=pace,
    )
    near.named = lambda: agent.updates.peers
    near.generations = lambda: agent.updates.generations
    near.fault = lambda fault: agent.post(Trouble(fault))
    return Core(agent, link, journal, outbox, rounds[1] if rounds else None)


def learning_of(
    folder: Path,
    settings: "Settings",
    host: "HostPorts",
    journal: "RoundJournal",
    room: "Callable[[], bool]",
) -> "tuple[ClientPorts, FederatedPorts] | None":
    """What federated rounds need; None, and it is logged, where the disk does not let it be."""
    import secrets
    import time

    from shoal.agent.federated.client import ClientPorts
    from shoal.agent.federated.io.credentials import credentials_of
    from shoal.agent.federated.io.gateway import SiteUpdateServer, hand_over
    from shoal.agent.federated.io.row_buffer import open_buffer
    from shoal.agent.federated.io.sandbox import DiskSandbox, rounds_folder
    from shoal.agent.federated.io.trainer_process import SubprocessTrainer
    from shoal.agent.federated.ports import FederatedPorts
    from shoal.agent.host.io import folder as names
    from shoal.agent.host.io.power import on_mains
    from shoal.agent.update.io import download
    from shoal.errors import StorageError
    from shoal.trust import ImageRepository

    here, wanted = folder / names.LEARNING, settings.learning
    downloads = download.HttpsDownloads(
        ca=folder / names.CA,
        artifacts=settings.controller.artifacts,
        stage=lambda attempt: rounds_folder(here, attempt),
        max_kbps=settings.update.max_kbps,
        monotonic=time.monotonic,
        sleep=time.sleep,
    )
    try:
        rows = open_buffer(here, wanted)
    except StorageError as error:
        logging.getLogger(__name__).warning("no part in rounds: %s", error)
        return None
    root = names.read_trusted(folder, names.ROOT)
    shared = ClientPorts(journal, host.spawn, host.monotonic, host.random, host.load)
    return shared, FederatedPorts(
        rows=rows,
        images=ImageRepository(here / names.METADATA, root, downloads.metadata),
        sandbox=DiskSandbox(here, downloads),
        trainer=SubprocessTrainer(
            here, dict(os.environ), memory_mb=wanted.memory_mb, cpu_s=wanted.cpu_s
        ),
        credentials=credentials_of(folder, time.time),
        entropy=secrets.token_bytes,
        mains=on_mains,
        limits=wanted.limits(),
        quiet_hz=wanted.quiet_hz,
        link_ready=room,
        collector=SiteUpdateServer(folder, here, settings.gateway)
        if settings.gateway.enabled
        else None,
        hand_over=lambda way, attempt, data: hand_over(folder, way, attempt, data, time.time()),
    )


def exchange_of(
    folder: Path, agent: "Agent", journal: "UpdateJournal", outbox: "Outbox"
) -> "OfflineExchange":
    """Imports and exports of offline bundles."""
    from shoal import topics
    from shoal.agent.loop import Heard, Rooted
    from shoal.agent.offline.io.exchange import Callbacks, OfflineExchange

    device = agent.identity.device
    callbacks = Callbacks(
        on_message=lambda it: agent.post(Heard(topics.down(device, it.kind), it.payload)),
        on_root=lambda root: agent.post(Rooted(root)),
        fault=agent.voice.fault,
        settled=lambda: agent.updates.settled,
        inventory=agent.inventory,
    )
    return OfflineExchange(
        folder, device, journal=journal, outbox=outbox, callbacks=callbacks, clock=agent.clock
    )


def feeds_of(
    folder: Path, settings: "Settings", agent: "Agent", rounds: "FederatedPorts | None"
) -> "Feeds":
    """The sources and sinks that agent.toml names, not started yet."""
    import random
    import time

    import msgspec

    from shoal.agent.feeds.io.runner import Feeds, World
    from shoal.agent.loop import Trouble

    short = {"source": msgspec.structs.asdict(settings.source)} if settings.source else {}
    world = World(
        folder=folder,
        serving=lambda: agent.serving,
        fault=lambda fault: agent.post(Trouble(fault)),
        wall=time.time,
        monotonic=time.monotonic,
        random=random.SystemRandom(),
        rate=lambda: agent.throttling.rate,
        keep=keeping(settings, rounds).labelled,
    )
    return Feeds(short | settings.sources, settings.sinks, world)


def keeping(settings: "Settings", own: "FederatedPorts | None") -> "Keeping":
    """What keeps rows to learn from, as far as the settings ask for it."""
    from shoal.agent.federated.io.row_buffer import Buffer
    from shoal.agent.federated.io.row_collection import Keeping

    rows = own.rows if own is not None and settings.learning.enabled else None
    return Keeping(rows if isinstance(rows, Buffer) else None, settings.learning.keep)


def upkeep_of(folder: Path, settings: "Settings", agent: "Agent") -> "Upkeep":
    """What renews the certificate, not started yet."""
    import random

    from shoal.agent.loop import Rooted, Trouble
    from shoal.agent.upkeep import Upkeep

    return Upkeep(
        folder,
        settings.controller.url,
        settings.device.name,
        clock=agent.clock,
        random=random.SystemRandom(),
        fault=lambda fault: agent.post(Trouble(fault)),
        rooted=lambda root: agent.post(Rooted(root)),
    )
