"""Channels of notifications, their outbox, and each attempt"""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), server_default="", nullable=False)


def _number(name: str) -> sa.Column[float]:
    return sa.Column(name, sa.Float(), server_default="0", nullable=False)


def upgrade() -> None:
    op.create_table(
        "channel",
        sa.Column("name", sa.String(63), nullable=False),
        *map(_text, ("kind", "target", "severity")),
        sa.Column("sites", sa.JSON(), nullable=False),
        *map(_text, ("quiet", "zone")),
        sa.Column("escalated_only", sa.Boolean(), server_default="0", nullable=False),
        *map(_number, ("digest_s", "created_at")),
        _text("created_by"),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_channel")),
    )
    op.create_table(
        "delivery",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("channel", sa.String(63), nullable=False),
        _text("state"),
        sa.Column("events", sa.JSON(), nullable=False),
        *map(_number, ("created_at", "due_at")),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        _text("error"),
        _number("ended_at"),
        sa.ForeignKeyConstraint(
            ["channel"], ["channel.name"], name=op.f("fk_delivery_channel_channel")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_delivery")),
    )
    op.create_index("ix_delivery_channel", "delivery", ["channel", "created_at"])
    op.create_index("ix_delivery_created", "delivery", ["created_at"])
    op.create_index("ix_delivery_due", "delivery", ["due_at"], sqlite_where=sa.text("due_at > 0"))
    op.create_table(
        "delivery_attempt",
        sa.Column("delivery", sa.String(32), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        *map(_number, ("began_at", "ended_at")),
        *map(_text, ("outcome", "error")),
        sa.ForeignKeyConstraint(
            ["delivery"], ["delivery.id"], name=op.f("fk_delivery_attempt_delivery_delivery")
        ),
        sa.PrimaryKeyConstraint("delivery", "number", name=op.f("pk_delivery_attempt")),
    )
