"""Telling systemd: started, alive, stopping. sd_notify(3), by hand: one datagram each."""

import os
import socket
from collections.abc import Callable, Mapping

from shoal.errors import ShoalError


class Notifier:
    """Speaks to the service manager that started this process, if any did.

    environment   of the process: NOTIFY_SOCKET and WATCHDOG_USEC come from systemd
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        usec = environment.get("WATCHDOG_USEC", "")
        whose = environment.get("WATCHDOG_PID", "")
        ours = whose in ("", str(os.getpid()))
        #: Seconds within which it wants to hear from us; 0 when it does not.
        self.watchdog_s = int(usec) / 1e6 if usec.isdigit() and ours and address else 0.0

    def tell(self, **state: str) -> None:
        """Send "READY=1" for tell(READY="1"). Nothing when nobody listens."""
        if not self._address:
            return
        text = "\n".join(f"{name}={value}" for name, value in state.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as plain:
                plain.sendto(text.encode(), self._address)
        except OSError:
            pass  # a manager that went away must not take us with it


class Watchdog:
    """Feeds the manager's watchdog, each time only after every model has answered a row.

    infer    lets each model that serves answer; ShoalError when one cannot
    answers  asks the endpoint's loop for a sign of life, and says whether it gave the last one
    """

    def __init__(
        self,
        notifier: Notifier,
        *,
        monotonic: Callable[[], float],
        infer: Callable[[], None],
        answers: Callable[[], bool],
    ) -> None:
        self._notifier, self._monotonic = notifier, monotonic
        self._infer, self._answers = infer, answers
        self._every_s, self._due_s = notifier.watchdog_s / 3, 0.0

    def tick(self) -> None:
        """Called by the control loop: that it is, is the third sign of life."""
        now = self._monotonic()
        if not self._every_s or now < self._due_s:
            return
        self._due_s = now + self._every_s
        try:
            self._infer()
        except ShoalError as error:
            self._notifier.tell(STATUS=f"self-inference failed: {error}")
            return
        if self._answers():
            self._notifier.tell(WATCHDOG="1", STATUS="serving")
