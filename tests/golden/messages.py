"""Every wire message once, every field set: what the golden bytes were made of.

Run as a program, it writes the bytes of messages that have none yet. Bytes that are there are
never edited: an agent in the field speaks them.
"""

from pathlib import Path

import msgspec

from shoal import wire
from shoal.federated import messages
from shoal.federated.chunks import cut
from shoal.federated.secure import Advert, Ending, Roster

FOLDER = Path(__file__).parent
SENDER = {"device": "cam-1", "boot": "9f3c2a", "seq": 41, "sent_s": 1_800_000_000.25}

ATTEMPT = bytes(range(16))
ADVERT = Advert(
    device="cam-1", box=b"b" * 32, mask=b"m" * 32, own=b"o" * 32, signature=b"s" * 64,
    certificate=b"c" * 8,
)  # fmt: skip
SLICE = messages.Slice(rows=120, loss=31.5, correct=110)
WAY = messages.GatewayRoute(
    gateway="cam-2", address="10.0.0.7:8456", members=["cam-1", "cam-2"],
    close_s=1_800_000_300.0, most=1000,
)  # fmt: skip
CALLS: dict[str, messages.ControllerMessage] = {
    "invite": messages.Invite(signed=b'{"signed":{}}', urls={"ab" * 32: "https://a/b"}),
    "start": messages.Start(roster=Roster(digests={"cam-1": b"d" * 32}, neighbours=[ADVERT])),
    "start.way": messages.Start(way=WAY),
    "start.way.generations": messages.Start(
        way=msgspec.structs.replace(WAY, generations={"cam-1": 3})
    ),
    "deal": messages.Deal(boxes={"cam-2": b"sealed"}),
    "resend": messages.Resend(missing=[0, 7]),
    "close": messages.Close(ending=Ending(alive=["cam-1"], dead=["cam-2"])),
    "pass": messages.Pass(votes={"cam-2": b"signature"}),
    "measure": messages.Measure(signed=b'{"signed":{}}', urls={"ab" * 32: "https://a/b"}),
    "dismiss": messages.Dismiss(reason="too-few-updates"),
}
ANSWERS: dict[str, messages.DeviceMessage] = {
    "join": messages.Join(advert=ADVERT),
    "refuse": messages.Refuse(reason="few-rows", detail="it has too few rows of its own"),
    "boxes": messages.Boxes(boxes={"cam-2": b"sealed"}),
    "piece": messages.Piece(chunk=cut(b"0123456789", 4)[1]),
    "vote": messages.Vote(signature=b"signature"),
    "shares": messages.Shares(shares={"cam-2": b"share"}),
    "measured": messages.Measured(whole=SLICE, classes={"7": SLICE}, personal=SLICE),
}

SKEW = wire.Skew(skew_s=92.75, error_s=0.125)

MESSAGES: dict[str, wire.Message] = {
    "status.v1": wire.Status(**SENDER, online=True, since_s=1_799_999_000.0, session="00ff"),
    "status.asks-time.v1": wire.Status(
        **SENDER, online=True, since_s=1_799_999_000.0, session="00ff", asks_time=True
    ),
    "inventory.v1": wire.Inventory(
        **SENDER,
        agent="0.1.0",
        profile="rpi4",
        ring="canary",
        site="north",
        line="press-2",
        labels={"hall": "B"},
        facts={"arch": "aarch64", "ram_mb": 3791, "flags": ["asimd"], "soc": None},
        installed=[
            wire.Installed(
                model="lot-codes",
                release="lot-codes@3",
                variant="int8-u8s8-pc",
                sha256="ab" * 32,
                slot="b",
                role="candidate",
                since_s=1_799_999_500.5,
                timings_us={"int8-u8s8-pc": 41.5, "fp32": 55.0},
            )
        ],
        floors={"assignment": 7.0, "counter:lot-codes": 2.0},
        endpoint="http://127.0.0.1:8080",
    ),
    "window.clock.v1": wire.WindowReport(
        **SENDER,
        model="lot-codes",
        release="lot-codes@3",
        reference="0123456789abcdef",
        window_start_s=1_799_999_940.0,
        window_s=60.0,
        rows=0,
        health=wire.Health(clock_synced=False, clock=SKEW),
    ),
    "time.v1": wire.Time(asked_s=1_800_000_000.25, now_s=1_799_999_907.5),
    "window.v1": wire.WindowReport(
        **SENDER,
        model="lot-codes",
        release="lot-codes@3",
        reference="0123456789abcdef",
        window_start_s=1_799_999_940.0,
        window_s=60.0,
        rows=600,
        errors=2,
        slow=1,
        latency=[0, 0, 598],
        inputs=b"SHS1in",
        outputs=b"SHS1out",
        labelled=600,
        correct=588,
        merged=2,
        health=wire.Health(
            rss_mb=71.5,
            cpu_pct=3.25,
            temp_c=51.0,
            disk_free_mb=812.0,
            throttled=True,
            clock_synced=False,
        ),
    ),
    "window.memory.v1": wire.WindowReport(
        **SENDER,
        model="lot-codes",
        release="lot-codes@4",
        reference="2f",
        window_start_s=1_800_000_000.0,
        window_s=60.0,
        rows=0,
        health=wire.Health(memory_free_mb=212.5, outbox=7),
    ),
    "update.v1": wire.UpdateEvent(
        **SENDER,
        model="lot-codes",
        release="lot-codes@4",
        rollout="r-17",
        attempt=2,
        state="FAILED",
        cause="golden-mismatch",
        detail="int8-u8s8-pc: 3 of 64 labels differ",
        facts={"worst_error": 0.5, "labels_differ": 3},
    ),
    "fault.v1": wire.FaultEvent(
        **SENDER,
        cause="bad-input",
        detail="'contrast' is missing",
        severity="critical",
        count=99,
        facts={"column": "contrast"},
    ),
    "assignment.v1": wire.Assignment(signed=b'{"signed":{}}', urls={"ab" * 32: "https://a/b"}),
    "assignment.peers.v1": wire.Assignment(
        signed=b'{"signed":{}}', urls={}, peers={"cam-2": "10.0.0.7:8455"}
    ),
    "assignment.generations.v1": wire.Assignment(
        signed=b'{"signed":{}}', urls={}, peers={"cam-2": "10.0.0.7:8455"}, generations={"cam-2": 3}
    ),
    "ack.v1": wire.Ack(boot="9f3c2a", seqs=[39, 40, 41]),
    "command.v1": wire.Command(
        id="c-1", verb="report", expires_at_s=1_800_000_060.0, args={"level": "DEBUG"}
    ),
    "budget.v1": wire.Budget(window_s=60.0, jitter_s=5.0),
    "timestamp.v1": wire.Timestamp(signed=b'{"signed":{}}'),
    **{f"round.{say}.v1": wire.RoundCall(attempt=ATTEMPT, said=it) for say, it in CALLS.items()},
    **{
        f"round-answer.{say}.v1": wire.RoundAnswer(**SENDER, attempt=ATTEMPT, said=it)
        for say, it in ANSWERS.items()
    },
}


def main() -> None:
    for name, message in MESSAGES.items():
        path = FOLDER / f"{name}.msgpack"
        if not path.exists():
            path.write_bytes(wire.encode(message))


if __name__ == "__main__":
    main()
