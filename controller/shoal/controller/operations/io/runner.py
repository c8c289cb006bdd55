"""Long work in a process of its own, one at a time, that can be ended at any moment.

It may be somebody else's model that never comes to an end (a Loop without one, inside native
code), so nothing is asked of it: the process and all it has started are killed. Where it got to
is of no use to anybody, for a release is written by its last step.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from shoal.controller.host.context import Context
from shoal.controller.host.io.files import private_folder
from shoal.controller.host.io.lifetime import die_with_parent
from shoal.controller.operations import operations

#: How much of a dead operation's log is told.
TAIL_BYTES = 1_500
#: Unless the operator says otherwise. On a busy machine a second BLAS thread makes small matrices
#: six times slower: the two wait for each other, spinning.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class OperationRunner:
    """Does what waits, one after the other; one that dies is told of, with its log."""

    def __init__(self, ctx: Context, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._ctx, self._monotonic = ctx, monotonic
        self._ident, self._since = "", 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._began = self._late = False

    def step(self) -> None:
        """Start what waits, end what shall end, and tell of what has ended."""
        if not self._began:
            self._began = True
            self._bury_orphans()
        if self._process is not None:
            self._watch(self._process)
        if self._process is None:
            waiting = operations.list_operations(self._ctx, state=operations.QUEUED, limit=1)
            claimed = operations.claim_next(self._ctx) if waiting else None
            if claimed is not None:
                self._start(claimed.id)

    def stop(self) -> None:
        """End what runs; it is started anew by nobody, and told of at the next start."""
        if self._process is not None and self._process.poll() is None:
            _kill(self._process)
            self._process.wait()
        self._sweep()

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        code = process.poll()
        if code is not None:
            self._end(code)
            return
        one = operations.get_operation(self._ctx, self._ident)
        self._late = 0 < one.limit_s < self._monotonic() - self._since
        if one.canceled_by or self._late:
            _kill(process)

    def _start(self, ident: str) -> None:
        self._ident, self._since, self._late = ident, self._monotonic(), False
        argv = [sys.executable, "-m", "shoal.controller", "operation", ident]
        self._log_path().parent.mkdir(exist_ok=True)
        private_folder(self._scratch())
        with self._log_path().open("wb") as log:
            self._process = subprocess.Popen(
                [*argv, "--folder", str(self._ctx.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_ONE_THREAD | os.environ | {"TMPDIR": str(self._scratch())},
                preexec_fn=die_with_parent,
                start_new_session=True,
            )

    def _end(self, code: int) -> None:
        ident, self._process = self._ident, None
        self._sweep()
        one = operations.get_operation(self._ctx, ident)
        if one.state in operations.ENDED:
            return
        if one.canceled_by:
            operations.end_canceled(self._ctx, ident)
            return
        why = f"ended with {code}" if code >= 0 else f"was killed by signal {-code}"
        error = f"the work {why}: {_tail(self._log_path())}".strip(": ")
        operations.finish(self._ctx, ident, error=_too_long(one.limit_s) if self._late else error)

    def _bury_orphans(self) -> None:
        """What ran when the engine ended has ended with it."""
        shutil.rmtree(self._ctx.folder / "work", ignore_errors=True)
        for one in operations.list_operations(self._ctx, state=operations.RUNNING):
            if one.canceled_by:
                operations.end_canceled(self._ctx, one.id)
                continue
            operations.finish(
                self._ctx, one.id, error="the controller was restarted meanwhile; start it again"
            )

    def _sweep(self) -> None:
        """Take away the files that it left, having been killed."""
        if self._ident:
            shutil.rmtree(self._scratch(), ignore_errors=True)

    def _scratch(self) -> Path:
        return self._ctx.folder / "work" / self._ident

    def _log_path(self) -> Path:
        return self._ctx.folder / "log" / f"{self._ident}.log"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The process and what it has started: it leads a session of its own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _too_long(limit_s: float) -> str:
    return (
        f"it was ended after {limit_s:g} s, the most that it may take; a model with a loop that "
        "never ends can do nothing here, and for one that is just slow raise limit_s under "
        "[operations] in controller.toml"
    )


def _tail(path: Path) -> str:
    try:
        return path.read_bytes()[-TAIL_BYTES:].decode(errors="replace").strip()
    except OSError:
        return ""
