"""Build the agent with its real adapters: a builder per domain, put together by `build`."""

import asyncio
import logging
import os
import random
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from shoal import topics
from shoal.agent.federated.io.credentials import credentials_of
from shoal.agent.federated.io.gateway import SiteUpdateServer, facts_of, hand_over
from shoal.agent.federated.io.row_buffer import Buffer, RowCollection, open_buffer
from shoal.agent.federated.io.sandbox import DiskSandbox, rounds_folder
from shoal.agent.federated.io.trainer_process import SubprocessTrainer
from shoal.agent.federated.ports import FederatedPorts, RoundJournal
from shoal.agent.federated.upload import AHEAD
from shoal.agent.feeds.io.runner import FeedPorts, Feeds
from shoal.agent.host.hours import parse
from shoal.agent.host.io import facts, health, pressure
from shoal.agent.host.io import folder as names
from shoal.agent.host.io.config import Settings
from shoal.agent.host.io.notify import Notifier, Watchdog
from shoal.agent.host.io.pressure import MemoryHeadroom, on_mains
from shoal.agent.host.ports import HostPorts
from shoal.agent.identity.io.renewal import session_name
from shoal.agent.installed.io.journal import SqliteJournal
from shoal.agent.installed.io.slots import DiskSlots
from shoal.agent.installed.ports import UpdateJournal
from shoal.agent.loop import Agent, Inbox
from shoal.agent.offline.io.cache import CachedDownloads, OfflineCache
from shoal.agent.offline.io.exchange import Callbacks, OfflineExchange
from shoal.agent.peers.io.network import PeerNetwork
from shoal.agent.peers.policy import PeerDirectory
from shoal.agent.serving.inference import Inference
from shoal.agent.serving.io.endpoint import Endpoint
from shoal.agent.serving.io.runtime import OrtLoader
from shoal.agent.serving.io.session_cache import SessionCache
from shoal.agent.serving.io.session_reports import SessionReportReader
from shoal.agent.serving.routes import Routes
from shoal.agent.status import DeviceStatus
from shoal.agent.telemetry.io.outbox_store import SqliteOutbox
from shoal.agent.telemetry.outbox import Outbox
from shoal.agent.telemetry.reporter import Identity, ReporterPorts
from shoal.agent.update.io.download import HttpsDownloads
from shoal.agent.update.io.probe import SubprocessProber
from shoal.agent.update.ports import UpdatePorts, UpdateSettings
from shoal.agent.upkeep import Upkeep
from shoal.errors import StorageError
from shoal.mqtt import Link
from shoal.profile import detect, profile
from shoal.trust import ImageRepository

_log = logging.getLogger(__name__)

#: Exists once systemd-timesyncd has set the clock, in this boot.
_TIMESYNC = Path("/run/systemd/timesync/synchronized")


class Core(NamedTuple):
    """The agent, and what the rest of the process shares with it."""

    agent: Agent
    journal: UpdateJournal
    outbox: Outbox
    link: Link
    peers: PeerNetwork
    rounds: FederatedPorts | None


class Process(NamedTuple):
    """All that runs in the agent's process, built and not started."""

    core: Core
    feeds: Feeds
    rows: RowCollection
    endpoint: Endpoint
    offline: OfflineExchange
    upkeep: Upkeep


def build(
    folder: Path,
    settings: Settings,
    spawn: Callable[[Callable[[], None]], None],
    wake: Callable[[], None],
) -> Process:
    """Every part of the agent in `folder`.

    spawn   runs a job on a thread of its own
    wake    called when the control loop has work
    """
    core = build_core(folder, settings, spawn, wake)
    agent, rows = core.agent, build_row_collection(settings, core.rounds)
    feeds = build_feeds(folder, settings, agent, rows)
    return Process(
        core=core,
        feeds=feeds,
        rows=rows,
        endpoint=build_serving(folder, settings, agent, feeds, rows, core),
        offline=build_offline(folder, agent, core.journal, core.outbox),
        upkeep=build_upkeep(folder, settings, agent),
    )


