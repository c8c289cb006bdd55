"""Windows as ingest stores them, for tests of what reads them."""

from typing import Any

from shoal.controller.host.windows import NewWindow


def new_window(device: str, seq: int, **change: Any) -> NewWindow:
    """A window of 10 rows without sketches; `change` replaces fields."""
    plain = NewWindow(
        device=device, boot="b", seq=seq, site="north", model="m", release="m@1", reference="r",
        start_at=60.0 * seq, window_s=60.0, received_at=60.0 * seq + 61.0, rows=10, errors=1,
        slow=0, labelled=4, correct=3, merged=1, latency=[0, 10], health={"cpu_pct": 4.0},
        inputs=b"", outputs=b"",
    )  # fmt: skip
    return plain._replace(**change)
