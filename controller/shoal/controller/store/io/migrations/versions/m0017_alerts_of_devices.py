"""Members, history and silences of alerts, and when a device is overdue"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), server_default="", nullable=False)


def _number(name: str) -> sa.Column[float]:
    return sa.Column(name, sa.Float(), server_default="0", nullable=False)


def _count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer(), server_default="0", nullable=False)


def upgrade() -> None:
    with op.batch_alter_table("alert", schema=None) as batch_op:
        for name in ("assigned_to", "silence"):
            batch_op.add_column(_text(name))
        for name in ("members", "reopened"):
            batch_op.add_column(_count(name))
        for name in ("snoozed_until", "escalated_at", "ending_at", "due_at"):
            batch_op.add_column(_number(name))
        batch_op.create_index("ix_alert_state", ["state", "severity", "kind"])
        batch_op.create_index("ix_alert_opened", ["opened_at", "id"])
    op.create_index("ix_alert_due", "alert", ["due_at"], sqlite_where=sa.text("due_at > 0"))
    op.create_table(
        "alert_member",
        sa.Column("device", sa.String(63), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("part", sa.String(80), nullable=False),
        *map(_text, ("alert_key", "site", "severity", "state", "detail")),
        *map(_number, ("since_at", "seen_at", "hold_s", "calm_s", "due_at")),
        sa.PrimaryKeyConstraint("device", "kind", "part", name=op.f("pk_alert_member")),
    )
    op.create_index("ix_alert_member_alert", "alert_member", ["alert_key", "state", "since_at"])
    op.create_index(
        "ix_alert_member_due", "alert_member", ["due_at"], sqlite_where=sa.text("due_at > 0")
    )
    op.create_table(
        "alert_event",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        _count("alert"),
        _number("at"),
        *map(_text, ("what", "actor", "note")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alert_event")),
    )
    op.create_index("ix_alert_event_alert", "alert_event", ["alert", "id"])
    op.create_index("ix_alert_event_at", "alert_event", ["at"])
    op.create_table(
        "silence",
        sa.Column("id", sa.String(16), nullable=False),
        sa.Column("select", sa.JSON(), nullable=False),
        _text("reason"),
        *map(_number, ("begins_at", "ends_at", "created_at")),
        _text("created_by"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_silence")),
    )
    op.create_index("ix_silence_ends", "silence", ["ends_at"])
    op.create_table(
        "device_rhythm",
        sa.Column("device", sa.String(63), nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        _number("due_at"),
        sa.PrimaryKeyConstraint("device", name=op.f("pk_device_rhythm")),
    )
    op.create_index(
        "ix_device_rhythm_due", "device_rhythm", ["due_at"], sqlite_where=sa.text("due_at > 0")
    )
    # Each known device is looked at once; what it is due then is computed from its state.
    op.execute(
        "INSERT INTO device_rhythm (device, state, due_at) "
        "SELECT name, x'', 1 FROM device WHERE state = 'enrolled' AND seen_at > 0"
    )
