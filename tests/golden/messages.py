"""Every wire message once, every field set: what the golden bytes were made of.

Run as a program, it writes the bytes of messages that have none yet. Bytes that are there are
never edited: an agent in the field speaks them.
"""

from pathlib import Path

from shoal import wire

FOLDER = Path(__file__).parent
SENDER = {"device": "cam-1", "boot": "9f3c2a", "seq": 41, "sent_s": 1_800_000_000.25}

MESSAGES: dict[str, wire.Message] = {
    "status.v1": wire.Status(**SENDER, online=True, since_s=1_799_999_000.0, session="00ff"),
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
    "ack.v1": wire.Ack(boot="9f3c2a", seqs=[39, 40, 41]),
    "command.v1": wire.Command(
        id="c-1", verb="report", expires_at_s=1_800_000_060.0, args={"level": "DEBUG"}
    ),
    "budget.v1": wire.Budget(window_s=60.0, jitter_s=5.0),
    "timestamp.v1": wire.Timestamp(signed=b'{"signed":{}}'),
}


def main() -> None:
    for name, message in MESSAGES.items():
        path = FOLDER / f"{name}.msgpack"
        if not path.exists():
            path.write_bytes(wire.encode(message))


if __name__ == "__main__":
    main()
