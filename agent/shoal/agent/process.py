"""The running agent: built by wiring, its threads started, and stopped in order."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import click

from shoal import wire
from shoal.agent import wiring
from shoal.agent.host.faults import Fault
from shoal.agent.host.io import config
from shoal.agent.host.io.folder import ADDRESS, SPOOL, lock
from shoal.agent.host.io.notify import Notifier, Watchdog
from shoal.agent.host.io.threads import ControlThread, Jobs
from shoal.agent.identity.io import renewal
from shoal.agent.serving.io import row_spool
from shoal.agent.serving.io.window_spool import WindowSpool
from shoal.durable import write_durable
from shoal.errors import StorageError

_log = logging.getLogger(__name__)

#: Seconds in which every part ends after a signal, whatever hangs: a source, the broker, a job.
STOP_S = 4.0


def run(folder: Path) -> int:
    """Run the agent in `folder` until SIGTERM or Ctrl-C; exit code."""
    settings = config.load(folder)
    logging.basicConfig(
        level=logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("shoal").setLevel(settings.log_level.upper())
    held = lock(folder)
    try:
        try:
            renewal.complete_renewal(folder)
        except (StorageError, OSError) as error:  # the next start tries again
            _log.warning("the renewal of the certificate is not complete: %s", error)
        return asyncio.run(_serve(folder, settings))
    finally:
        os.close(held)


def number_outbox(folder: Path) -> bytes:
    """Number the outbox of an agent that does not run; its inventory, encoded."""
    core = wiring.build_core(folder, config.load(folder), spawn=lambda job: None)
    core.outbox.number_all()
    slots = [found.active for found in core.journal.records().values() if found.active]
    floors = core.agent.updates.floors.flat()
    return wire.encode(core.agent.reporter.inventory(slots, floors, "", core.peers.facts))


async def _serve(folder: Path, settings: config.Settings) -> int:
    """Start every part; stop them at a signal, or when the control loop fails."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    jobs, notifier, awake = Jobs(), Notifier(os.environ), threading.Event()
    parts = wiring.build(folder, settings, jobs.spawn, awake.set)
    core, agent = parts.core, parts.core.agent
    core.peers.start()  # before the first inventory, which lists the address of the peer server
    address = await parts.endpoint.start()
    try:
        write_durable(folder / ADDRESS, address.encode())
    except StorageError as error:  # only `shoal-agent status` without a Unix socket reads it
        _log.warning("%s", error)

    def quit_process() -> None:
        loop.call_soon_threadsafe(stop.set)

    control = ControlThread(
        begin=lambda: agent.start(address),
        tick=_control_tick(folder, parts, wiring.watchdog(notifier, agent, loop), quit_process),
        end=agent.stop,
        on_failure=quit_process,
        awake=awake,
    )
    control.start()
    await loop.run_in_executor(None, control.begun.wait)
    core.link.start(agent.on_message, agent.on_connection, agent.reporter.will)
    parts.feeds.start()
    parts.upkeep.start()
    click.echo(f"{settings.device.name} serves at {address}", err=True)
    notifier.notify(READY="1", STATUS=f"serves at {address}")
    await stop.wait()

    notifier.notify(STOPPING="1")
    parts.upkeep.finish()
    core.peers.finish()
    end = time.monotonic() + STOP_S

    async def wait(finish: Callable[[float], None], most_s: float = STOP_S) -> None:
        left_s = max(0.0, end - time.monotonic())
        await loop.run_in_executor(None, finish, min(most_s, left_s))

    await wait(parts.feeds.stop, STOP_S / 4)
    await wait(control.finish)  # saves the open windows
    await wait(core.link.stop, STOP_S / 4)
    await wait(jobs.finish)
    await parts.endpoint.stop()
    with contextlib.suppress(OSError):
        (folder / ADDRESS).unlink(missing_ok=True)
    return 1 if control.failed else 0


def _control_tick(
    folder: Path,
    parts: wiring.Process,
    watchdog: Watchdog,
    quit_process: Callable[[], None],
) -> Callable[[], float]:
    """One turn of the control loop: the agent, the watchdog, the link, the spools, offline."""
    core, spool = parts.core, WindowSpool(folder / SPOOL)
    agent = core.agent

    def tick() -> float:
        idle = agent.tick()
        watchdog.tick()
        if core.link.revive():
            agent.on_fault(Fault("link-died", "the broker link's thread ended and was restarted"))
        if agent.reporter.saved:
            spool.take(agent.reporter.add, agent.reporter.fault)
        row_spool.take(folder / SPOOL, parts.rows.given)
        parts.offline.tick()
        if agent.restart_requested:
            quit_process()
        return idle

    return tick
