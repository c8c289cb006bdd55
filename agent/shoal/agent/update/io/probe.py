"""The probe: a release tried in a process of its own (io/trial.py) before it may serve."""

import contextlib
import logging
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from shoal import bundle
from shoal.agent.host.io.memory_file import memory_file
from shoal.agent.installed.record import Slot
from shoal.agent.serving.io.session import ENVIRONMENT
from shoal.agent.update.acceptance import Measured
from shoal.agent.update.io.trial import Answer, Request
from shoal.errors import ModelError
from shoal.profile import Profile
from shoal.sketch import F32

_log = logging.getLogger(__name__)

#: Seconds that a probe may take in all; between two looks.
LONGEST_S, _LOOK_S = 180.0, 0.2
_DATA_MB = 512


class Trial:
    """The process of one probe: it gets ready, then waits to be told what to try.

    What it is told lies in memory that both have had from the start, and a byte says that it is
    there. Where that never comes, because this process has ended or has no use for it, its standard
    input ends, and so does it.
    """

    def __init__(self, rss_mb: int, environment: dict[str, str]) -> None:
        self._told = memory_file()
        limits = [str(os.getpid()), str(2 * rss_mb + _DATA_MB), str(self._told.fileno())]
        self._child = subprocess.Popen(
            [sys.executable, "-m", "shoal.agent.update.io.trial", *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            pass_fds=[self._told.fileno()],
            env=environment | ENVIRONMENT,
        )

    @property
    def waits(self) -> bool:
        """Whether it is still there."""
        return self._child.poll() is None

    def ask(self, request: bytes, stop: Callable[[], bool]) -> tuple[bytes, int]:
        """What it said and how it ended; killed when taken back or too late."""
        assert self._child.stdin is not None
        with self._told, self._child:
            self._told.write(request)
            self._told.seek(0)
            with contextlib.suppress(BrokenPipeError):  # it has died: how, its status tells
                self._child.stdin.write(b"!")
            return _watched(self._child, stop)

    def end(self) -> None:
        """It is not asked any more."""
        with self._told, self._child:
            self._child.kill()


class SubprocessProber:
    """Runs the probe with limits of its own.

    folder   model, slot -> where its files are
    room     MB of memory that one more process may take here
    """

    def __init__(
        self,
        folder: Callable[[str, str], Path],
        environment: dict[str, str],
        room: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self._folder, self._environment, self._room = folder, environment, room
        self._lock = threading.Lock()
        self._ready: Trial | None = None

    def prepare(self, profile: Profile) -> None:
        """Start the next probe's process now, where there is room for all that it may take."""
        with self._lock:
            if self._ready is None and self._room() >= profile.budget.rss_mb:
                try:
                    self._ready = Trial(profile.budget.rss_mb, self._environment)
                except OSError as error:
                    _log.info("the probe starts when it is needed: %s", error)

    def dismiss(self) -> None:
        """End the process that waits, if one does."""
        with self._lock:
            ready, self._ready = self._ready, None
        if ready is not None:
            ready.end()

    def probe(
        self,
        model: str,
        slot: str,
        profile: Profile,
        recent: F32 | None,
        beside: Slot | None,
        stop: Callable[[], bool],
    ) -> list[Measured]:
        """Measurements of every variant for `profile`; ModelError when the trial died of it."""
        folder = self._folder(model, slot)
        manifest = bundle.read_manifest(folder)
        shadow = recent is not None and beside is not None
        request = Request(
            folder=str(folder),
            variants=manifest.profiles[profile.name],
            session=profile.session,
            p99_ms=profile.budget.p99_ms,
            beside=str(self._folder(model, beside.slot)) if shadow and beside else "",
            beside_variant=beside.variant if shadow and beside else "",
            recent=recent.astype(np.float32).tobytes() if shadow and recent is not None else b"",
        )
        trial = self._take(profile.budget.rss_mb)
        said, status = trial.ask(msgspec.msgpack.encode(request), stop)
        return _understood(said, status, profile)

    def _take(self, rss_mb: int) -> Trial:
        """The process that waits, or a new one: that it has died tells nothing of the release."""
        with self._lock:
            ready, self._ready = self._ready, None
        if ready is not None and ready.waits:
            return ready
        if ready is not None:
            ready.end()
        return Trial(rss_mb, self._environment)


def _watched(child: "subprocess.Popen[bytes]", stop: Callable[[], bool]) -> tuple[bytes, int]:
    """What the child said and how it ended; killed when taken back or too late."""
    for _ in range(int(LONGEST_S / _LOOK_S)):
        if stop():
            break
        try:
            said, _ = child.communicate(timeout=_LOOK_S)
            return said, child.returncode
        except subprocess.TimeoutExpired:
            pass
    child.kill()
    child.communicate()
    return b"", -signal.SIGXCPU


def _understood(said: bytes, status: int, profile: Profile) -> list[Measured]:
    if status < 0:
        died = signal.Signals(-status)
        if died in (signal.SIGXCPU, signal.SIGALRM):
            raise SlowError(f"the probe was not done after {LONGEST_S:g} s")
        if died is signal.SIGKILL:
            raise BigError("the probe was killed: out of memory")
        raise ModelError(f"the probe died of {died.name}: this model crashes onnxruntime here")
    try:
        answer = msgspec.json.decode(said, type=Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ModelError(f"the probe ended with status {status} and no answer") from error
    if answer.error == "memory":
        raise BigError(
            f"out of memory in the probe; {profile.name} allows {profile.budget.rss_mb} MB"
        )
    if answer.error:
        raise ModelError(answer.error)
    return answer.measured


class SlowError(ModelError):
    """A model that does not answer in time."""

    code = "too-slow"


class BigError(ModelError):
    """A model that takes more memory than there is."""

    code = "too-big"
