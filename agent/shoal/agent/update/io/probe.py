"""The probe: run a release in a separate process (io/trial.py) before it may serve."""

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
from shoal.agent.host.io.child_process import memory_file
from shoal.agent.installed.record import Slot
from shoal.agent.serving.io.session import ENVIRONMENT
from shoal.agent.update.acceptance import Measured
from shoal.agent.update.io.trial import Request, TrialResult
from shoal.errors import ModelError
from shoal.profile import Profile
from shoal.sketch import F32
from shoal.validation_errors import decode_errors_as

_log = logging.getLogger(__name__)

#: Seconds: longest duration of a probe; between two checks.
LONGEST_S, _POLL_S = 180.0, 0.2
_DATA_MB = 512


class Trial:
    """The child process of one probe: it loads its libraries, then waits for its Request.

    The Request is in a memory file that both processes have open; a byte on standard input signals
    it. The child exits when its standard input is closed, as it is when this process ends.
    """

    def __init__(self, rss_mb: int, environment: dict[str, str]) -> None:
        self._request = memory_file()
        limits = [str(os.getpid()), str(2 * rss_mb + _DATA_MB), str(self._request.fileno())]
        self._child = subprocess.Popen(
            [sys.executable, "-m", "shoal.agent.update.io.trial", *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            pass_fds=[self._request.fileno()],
            env=environment | ENVIRONMENT,
        )

    @property
    def alive(self) -> bool:
        """Whether the child is alive."""
        return self._child.poll() is None

    def run(self, request: bytes, stop: Callable[[], bool]) -> tuple[bytes, int]:
        """Its output and exit status; it is killed when stopped or after LONGEST_S."""
        assert self._child.stdin is not None
        with self._request, self._child:
            self._request.write(request)
            self._request.seek(0)
            with contextlib.suppress(BrokenPipeError):  # it has died: see its status
                self._child.stdin.write(b"!")
            return _wait(self._child, stop)

    def end(self) -> None:
        """Kill it."""
        with self._request, self._child:
            self._child.kill()


class SubprocessProber:
    """Runs probes with resource limits.

    folder     model, slot -> folder of its files
    headroom   MB of memory that one more process may use
    """

    def __init__(
        self,
        folder: Callable[[str, str], Path],
        environment: dict[str, str],
        headroom: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self._folder, self._environment, self._headroom = folder, environment, headroom
        self._lock = threading.Lock()
        self._ready: Trial | None = None

    def prepare(self, profile: Profile) -> None:
        """Start the next probe's process now, if its memory limit fits into the headroom."""
        with self._lock:
            if self._ready is None and self._headroom() >= profile.budget.rss_mb:
                try:
                    self._ready = Trial(profile.budget.rss_mb, self._environment)
                except OSError as error:
                    _log.info("the probe's process is started later: %s", error)

    def dismiss(self) -> None:
        """End the waiting process, if there is one."""
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
        """Measurements of every variant for `profile`; ModelError when the child crashed."""
        folder = self._folder(model, slot)
        manifest = bundle.read_manifest(folder)
        shadow = recent is not None and beside is not None and manifest.takes_rows
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
        output, status = trial.run(msgspec.msgpack.encode(request), stop)
        return _parse(output, status, profile)

    def _take(self, rss_mb: int) -> Trial:
        """The waiting process, or a new one if that has died: the release did not cause it."""
        with self._lock:
            ready, self._ready = self._ready, None
        if ready is not None and ready.alive:
            return ready
        if ready is not None:
            ready.end()
        return Trial(rss_mb, self._environment)


def _wait(child: "subprocess.Popen[bytes]", stop: Callable[[], bool]) -> tuple[bytes, int]:
    """The child's output and exit status; it is killed when stopped or after LONGEST_S."""
    for _ in range(int(LONGEST_S / _POLL_S)):
        if stop():
            break
        try:
            output, _ = child.communicate(timeout=_POLL_S)
            return output, child.returncode
        except subprocess.TimeoutExpired:
            pass
    child.kill()
    child.communicate()
    return b"", -signal.SIGXCPU


def _parse(output: bytes, status: int, profile: Profile) -> list[Measured]:
    if status < 0:
        died = signal.Signals(-status)
        if died in (signal.SIGXCPU, signal.SIGALRM):
            raise SlowError(f"the probe was not done after {LONGEST_S:g} s")
        if died is signal.SIGKILL:
            raise BigError("the probe was killed: out of memory")
        raise ModelError(f"the probe died of {died.name}: this model crashes onnxruntime here")
    with decode_errors_as(lambda _: ModelError(f"the probe ended with status {status}, no result")):
        result = msgspec.json.decode(output, type=TrialResult)
    if result.error == "memory":
        raise BigError(
            f"out of memory in the probe; {profile.name} allows {profile.budget.rss_mb} MB"
        )
    if result.error:
        raise ModelError(result.error)
    return result.measured


class SlowError(ModelError):
    """A model that is not done in time."""

    code = "too-slow"


class BigError(ModelError):
    """A model that needs too much memory."""

    code = "too-big"
