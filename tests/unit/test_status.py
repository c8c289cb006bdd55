"""One screen for a technician: what runs, since when, what is wrong, what to do."""

import os
from pathlib import Path

import msgspec

from shoal.agent.host.io.folder import lock
from shoal.agent.status import DeviceStatus, ModelStatus, text
from shoal.agent.status_page import page
from shoal.agent.status_reader import read_status
from shoal.wire import Skew


def standing(**fields: object) -> DeviceStatus:
    base = {
        "device": "cam-1",
        "site": "north",
        "profile": "rpi4",
        "ring": "stable",
        "agent": "0.1.0",
        "now_s": 1_800_000_600.0,
        "running": True,
        "connected": True,
        "models": [SERVES],
    }
    return DeviceStatus(**{**base, **fields})  # type: ignore[arg-type]


SERVES = ModelStatus(
    model="lot-codes",
    release="lot-codes@3",
    variant="int8-u8s8-pc",
    since_s=1_800_000_000.0,
    state="SUCCEEDED",
    wanted="lot-codes@3",
    requests=42,
)
FAILED = ModelStatus(
    model="lot-codes",
    release="lot-codes@3",
    variant="int8-u8s8-pc",
    since_s=1_800_000_000.0,
    state="FAILED",
    wanted="lot-codes@4",
    cause="golden-mismatch",
    detail="3 of 64 labels differ",
)


def test_without_a_failure_the_status_is_ok() -> None:
    screen = text(standing())
    assert "lot-codes@3 (int8-u8s8-pc) serves since 2027-01-15 08:00 UTC, 10 min" in screen
    assert "nothing is wrong" in screen


def test_timings_and_the_choice_are_on_the_screen_where_there_was_one() -> None:
    timed = msgspec.structs.replace(SERVES, timings_us={"int8-u8s8-pc": 41.24, "fp32": 98.1})
    said = "timed here: int8-u8s8-pc 41.2 µs, fp32 98.1 µs; int8-u8s8-pc was chosen"
    assert said in text(standing(models=[timed]))
    assert "timed here" not in text(standing())


def test_an_agent_that_runs_and_does_not_respond_is_not_said_to_be_away(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text('[device]\nname = "cam-1"\n')
    assert "NOT RUNNING" in text(read_status(tmp_path))
    descriptor = lock(tmp_path)
    screen = text(read_status(tmp_path))
    os.close(descriptor)
    assert f"the agent runs as process {os.getpid()}, and does not respond" in screen
    assert "NOT RUNNING" not in screen
    assert "start it" not in screen
    stuck = standing(running=False, connected=False, pid=7, read_only=True)
    assert "mount the disk writable" in text(stuck)


def test_why_the_broker_is_not_connected_is_on_the_screen() -> None:
    why = "the certificate of this machine ended 30 days ago, 2026-11-01; enrol it again"
    away = standing(connected=False, connection_fault=why)
    assert f"no connection to the broker: {why}" in text(away)
    assert why in page(away)


def test_a_failure_is_shown_with_its_hint() -> None:
    screen = text(standing(models=[FAILED]))
    assert "lot-codes@4 FAILED: 3 of 64 labels differ" in screen
    assert "do: nothing on site" in screen


def test_every_kind_of_trouble_is_on_the_screen() -> None:
    screen = text(
        standing(connected=False, clock_synced=False, models=[], faults=["bad-input: NaN"])
    )
    for said in ("no connection", "clock is behind", "no release serves", "bad-input: NaN"):
        assert said in screen
    assert "the agent is not running" in text(standing(running=False))


def test_a_withdrawn_order_is_not_a_problem() -> None:
    from msgspec.structs import replace

    canceled = replace(FAILED, state="CANCELED", cause="canceled")
    assert standing(models=[canceled]).problems == []


def test_a_model_that_was_removed_by_order_is_not_a_problem() -> None:
    gone = ModelStatus(
        model="lot-codes", release="", variant="", since_s=0, state="SUCCEEDED", wanted="removal"
    )
    screen = text(standing(models=[gone]))
    assert "lot-codes: nothing serves; removal SUCCEEDED" in screen
    assert "nothing is wrong" in screen


def test_it_fits_on_one_screen() -> None:
    many = standing(models=[FAILED] * 4, faults=["x: y"] * 5, connected=False)
    assert len(text(many).splitlines()) <= 24


def test_commands_in_hints_name_this_folder() -> None:
    away = standing(connected=False, folder="'/srv/my cam'")
    assert "shoal-agent doctor --folder '/srv/my cam'" in text(away)
    assert "--folder" not in text(standing(connected=False))
    stopped = dict(standing(running=False, folder="/srv/cam").problems)
    assert stopped["the agent is not running"] == "start it: shoal-agent run --folder /srv/cam"


def test_a_wrong_clock_is_shown_with_its_skew_and_a_hint() -> None:
    off = standing(clock_synced=False, clock=Skew(skew_s=-93.2, error_s=0.1))
    screen = text(off)
    assert "the clock is 93 s behind of the controller's" not in screen
    assert "the clock is 93 s behind the controller's" in screen
    assert "time synchronisation" in screen


def test_the_round_that_it_takes_part_in_is_on_the_screen_and_on_the_page() -> None:
    line = "takes part in round 4 of digits: training"
    shown = standing(learning=line, models=[SERVES])
    assert f"  {line}" in text(shown).splitlines()
    assert line in page(shown)
