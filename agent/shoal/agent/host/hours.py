"""Times of day in which this device may download: a factory's network is busy in its shifts.

>>> night = parse("22:00-05:00, 12:00-12:30")
>>> zone = datetime.UTC
>>> night.open(1_700_000_000.0, zone), night.opens_s(1_700_000_000.0, zone)  # 22:13:20
(True, 1700000000.0)
>>> night.open(1_700_030_000.0, zone), night.opens_s(1_700_030_000.0, zone)  # 06:33:20
(False, 1700049600.0)
>>> parse("").open(1_700_030_000.0, zone)
True
"""

import datetime
import re
from typing import NamedTuple

from shoal.errors import SettingError

_SPAN = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-(?!24:(?!00))([01]\d|2[0-4]):([0-5]\d)")
_DAY = 24 * 60


class Hours(NamedTuple):
    """spans: (from, to) in minutes of the local day; to < from goes past midnight; () is always."""

    spans: tuple[tuple[int, int], ...] = ()
    text: str = ""

    def open(self, at_s: float, zone: datetime.tzinfo | None = None) -> bool:
        """Whether downloads may run at `at_s` (Unix). zone: None for this machine's own."""
        minute = _minute(at_s, zone)
        return not self.spans or any(
            a <= minute < b if a < b else minute >= a or minute < b for a, b in self.spans
        )

    def opens_s(self, at_s: float, zone: datetime.tzinfo | None = None) -> float:
        """Start of the next allowed time; `at_s` itself if it is allowed."""
        if self.open(at_s, zone):
            return at_s
        minute = _minute(at_s, zone)
        wait = min((start - minute) % _DAY for start, _ in self.spans)
        return at_s - at_s % 60 + wait * 60


def parse(text: str) -> Hours:
    """Hours of "22:00-05:00, 12:00-12:30"; "" is always. SettingError for what is no such list."""
    spans = []
    for part in filter(None, (each.strip() for each in text.split(","))):
        found = _SPAN.fullmatch(part)
        if not found:
            hint = "write them as 22:00-05:00, from 00:00 to 24:00"
            raise SettingError(f"times of day {part!r}", hint)
        a, b, c, d = map(int, found.groups())
        spans.append((a * 60 + b, c * 60 + d))
    return Hours(tuple(spans), text)


def _minute(at_s: float, zone: datetime.tzinfo | None) -> int:
    local = datetime.datetime.fromtimestamp(at_s, datetime.UTC).astimezone(zone)
    return local.hour * 60 + local.minute
