"""What changes is told to who listens, once and in order."""

import json
from collections.abc import Iterator
from typing import Any

from api.controller_app import Clock, ControllerApp, is_problem
from shoal.controller.api.stream import LIFETIME_S, MAX_STREAMS, Streams
from shoal.controller.store import changes


def note(controller: ControllerApp, kind: str, subject: str) -> None:
    with controller.ctx.store.write() as db:
        changes.note(db, controller.ctx, kind, subject)


def events(chunks: Iterator[bytes]) -> list[dict[str, Any]]:
    """Every event of a stream's text."""
    found = []
    for block in b"".join(chunks).decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line[:1] != ":")
        if "event" in fields:
            found.append(
                {"id": int(fields["id"]), "kind": fields["event"]} | {"data": fields["data"]}
            )
    return found


def ticking(clock: Clock) -> Streams:
    """Streams on a clock that goes by what they wait."""

    def pause(seconds: float) -> None:
        clock.now += seconds

    return Streams(pause)


def test_a_listener_receives_changes_from_now_on(controller: ControllerApp) -> None:
    note(controller, "device", "before")
    said = iter([("rollout", "r1"), ("alert", "7")])

    def pause(seconds: float) -> None:
        controller.clock.now += seconds
        if change := next(said, None):
            note(controller, *change)

    heard = events(Streams(pause).follow(controller.ctx, ""))
    assert [(e["kind"], json.loads(e["data"])["subject"]) for e in heard] == [
        ("rollout", "r1"), ("alert", "7"),
    ]  # fmt: skip
    assert heard[0]["id"] == json.loads(heard[0]["data"])["id"]


def test_a_reconnecting_listener_receives_missed_changes(controller: ControllerApp) -> None:
    for number in range(3):
        note(controller, "device", f"d{number}")
    heard = events(ticking(controller.clock).follow(controller.ctx, "1"))
    assert [e["id"] for e in heard] == [2, 3]


def test_an_id_that_is_none_of_ours_starts_from_now(controller: ControllerApp) -> None:
    note(controller, "device", "d")
    for strange in ("999", "x", "-1", "٣"):
        assert events(ticking(controller.clock).follow(controller.ctx, strange)) == []


def test_a_stream_ends_by_itself_and_beats_meanwhile(controller: ControllerApp) -> None:
    began = controller.clock.now
    text = b"".join(ticking(controller.clock).follow(controller.ctx, ""))
    assert LIFETIME_S <= controller.clock.now - began < LIFETIME_S + 1
    assert text.startswith(b"retry: ")
    assert text.count(b": still here") == 2


def test_a_stream_ends_soon_after_its_listener_left(controller: ControllerApp) -> None:
    began = controller.clock.now
    text = b"".join(
        ticking(controller.clock).follow(
            controller.ctx, "", lambda: controller.clock.now > began + 1
        )
    )
    assert controller.clock.now - began < 2
    assert text.startswith(b"retry: ")


def test_one_listener_too_many_gets_what_there_is_and_comes_again(
    controller: ControllerApp,
) -> None:
    streams = ticking(controller.clock)
    note(controller, "device", "d1")
    held = [streams.follow(controller.ctx, "") for _ in range(MAX_STREAMS)]
    text = b"".join(streams.follow(controller.ctx, "0"))
    assert b"retry: 2000" in text
    assert b'"d1"' in text
    held[0].close()  # type: ignore[attr-defined]
    assert b"retry: 500" in next(iter(streams.follow(controller.ctx, "")))


def test_over_http_a_stream_needs_a_viewer_and_gives_its_place_back(
    controller: ControllerApp,
) -> None:
    assert is_problem(controller.get("/api/v1/stream", ""), 401)
    for _ in range(MAX_STREAMS + 2):
        response = controller.get("/api/v1/stream", "viewer")
        assert response.content_type == "text/event-stream"
        assert b"retry: 500" in next(iter(response.response))
        response.close()