def build_core(
    folder: Path,
    settings: Settings,
    spawn: Callable[[Callable[[], None]], None],
    wake: Callable[[], None] = lambda: None,
) -> Core:
    """The agent itself: updates, telemetry, rounds, peers."""
    inbox, host = Inbox(wake), build_host(folder, spawn)
    link, journal = build_link(folder, settings), SqliteJournal(folder / names.JOURNAL)
    outbox = build_outbox(folder, settings)
    peers = PeerNetwork(folder, settings, PeerDirectory(), inbox.on_fault)
    rounds = build_federated(folder, settings, host, journal, link)
    agent = Agent(
        identity_of(settings),
        host,
        updates=build_update(folder, settings, host, journal, peers),
        reporter=ReporterPorts(link, outbox, host.random),
        rounds=rounds,
        director_root=names.read_trusted(folder, names.DIRECTOR),
        settings=UpdateSettings(settings.update.observe_s, parse(settings.update.hours)),
        inbox=inbox,
        facts=lambda: peers.facts,
    )
    return Core(agent, journal, outbox, link, peers, rounds)


def identity_of(settings: Settings) -> Identity:
    """What the device reports of itself."""
    device, found = settings.device, facts.read_facts()
    return Identity(
        device=device.name,
        site=device.site,
        ring=device.ring,
        profile=profile(device.profile) if device.profile else detect(found),
        line=device.line,
        labels=device.labels,
        facts=found | facts_of(settings),
        version=facts.version_of("shoal"),
    )


def build_host(folder: Path, spawn: Callable[[Callable[[], None]], None]) -> HostPorts:
    """Clocks, randomness, threads and sensors of this machine."""
    load = pressure.PressureSampler(time.monotonic)
    return HostPorts(
        wall=time.time,
        monotonic=time.monotonic,
        timer=time.perf_counter,
        random=random.SystemRandom(),
        spawn=spawn,
        lock=threading.Lock,
        health=health.HealthSampler(folder, time.monotonic, load, MemoryHeadroom()),
        load=load,
        disciplined=_TIMESYNC.exists,
    )


def build_link(folder: Path, settings: Settings) -> Link:
    """The connection to the broker."""
    name = settings.device.name
    return Link(
        url=settings.controller.broker,
        client_id=name,
        session=session_name(folder, name),
        ca=folder / names.CA,
        certificate=folder / names.CERTIFICATE,
        key=folder / names.KEY,
        subscriptions=[topics.all_down(name), topics.BUDGET],
        random=random.SystemRandom(),
    )


def build_outbox(folder: Path, settings: Settings) -> SqliteOutbox:
    """The durable queue of messages to the controller."""
    return SqliteOutbox(
        folder / names.OUTBOX,
        limit_bytes=int(settings.outbox.limit_mb * 2**20),
        boot_name=lambda: secrets.token_hex(8),
    )


def build_downloads(
    folder: Path, settings: Settings, stage: Callable[[str], Path]
) -> HttpsDownloads:
    """Downloads from the artifact server into the folders that `stage` names."""
    return HttpsDownloads(
        ca=folder / names.CA,
        artifacts=settings.controller.artifacts,
        stage=stage,
        max_kbps=settings.update.max_kbps,
        monotonic=time.monotonic,
        sleep=time.sleep,
    )


def build_update(
    folder: Path,
    settings: Settings,
    host: HostPorts,
    journal: UpdateJournal,
    peers: PeerNetwork,
) -> UpdatePorts:
    """Updates: files come from the offline cache, else a peer, else the artifact server."""
    slots = DiskSlots(folder / names.MODELS)

    def stage(model: str) -> Path:
        return slots.path(model, "stage")

    network = peers.downloads(build_downloads(folder, settings, stage), stage)
    downloads = CachedDownloads(network, OfflineCache(folder), stage, time.monotonic)
    root = names.read_trusted(folder, names.ROOT)
    cache = SessionCache(folder / names.CACHE, facts.read_facts, slots.present)
    headroom = MemoryHeadroom()
    return UpdatePorts(
        journal=journal,
        slots=slots,
        downloads=downloads,
        images=ImageRepository(folder / names.METADATA, root, downloads.metadata, threading.Lock()),
        loader=OrtLoader(slots.path, cache),
        prober=SubprocessProber(slots.path, dict(os.environ), headroom),
        spawn=host.spawn,
        random=host.random,
        sessions=SessionReportReader(folder / names.SPOOL),
        peers=peers.directory,
        headroom=headroom,
    )


