"""How a process of the controller ends: when it is told to, and (Linux) when its parent does."""

import ctypes
import os
import signal
import threading

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM at the parent's death, even by kill -9; in the child, before exec.

    It may come several times: once for each thread of the parent that ends after the one before.
    """
    try:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    except (OSError, AttributeError):
        pass


def until_told() -> threading.Event:
    """An event that SIGTERM and SIGINT set; called in the main thread.

    By a pipe and a thread: a handler that sets it itself may have interrupted whoever holds the
    event's lock, such as the handler of the signal before, and would wait for ever.
    """
    stopping = threading.Event()
    told, tell = os.pipe()

    def wait() -> None:
        os.read(told, 1)
        stopping.set()

    threading.Thread(target=wait, name="until-told", daemon=True).start()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: os.write(tell, b"."))
    return stopping
