"""sd_notify(3): report started, alive and stopping to systemd, one datagram each."""

import os
import socket
from collections.abc import Callable, Mapping

from shoal.errors import ShoalError


class Notifier:
    """Notifies the service manager, if one started this process.

    environment   of the process: NOTIFY_SOCKET and WATCHDOG_USEC come from systemd
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        usec = environment.get("WATCHDOG_USEC", "")
        pid = environment.get("WATCHDOG_PID", "")
        ours = pid in ("", str(os.getpid()))
        #: Timeout of the watchdog in seconds; 0 without one.
        self.watchdog_s = int(usec) / 1e6 if usec.isdigit() and ours and address else 0.0

    def notify(self, **state: str) -> None:
        """Send "READY=1" for notify(READY="1"); without a service manager nothing is sent."""
        if not self._address:
            return
        text = "\n".join(f"{name}={value}" for name, value in state.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as plain:
                plain.sendto(text.encode(), self._address)
        except OSError:
            pass  # a service manager that is gone must not end the agent


class Watchdog:
    """Feeds systemd's watchdog, each time only after every model has inferred a row.

    infer    runs each serving model; ShoalError when one fails
    answers  schedules a call on the endpoint's loop; whether the previous one has run
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
        """Called by the control loop, whose liveness this proves."""
        now = self._monotonic()
        if not self._every_s or now < self._due_s:
            return
        self._due_s = now + self._every_s
        try:
            self._infer()
        except ShoalError as error:
            self._notifier.notify(STATUS=f"self-inference failed: {error}")
            return
        if self._answers():
            self._notifier.notify(WATCHDOG="1", STATUS="serving")
