"""Windows as ingest stores them, for tests of what reads them."""

from typing import Any

from shoal.controller.host.windows import NewWindow
from shoal.controller.store import window_sums
from shoal.controller.store.arrivals import Arrivals
from shoal.controller.store.io.database import Store


def new_window(device: str, seq: int, **change: Any) -> NewWindow:
    """A window of 10 rows without sketches; `change` replaces fields."""
    plain = NewWindow(
        device=device, boot="b", seq=seq, site="north", model="m", release="m@1", reference="r",
        start_at=60.0 * seq, window_s=60.0, received_at=60.0 * seq + 61.0, rows=10, errors=1,
        slow=0, labelled=4, correct=3, merged=1, latency=[0, 10], health={"cpu_pct": 4.0},
        inputs=b"", outputs=b"",
    )  # fmt: skip
    return plain._replace(**change)


def keep(store: Store, *windows: NewWindow) -> None:
    """Store those of the windows that have not arrived before, as ingest does."""
    with store.write() as db:
        known = Arrivals(db, [one.key for one in windows])
        new = [
            one
            for one in windows
            if known.add(one.key, one.received_at, windows=one.merged, rows=one.rows)
        ]
        known.save()
        store.windows.add(db, new)
        window_sums.add(db, new, {})
