"""The process of a training script: sets its limits, runs it, and says which line failed.

    python -m shoal.controller.training.io.script_process NAME ENTRY MEMORY_MB CPU_S FILE_MB PARENT

NAME.py is in the working directory; ENTRY is "" to run it as a program, else "function" of it, or
"module:function", called with the folder.
"""

import contextlib
import ctypes
import importlib
import os
import resource
import runpy
import signal
import sys
import traceback
from pathlib import Path

import msgspec

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_OPEN_FILES = 512


def main() -> int:
    """Run the script; 1 with error.json when it fails."""
    name, entry, *numbers = sys.argv[1:]
    memory_mb, cpu_s, file_mb, parent = map(int, numbers)
    _limit(memory_mb, cpu_s, file_mb, parent)
    folder = Path.cwd()
    sys.path.insert(0, str(folder))
    script = folder / f"{name}.py"
    sys.argv = [str(script)]
    try:
        _run(script, entry, folder)
    except SystemExit as error:
        if error.code in (None, 0):
            return 0
        _leave(script, error, f"it ended itself with {error.code!s:.200}")
    except BaseException as error:  # noqa: BLE001 it is the script's, whatever it is
        traceback.print_exc()
        _leave(script, error, f"{type(error).__name__}: {error!s:.500}")
    else:
        return 0
    return 1


def _run(script: Path, entry: str, folder: Path) -> None:
    if not entry:
        runpy.run_path(str(script), run_name="__main__")
        return
    module, _, function = entry.rpartition(":")
    getattr(importlib.import_module(module or script.stem), function)(folder)


def _limit(memory_mb: int, cpu_s: int, file_mb: int, parent: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails instead, with its line
    for what, most in (
        (resource.RLIMIT_DATA, memory_mb << 20),
        (resource.RLIMIT_FSIZE, file_mb << 20),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
    ):
        hard = resource.getrlimit(what)[1]
        value = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (value, value))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 2))
    os.umask(0o077)


def _leave(script: Path, error: BaseException, text: str) -> None:
    """Write error.json: the deepest line of the script that led to `error`."""
    line, code = 0, ""
    if isinstance(error, SyntaxError) and error.filename == str(script):
        line, code = error.lineno or 0, (error.text or "").strip()
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == str(script):
            line, code = frame.lineno or 0, (frame.line or "").strip()
    told = {"error": text, "line": line, "code": code[:120]}
    Path(script.parent, "error.json").write_bytes(msgspec.json.encode(told))


if __name__ == "__main__":
    sys.exit(main())
