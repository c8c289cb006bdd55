"""End of a process: stop signals, and (Linux) the death of its parent."""

import ctypes
import os
import signal
import threading

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM at the parent's death, even by kill -9; in the child, before exec.

    It may arrive several times: once per thread of the parent.
    """
    try:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    except (OSError, AttributeError):
        pass


def stop_event() -> threading.Event:
    """An event that SIGTERM and SIGINT set; call in the main thread.

    Through a pipe and a thread: a handler that sets the event itself may interrupt the holder of
    the event's lock, such as an earlier handler, and deadlock.
    """
    stopping = threading.Event()
    read_end, write_end = os.pipe()

    def wait() -> None:
        os.read(read_end, 1)
        stopping.set()

    threading.Thread(target=wait, name="stop-event", daemon=True).start()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: os.write(write_end, b"."))
    return stopping
