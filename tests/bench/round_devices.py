"""`python -m bench.round_devices FOLDER...`: the agents of these folders, all in one process.

Each is built as `shoal-agent run` builds it, with a journal, outbox, trust, link and learning of
its own. For 200 of them to fit three things are shared: the control loop's thread, the threads that
jobs run on, and the process that trains (the trainer's code is the same, without its process).
"""

import concurrent.futures
import contextlib
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from shoal.agent import wiring
from shoal.agent.federated.io import trainer_process
from shoal.agent.federated.trainer import TrainingJob, TrainingResult
from shoal.agent.host.io import config
from shoal.mqtt import Link

#: Made before there are threads: see shoal.federated.config.
_DECODER = msgspec.msgpack.Decoder(TrainingJob)


class TrainerHere:
    """shoal.agent.federated.io.trainer_process.SubprocessTrainer without the process."""

    def __init__(self, folder: Path, environment: dict[str, str], **limits: float) -> None:
        self._folder = folder

    def run(
        self, attempt: bytes, work: TrainingJob, hold: Callable[[], str], stop: Callable[[], bool]
    ) -> TrainingResult:
        copied = _DECODER.decode(msgspec.msgpack.encode(work))
        return trainer_process.run_job(trainer_process.sandboxed(self._folder, attempt, copied))


def main(folders: list[Path]) -> None:
    """Until SIGTERM; prints "ready" once all are connected."""
    trainer_process.SubprocessTrainer = TrainerHere  # type: ignore[assignment,misc]
    ended, news = threading.Event(), threading.Event()
    woken: set[Path] = set()

    def end(*_: object) -> None:
        ended.set()
        news.set()

    signal.signal(signal.SIGTERM, end)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        made: dict[Path, wiring.Core] = {}
        for folder in folders:
            settings = config.load(folder)
            core = wiring.build_core(
                folder,
                settings,
                lambda job: _submit(pool, job),
                functools.partial(_wake, folder, woken, news),
            )
            agent, link = core.agent, core.link
            agent.start()
            link.start(agent.on_message, agent.on_connection, agent.reporter.will)
            _until_connected(link)  # one after the other: a process has one GIL for 100 handshakes
            made[folder] = core
        print("ready", flush=True)
        due = dict.fromkeys(made, 0.0)
        while not ended.is_set():
            news.clear()
            now = time.monotonic()
            for folder in [one for one, at in due.items() if at <= now or one in woken]:
                woken.discard(folder)
                due[folder] = now + made[folder].agent.tick()
            if not woken:
                news.wait(max(0.0, min(due.values()) - time.monotonic()))
        for core in made.values():
            core.link.stop()
    os._exit(0)


def _wake(folder: Path, woken: set[Path], news: threading.Event) -> None:
    woken.add(folder)
    news.set()


def _until_connected(link: Link) -> None:
    end = time.monotonic() + 10
    while not link.connected and time.monotonic() < end:
        time.sleep(0.005)


def _submit(pool: concurrent.futures.Executor, job: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):
        pool.submit(job)


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
