"""The probe: a release tried in a process of its own (io/trial.py) before it may serve."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from shoal import bundle
from shoal.agent.io.memory_file import memory_file
from shoal.agent.io.session import ENVIRONMENT
from shoal.agent.io.trial import Answer, Request
from shoal.agent.probation import Measured
from shoal.agent.update import Slot
from shoal.errors import ModelError
from shoal.profile import Profile
from shoal.sketch import F32

#: Seconds that a probe may take in all; between two looks.
LONGEST_S, _LOOK_S = 180.0, 0.2
_DATA_MB = 512


class SubprocessProber:
    """Runs the probe with limits of its own.

    folder   model, slot -> where its files are
    """

    def __init__(self, folder: Callable[[str, str], Path], environment: dict[str, str]) -> None:
        self._folder, self._environment = folder, environment

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
        said, status = self._run(msgspec.msgpack.encode(request), profile.budget.rss_mb, stop)
        return _understood(said, status, profile)

    def _run(self, request: bytes, rss_mb: int, stop: Callable[[], bool]) -> tuple[bytes, int]:
        command = [sys.executable, "-m", "shoal.agent.io.trial", str(2 * rss_mb + _DATA_MB)]
        with (
            memory_file(request) as asked,
            subprocess.Popen(
                command,
                stdin=asked,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self._environment | ENVIRONMENT,
            ) as child,
        ):
            return _watched(child, stop)


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
