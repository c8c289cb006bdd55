"""Windows move from their table into a file a day beside the database, and are summed by hour

Rows that are there are moved in order of arrival, and counted in received, window_sum and
window_subject, as if they arrived again. The database keeps the space that they took for other
rows: to return it to the disk, stop the controller and run `sqlite3 controller.db VACUUM`.
"""

import json
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_WINDOWS = """
CREATE TABLE window (
    id INTEGER PRIMARY KEY, device TEXT NOT NULL, boot TEXT NOT NULL, seq INTEGER NOT NULL,
    site TEXT NOT NULL, model TEXT NOT NULL, "release" TEXT NOT NULL, reference TEXT NOT NULL,
    start_at REAL NOT NULL, window_s REAL NOT NULL, received_at REAL NOT NULL,
    "rows" INTEGER NOT NULL, errors INTEGER NOT NULL, slow INTEGER NOT NULL,
    labelled INTEGER NOT NULL, correct INTEGER NOT NULL, merged INTEGER NOT NULL,
    latency TEXT NOT NULL, health TEXT NOT NULL, inputs BLOB NOT NULL, outputs BLOB NOT NULL
);
CREATE INDEX window_key ON window (device, boot, seq);
CREATE INDEX window_site ON window (site);
"""
_COLUMNS = (
    "device, boot, seq, site, model, \"release\", reference, start_at, window_s, received_at, "
    '"rows", errors, slow, labelled, correct, merged, latency, health, inputs, outputs'
)  # fmt: skip
_INSERT = f"INSERT INTO window VALUES ({', '.join('?' * 21)})"  # noqa: S608 - constants alone
_COUNTS = ("rows", "errors", "slow", "labelled", "correct")


def upgrade() -> None:
    _make_tables()
    db = op.get_bind()
    folder = Path(db.exec_driver_sql("PRAGMA database_list").all()[0][2]).with_suffix(".windows")
    for left in folder.glob("*.db*"):  # by an upgrade that did not end
        left.unlink()
    _move(db, folder)
    _note_received(db)
    _move_position(db)
    op.drop_table("window")


