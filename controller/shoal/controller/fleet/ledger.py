"""What arrived of a device's outbox, for whoever asks whether anything was lost."""

from typing import NamedTuple

from shoal.controller.store.records import Record


class Ledger(Record, frozen=True, kw_only=True):
    """What arrived of one device's outbox in one boot: missing is 0 when nothing is on its way.

    received   distinct sequence numbers in the database; highest the largest of them
    missing    numbers between them, and below them where nothing was dropped for its age yet
    jumps      places where more numbers are left out than any outbox holds: they are not missing,
               they never were (a fault of the device, or a forgery)
    """

    device: str
    boot: str
    received: int
    highest: int
    missing: int
    windows: int
    rows: int
    first_at: float
    last_at: float
    jumps: int = 0


#: No outbox leaves out so many numbers.
WIDEST = 100_000


class Numbers(NamedTuple):
    """Of one boot: how many there are, the ends, what is between them in gaps up to WIDEST."""

    received: int
    lowest: int
    highest: int
    between: int
    jumps: int


def missing(numbers: Numbers, *, whole: bool) -> tuple[int, int]:
    """Numbers that are missing, and jumps. whole: nothing of it was dropped for its age.

    >>> missing(Numbers(received=3, lowest=3, highest=7, between=2, jumps=0), whole=True)
    (4, 0)
    >>> missing(Numbers(received=3, lowest=3, highest=7, between=2, jumps=0), whole=False)
    (2, 0)
    >>> missing(Numbers(received=1, lowest=2**53, highest=2**53, between=0, jumps=0), whole=True)
    (0, 1)
    """
    below = numbers.lowest - 1 if whole else 0
    if below > WIDEST:
        return numbers.between, numbers.jumps + 1
    return numbers.between + below, numbers.jumps
