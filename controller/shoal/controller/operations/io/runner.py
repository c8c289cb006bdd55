"""Runs operations, one at a time, each in a subprocess that can be killed at any time.

An imported model may never terminate (an endless Loop inside native code), so the process group is
killed, without cooperation. Partial work is not needed: a release is written by the last step.
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

#: Bytes of a failed operation's log that its error quotes.
TAIL_BYTES = 1_500
#: Default of the environment. On a busy machine a second BLAS thread makes small matrices
#: six times slower: the two wait for each other, spinning.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class OperationRunner:
    """Runs queued operations one after the other; a crash is recorded with the end of its log."""

    def __init__(self, ctx: Context, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._ctx, self._monotonic = ctx, monotonic
        self._ident, self._since = "", 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._started = self._late = False

    def step(self) -> None:
        """Start the next operation, kill a canceled or late one, record one that has ended."""
        if not self._started:
            self._started = True
            self._fail_orphans()
        if self._process is not None:
            self._watch(self._process)
        if self._process is None:
            waiting = operations.list_operations(self._ctx, state=operations.QUEUED, limit=1)
            claimed = operations.claim_next(self._ctx) if waiting else None
            if claimed is not None:
                self._start(claimed.id)

    def stop(self) -> None:
        """Kill the running operation; it is recorded as failed at the next start."""
        if self._process is not None and self._process.poll() is None:
            _kill(self._process)
            self._process.wait()
        self._delete_scratch()

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
        operations.log_path(self._ctx, self._ident).parent.mkdir(exist_ok=True)
        private_folder(self._scratch())
        with operations.log_path(self._ctx, self._ident).open("wb") as log:
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
        self._delete_scratch()
        one = operations.get_operation(self._ctx, ident)
        if one.state in operations.ENDED:
            return
        if one.canceled_by:
            operations.end_canceled(self._ctx, ident)
            return
        why = f"ended with {code}" if code >= 0 else f"was killed by signal {-code}"
        error = f"the work {why}: {_tail(operations.log_path(self._ctx, self._ident))}".strip(": ")
        if code == -signal.SIGXCPU:
            error = _too_much_cpu(self._ctx.settings.operations.cpu_s)
        operations.finish(self._ctx, ident, error=_too_long(one.limit_s) if self._late else error)

    def _fail_orphans(self) -> None:
        """Fail operations that ran when the engine ended."""
        shutil.rmtree(self._ctx.folder / "work", ignore_errors=True)
        for one in operations.list_operations(self._ctx, state=operations.RUNNING):
            if one.canceled_by:
                operations.end_canceled(self._ctx, one.id)
                continue
            operations.finish(
                self._ctx, one.id, error="the controller was restarted meanwhile; start it again"
            )

    def _delete_scratch(self) -> None:
        """Delete the scratch files of a killed operation."""
        if self._ident:
            shutil.rmtree(self._scratch(), ignore_errors=True)

    def _scratch(self) -> Path:
        return self._ctx.folder / "work" / self._ident


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process group."""
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


def _too_much_cpu(cpu_s: int) -> str:
    return (
        f"it took more than {cpu_s} s of CPU, the most that an operation may take; use a smaller "
        "model or dataset, or raise cpu_s under [operations] in controller.toml"
    )


def _tail(path: Path) -> str:
    try:
        return path.read_bytes()[-TAIL_BYTES:].decode(errors="replace").strip()
    except OSError:
        return ""
