"""A budget of messages and bytes a second for each device, so that none keeps the others waiting.

A message takes seconds of its device's budget: those in which as many messages, or as many bytes,
are allowed, whichever is longer. A device earns a second in each second, and saves some up for the
backlog after an outage. What is refused is not lost for a device that keeps its messages until they
are acknowledged: it is not acknowledged, and comes again.

Source: the token bucket, as in RFC 2697, with one bucket for both rates.
"""

from collections.abc import Callable
from typing import NamedTuple

#: Seconds of budget that a device saves up while it is quiet.
SAVED_S = 10.0
#: Seconds of budget by which refused messages exceed it before the device is cut off. An agent has
#: 64 messages in flight and sends them again after 30 s: it never gets there.
CUT_AFTER_S = 20.0
#: Accounts beyond which those of quiet devices are dropped.
_MANY = 4_096


class Rates(NamedTuple):
    """What one device may send: messages and bytes a second."""

    messages_s: float
    bytes_s: float


class Excess(NamedTuple):
    """What was refused of one device since the last report.

    cut   whether it went on so far beyond its budget that it is to be cut off
    """

    device: str
    messages: int
    bytes: int
    cut: bool


class _Account:
    __slots__ = ("at_s", "bytes", "cut", "left_s", "messages", "over_s")

    def __init__(self, now_s: float) -> None:
        self.at_s, self.left_s, self.over_s = now_s, SAVED_S, 0.0
        self.messages, self.bytes, self.cut = 0, 0, False


class MessageBudgets:
    """Accounts of the devices that were heard of lately.

    >>> now = 0.0
    >>> budgets = MessageBudgets(Rates(messages_s=2.0, bytes_s=1e6), lambda: now)
    >>> sum(budgets.admit("cam-1", 100) for _ in range(50)), budgets.admit("cam-2", 100)
    (20, True)
    >>> budgets.take_excess()
    [Excess(device='cam-1', messages=30, bytes=3000, cut=False)]
    >>> now = 1.0
    >>> [budgets.admit("cam-1", 100) for _ in range(3)]
    [True, True, False]

    monotonic   seconds
    to_cut      a device is to be cut off, and was not reported yet
    """

    def __init__(self, rates: Rates, monotonic: Callable[[], float]) -> None:
        self._rates, self._monotonic = rates, monotonic
        self._accounts: dict[str, _Account] = {}
        self._exceeded: set[str] = set()
        self.to_cut = False

    def admit(self, device: str, size: int) -> bool:
        """Whether the device may send this message of `size` bytes; else it is counted."""
        account, cost_s = self._account(device), self._cost_s(size)
        if account.left_s >= cost_s:
            account.left_s -= cost_s
            return True
        self._count(device, account, size, cost_s)
        return False

    def refuse(self, device: str, size: int, *, garbage: bool) -> None:
        """Count a message that was refused for another reason than its device's budget."""
        cost_s = 2 * self._cost_s(size) if garbage else 0.0
        self._count(device, self._account(device), size, cost_s)

    def charge(self, device: str, size: int) -> None:
        """Take the price of a message again: it was garbage, which counts double."""
        account = self._account(device)
        account.left_s = max(0.0, account.left_s - self._cost_s(size))

    def take_excess(self) -> list[Excess]:
        """What was refused since the last call, the most messages first."""
        found = []
        for device in self._exceeded:
            account = self._accounts[device]
            found.append(Excess(device, account.messages, account.bytes, account.cut))
            account.messages, account.bytes = 0, 0
            if account.cut:
                account.cut, account.over_s = False, 0.0
        self._exceeded.clear()
        self.to_cut = False
        self._drop_quiet()
        return sorted(found, key=lambda one: -one.messages)

    def _count(self, device: str, account: _Account, size: int, cost_s: float) -> None:
        account.messages += 1
        account.bytes += size
        account.over_s += cost_s
        if account.over_s >= CUT_AFTER_S:
            account.cut = self.to_cut = True
        self._exceeded.add(device)

    def _cost_s(self, size: int) -> float:
        return max(1.0 / self._rates.messages_s, size / self._rates.bytes_s)

    def _account(self, device: str) -> _Account:
        now_s = self._monotonic()
        account = self._accounts.get(device)
        if account is None:
            account = self._accounts[device] = _Account(now_s)
        passed_s = max(0.0, now_s - account.at_s)
        account.left_s = min(SAVED_S, account.left_s + passed_s)
        account.over_s = max(0.0, account.over_s - passed_s)
        account.at_s = now_s
        return account

    def _drop_quiet(self) -> None:
        if len(self._accounts) <= _MANY:
            return
        before_s = self._monotonic() - SAVED_S - CUT_AFTER_S
        self._accounts = {name: one for name, one in self._accounts.items() if one.at_s > before_s}