def _make_tables() -> None:
    def number(name: str) -> sa.Column[float]:
        return sa.Column(name, sa.Float(), nullable=False, server_default="0")

    def count(name: str) -> sa.Column[int]:
        return sa.Column(name, sa.Integer(), nullable=False, server_default="0")

    op.create_table(
        "window_file",
        sa.Column("name", sa.String(40), nullable=False),
        *(count(name) for name in ("first_id", "last_id")),
        *(number(name) for name in ("first_at", "last_at", "oldest_at", "newest_at")),
        sa.PrimaryKeyConstraint("name", name="pk_window_file"),
    )
    op.create_index("ix_window_file_last", "window_file", ["last_id"])
    op.create_table(
        "received",
        sa.Column("device", sa.String(63), nullable=False),
        sa.Column("boot", sa.String(32), nullable=False),
        sa.Column("first", sa.Integer(), nullable=False),
        *(count(name) for name in ("last", "windows", "rows")),
        *(number(name) for name in ("first_at", "last_at")),
        sa.PrimaryKeyConstraint("device", "boot", "first", name="pk_received"),
    )
    op.create_index("ix_received_last", "received", ["last_at"])
    op.create_table(
        "window_sum",
        sa.Column("model", sa.String(63), nullable=False),
        sa.Column("span", sa.Integer(), nullable=False),
        sa.Column("scope", sa.String(8), nullable=False),
        sa.Column("at", sa.Integer(), nullable=False),
        sa.Column("subject", sa.String(63), nullable=False),
        sa.Column("release", sa.String(80), nullable=False),
        count("windows"),
        *(count(name) for name in _COUNTS),
        *(number(name) for name in ("since", "until")),
        sa.Column("latency", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint(
            "model", "span", "scope", "at", "subject", "release", name="pk_window_sum"
        ),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_window_sum_at", "window_sum", ["span", "at"])
    op.create_table(
        "window_subject",
        sa.Column("model", sa.String(63), nullable=False),
        sa.Column("scope", sa.String(8), nullable=False),
        sa.Column("subject", sa.String(63), nullable=False),
        sa.Column("release", sa.Text(), nullable=False, server_default=""),
        number("start_at"),
        sa.PrimaryKeyConstraint("model", "scope", "subject", name="pk_window_subject"),
    )
    op.create_index("ix_window_subject_start", "window_subject", ["start_at"])


def _move(db: sa.Connection, folder: Path) -> None:
    """Copy windows into files, and their sums into window_sum and window_subject."""
    profiles = {
        row.name: row.profile for row in db.execute(sa.text("SELECT name, profile FROM device"))
    }
    query = f"SELECT {_COLUMNS} FROM window ORDER BY received_at, start_at, device, seq"  # noqa: S608
    day, span, file = "", [0.0] * 6, None
    subjects: dict[Any, Any] = {}
    sums: dict[Any, Any] = {}
    last = 0
    for last, row in enumerate(db.exec_driver_sql(query), 1):
        received_at, start_at = row.received_at, row.start_at
        if (today := datetime.fromtimestamp(received_at, UTC).strftime("%Y-%m-%d")) != day:
            _close(db, day, file, span)
            folder.mkdir(exist_ok=True)
            day, file = today, sqlite3.connect(folder / f"{today}.db", isolation_level=None)
            file.execute("PRAGMA page_size = 8192")
            file.execute("PRAGMA synchronous = FULL")
            file.executescript(_WINDOWS)
            file.execute("BEGIN")
            span = [last, last, received_at, received_at, start_at, start_at]
            _add_sums(db, sums)
        span[1], span[3] = last, received_at
        span[4], span[5] = min(span[4], start_at), max(span[5], start_at)
        assert file is not None
        file.execute(_INSERT, (last, *row))
        _sum(sums, row, profiles.get(row.device, ""))
        for scope, subject in (("device", row.device), ("site", row.site)):
            known = subjects.get((row.model, scope, subject))
            if subject and (known is None or known[1] <= start_at):
                subjects[row.model, scope, subject] = row.release, start_at
    _close(db, day, file, span)
    _add_sums(db, sums)
    for key, (release, start_at) in subjects.items():
        db.exec_driver_sql(
            "INSERT INTO window_subject VALUES (?, ?, ?, ?, ?)", (*key, release, start_at)
        )


def _close(db: sa.Connection, day: str, file: sqlite3.Connection | None, span: list[float]) -> None:
    if file is not None:
        file.execute("COMMIT")
        file.close()
        db.exec_driver_sql("INSERT INTO window_file VALUES (?, ?, ?, ?, ?, ?, ?)", (day, *span))


def _sum(sums: dict[Any, Any], row: sa.Row[Any], profile: str) -> None:
    latency = json.loads(row.latency)
    scopes = {"device": row.device, "fleet": "fleet", "site": row.site, "profile": profile}
    for size in (3_600, 86_400):
        for scope, subject in scopes.items():
            if not subject:
                continue
            at = int(row.start_at // size) * size
            one = sums.setdefault(
                (row.model, size, scope, at, subject, row.release),
                [0, 0, 0, 0, 0, 0, float("inf"), -float("inf"), []],
            )
            one[0] += row.merged
            for i, name in enumerate(_COUNTS, 1):
                one[i] += row._mapping[name]
            one[6] = min(one[6], row.start_at)
            one[7] = max(one[7], row.start_at + row.window_s)
            one[8] += [0] * (len(latency) - len(one[8]))
            for i, number in enumerate(latency):
                one[8][i] += number


def _add_sums(db: sa.Connection, sums: dict[Any, Any]) -> None:
    """Add sums to those that are stored, and forget them: as many as a day has are in memory."""
    for key, (*values, latency) in sums.items():
        where = (
            'model = ? AND span = ? AND scope = ? AND "at" = ? AND subject = ? AND "release" = ?'
        )
        stored = db.exec_driver_sql(
            "SELECT windows, rows, errors, slow, labelled, correct, since, until, latency "  # noqa: S608
            f"FROM window_sum WHERE {where}",
            key,
        ).first()
        if stored is not None:
            *before, known = stored
            values = [
                *(a + b for a, b in zip(values[:6], before[:6], strict=True)),
                min(values[6], before[6]), max(values[7], before[7]),
            ]  # fmt: skip
            known = json.loads(known)
            size = max(len(known), len(latency))
            latency = [
                a + b
                for a, b in zip(
                    known + [0] * (size - len(known)),
                    latency + [0] * (size - len(latency)),
                    strict=True,
                )
            ]
        db.exec_driver_sql(
            f"INSERT OR REPLACE INTO window_sum VALUES ({', '.join('?' * 15)})",  # noqa: S608
            (*key, *values, json.dumps(latency)),
        )
    sums.clear()


def _note_received(db: sa.Connection) -> None:
    """Runs of the sequence numbers of windows and events."""
    db.exec_driver_sql(
        """
        INSERT INTO received (device, boot, "first", "last", windows, rows, first_at, last_at)
        SELECT device, boot, min(seq), max(seq), sum(merged), sum("rows"), min(at), max(at) FROM (
            SELECT *, seq - row_number() OVER (PARTITION BY device, boot ORDER BY seq) AS run FROM (
                SELECT device, boot, seq, sum(merged) AS merged, sum("rows") AS "rows",
                    min(at) AS at FROM (
                    SELECT device, boot, seq, merged, "rows", received_at AS at FROM window
                    UNION ALL SELECT device, boot, seq, 0, 0, received_at FROM device_event
                ) GROUP BY device, boot, seq
            )
        ) GROUP BY device, boot, run
        """
    )


def _move_position(db: sa.Connection) -> None:
    """The drift monitor goes on after the last window that it has tested."""
    told = db.exec_driver_sql(
        "SELECT value FROM setting WHERE name = 'monitoring.received_at'"
    ).first()
    if told is None:
        return
    tested = db.exec_driver_sql(
        "SELECT count(*) FROM window WHERE received_at <= ?", (float(told[0]),)
    ).scalar()
    db.exec_driver_sql("DELETE FROM setting WHERE name = 'monitoring.received_at'")
    db.exec_driver_sql("INSERT INTO setting VALUES ('monitoring.window', ?)", (tested,))
