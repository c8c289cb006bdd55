"""Quiet hours of a channel, in its time zone, over midnight and over changes of the clock."""

import datetime as dt
import re
import zoneinfo

from shoal.errors import InputError

_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


def check(quiet: str, zone: str) -> None:
    """InputError for hours or a zone that there are not."""
    if quiet and not _HOURS.fullmatch(quiet):
        raise InputError(f"quiet hours {quiet!r:.40}", "write them as 22:00-07:00")
    try:
        zoneinfo.ZoneInfo(zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InputError(f"time zone {zone!r:.60}", "for example Europe/Berlin or UTC") from error


def ends_at(quiet: str, zone: str, now: float) -> float:
    """When the quiet hours end in which `now` is; `now` outside of them. Unix seconds.

    >>> ends_at("22:00-07:00", "UTC", 23 * 3600.0) == (24 + 7) * 3600
    True
    >>> ends_at("22:00-07:00", "UTC", 12 * 3600.0) == 12 * 3600
    True
    """
    found = _HOURS.fullmatch(quiet)
    if not found:
        return now
    hour, minute, end_hour, end_minute = map(int, found.groups())
    local = dt.datetime.fromtimestamp(now, zoneinfo.ZoneInfo(zone))
    begins, ends = dt.time(hour, minute), dt.time(end_hour, end_minute)
    time = local.time()
    within = begins <= time < ends if begins <= ends else time >= begins or time < ends
    if not within:
        return now
    end = local.replace(hour=end_hour, minute=end_minute, second=0, microsecond=0)
    if time >= ends:
        end += dt.timedelta(days=1)
    return max(now, end.timestamp())
