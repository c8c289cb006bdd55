"""Download hours are times of the local day, may pass midnight, and say when they open."""

import datetime
import zoneinfo

import pytest

from shoal.agent.host.hours import parse
from shoal.errors import SettingError

UTC = datetime.UTC


def at(text: str, zone: datetime.tzinfo = UTC) -> float:
    return datetime.datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


@pytest.mark.parametrize(
    ("hours", "when", "opens"),
    [
        ("", "2026-03-01T09:00", "2026-03-01T09:00"),
        ("22:00-05:00", "2026-03-01T23:30:10", "2026-03-01T23:30:10"),
        ("22:00-05:00", "2026-03-01T04:59:59", "2026-03-01T04:59:59"),
        ("22:00-05:00", "2026-03-01T05:00", "2026-03-01T22:00"),
        ("12:00-12:30", "2026-03-01T12:30:01", "2026-03-02T12:00"),
        ("22:00-05:00, 12:00-12:30", "2026-03-01T05:00:59", "2026-03-01T12:00"),
        ("00:00-24:00", "2026-03-01T23:59:59", "2026-03-01T23:59:59"),
    ],
)
def test_downloads_wait_for_the_next_opening(hours: str, when: str, opens: str) -> None:
    parsed = parse(hours)
    assert parsed.opens_s(at(when), UTC) == at(opens)
    assert parsed.open(at(when), UTC) is (when == opens)


def test_the_day_is_the_device_s_own() -> None:
    berlin = zoneinfo.ZoneInfo("Europe/Berlin")
    assert parse("22:00-23:00").open(at("2026-07-01T22:30", berlin), berlin)
    assert not parse("22:00-23:00").open(at("2026-07-01T22:30", berlin), UTC)


@pytest.mark.parametrize(
    "text",
    ["22-05", "22:00", "25:00-01:00", "22:00-05:60", "22:00-24:30", "24:00-05:00", "at night"],
)
def test_what_is_no_time_of_day_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="22:00-05:00"):
        parse(text)
