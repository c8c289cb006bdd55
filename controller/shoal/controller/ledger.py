"""What arrived of a device's outbox, for whoever asks whether anything was lost."""

from shoal.controller.records import Record


class Ledger(Record, frozen=True, kw_only=True):
    """What arrived of one device's outbox in one boot: missing is 0 when nothing is on its way.

    received   distinct sequence numbers in the database; highest the largest of them
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