def build_federated(
    folder: Path, settings: Settings, host: HostPorts, journal: RoundJournal, link: Link
) -> FederatedPorts | None:
    """Federated rounds; None, and a warning in the log, where the disk refuses the row buffer."""
    here, wanted = folder / names.LEARNING, settings.learning
    downloads = build_downloads(folder, settings, lambda attempt: rounds_folder(here, attempt))
    try:
        rows = open_buffer(here, wanted)
    except StorageError as error:
        _log.warning("no part in rounds: %s", error)
        return None
    root = names.read_trusted(folder, names.ROOT)
    server = SiteUpdateServer(folder, here, settings.gateway) if settings.gateway.enabled else None
    return FederatedPorts(
        journal=journal,
        spawn=host.spawn,
        monotonic=host.monotonic,
        random=host.random,
        load=host.load,
        rows=rows,
        images=ImageRepository(here / names.METADATA, root, downloads.metadata, threading.Lock()),
        sandbox=DiskSandbox(here, downloads),
        trainer=SubprocessTrainer(
            here, dict(os.environ), memory_mb=wanted.memory_mb, cpu_s=wanted.cpu_s
        ),
        credentials=credentials_of(folder, time.time),
        entropy=secrets.token_bytes,
        mains=on_mains,
        limits=wanted.limits(),
        quiet_hz=wanted.quiet_hz,
        link_ready=lambda: link.unacked < AHEAD,
        collector=server,
        hand_over=lambda way, attempt, data: hand_over(folder, way, attempt, data, time.time()),
    )


def build_row_collection(settings: Settings, rounds: FederatedPorts | None) -> RowCollection:
    """Collection of rows to train on, as far as agent.toml allows it."""
    rows = rounds.rows if rounds is not None and settings.learning.enabled else None
    return RowCollection(rows if isinstance(rows, Buffer) else None, settings.learning.keep)


def build_feeds(folder: Path, settings: Settings, agent: Agent, rows: RowCollection) -> Feeds:
    """The sources and sinks of agent.toml."""
    ports = FeedPorts(
        folder=folder,
        serving=lambda: agent.serving,
        fault=agent.on_fault,
        wall=time.time,
        monotonic=time.monotonic,
        random=random.SystemRandom(),
        rate=lambda: agent.throttling.rate,
        collect=rows.labelled,
    )
    return Feeds(settings.all_sources(), settings.sinks, ports)


def build_serving(
    folder: Path,
    settings: Settings,
    agent: Agent,
    feeds: Feeds,
    rows: RowCollection,
    core: Core,
) -> Endpoint:
    """The local inference endpoint, with the status page."""

    def status() -> DeviceStatus:
        return agent.status(feeds.health(), core.peers.status_line, core.link.fault)

    def page() -> str:
        from shoal.agent.status_page import page  # loaded when the page is first opened

        return page(status())

    routes = Routes(
        agent.serving,
        status=lambda: msgspec.json.encode(status()),
        page=page,
        version=agent.identity.version,
        pushes=feeds.pushes,
        loading=lambda: not agent.started,
    )
    return Endpoint(
        Inference(routes, rows.served),
        host=settings.endpoint.host,
        port=settings.endpoint.port,
        socket=folder / names.SOCKET if settings.endpoint.socket else None,
    )


def build_offline(
    folder: Path, agent: Agent, journal: UpdateJournal, outbox: Outbox
) -> OfflineExchange:
    """Imports and exports of offline bundles."""
    device = agent.identity.device
    callbacks = Callbacks(
        on_message=lambda it: agent.on_message(topics.down(device, it.kind), it.payload),
        on_root=agent.on_director_root,
        fault=agent.reporter.fault,
        settled=lambda: agent.updates.settled,
        inventory=agent.inventory,
    )
    return OfflineExchange(
        folder, device, journal=journal, outbox=outbox, callbacks=callbacks, clock=agent.clock
    )


def build_upkeep(folder: Path, settings: Settings, agent: Agent) -> Upkeep:
    """Renewal of the certificate and of the director's root."""
    return Upkeep(
        folder,
        settings.controller.url,
        settings.device.name,
        clock=agent.clock,
        random=random.SystemRandom(),
        on_fault=agent.on_fault,
        on_root=agent.on_director_root,
    )


def watchdog(notifier: Notifier, agent: Agent, loop: asyncio.AbstractEventLoop) -> Watchdog:
    """systemd's watchdog: notified while every model infers and both loops turn."""
    turned = threading.Event()
    turned.set()

    def infer() -> None:
        for serving in list(agent.serving.values()):
            serving.self_test()

    def answers() -> bool:
        answered = turned.is_set()
        turned.clear()
        loop.call_soon_threadsafe(turned.set)
        return answered

    return Watchdog(notifier, monotonic=time.monotonic, infer=infer, answers=answers)
