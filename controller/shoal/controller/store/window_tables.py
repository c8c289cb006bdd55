"""Tables about windows: which files hold them, and which of them have arrived. See store.tables.

The windows themselves are in files of their own: store.io.window_files.
"""

from sqlalchemy import JSON, Column, Index, Integer, String, Table

from shoal.controller.store.columns import count, metadata, number, text

window_file = Table(  # a day of windows by arrival; oldest_at, newest_at: of their starts
    "window_file",
    metadata,
    Column("name", String(40), primary_key=True),
    count("first_id"),
    count("last_id"),
    number("first_at"),
    number("last_at"),
    number("oldest_at"),
    number("newest_at"),
    Index("ix_window_file_last", "last_id"),
)
received = Table(  # runs of sequence numbers that have arrived, first to last, with their sums
    "received",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("boot", String(32), primary_key=True),
    Column("first", Integer, primary_key=True, autoincrement=False),
    count("last"),
    count("windows"),
    count("rows"),
    number("first_at"),
    number("last_at"),
    Index("ix_received_last", "last_at"),
)
window_sum = Table(  # merged windows of a subject and release: an hour or a day of their starts
    "window_sum",
    metadata,
    Column("model", String(63), primary_key=True),
    Column("span", Integer, primary_key=True, autoincrement=False),  # seconds: 3 600 or 86 400
    Column("scope", String(8), primary_key=True),
    Column("at", Integer, primary_key=True, autoincrement=False),
    Column("subject", String(63), primary_key=True),
    Column("release", String(80), primary_key=True),
    count("windows"),
    count("rows"),
    count("errors"),
    count("slow"),
    count("labelled"),
    count("correct"),
    number("since"),
    number("until"),
    Column("latency", JSON, nullable=False),  # counts of shoal.sketch.Latency
    sqlite_with_rowid=False,
)
Index("ix_window_sum_at", window_sum.c.span, window_sum.c.at)
window_subject = (
    Table(  # what has sent windows of a model; release: of the newest, begun at start_at
        "window_subject",
        metadata,
        Column("model", String(63), primary_key=True),
        Column("scope", String(8), primary_key=True),
        Column("subject", String(63), primary_key=True),
        text("release"),
        number("start_at"),
        Index("ix_window_subject_start", "start_at"),
    )
)
