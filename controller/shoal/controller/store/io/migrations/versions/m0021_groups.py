"""Groups, what they run, trailing stages, overrides of devices, and the queues of what changed

What finished before is nobody's desired state: the next rollout of a model is the first.
"""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), server_default="", nullable=False)


def _number(name: str) -> sa.Column[float]:
    return sa.Column(name, sa.Float(), server_default="0", nullable=False)


def upgrade() -> None:
    groups = op.create_table(
        "device_group",
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("selector", sa.Text(), nullable=False),
        sa.Column("select", sa.JSON(), nullable=False),
        _number("created_at"),
        _text("created_by"),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_device_group")),
        sa.UniqueConstraint("selector", name=op.f("uq_device_group_selector")),
    )
    op.create_table(
        "group_release",
        sa.Column("group", sa.String(120), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        _text("release"),
        _text("rollout"),
        _number("since"),
        _text("reason"),
        sa.Column("before", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("group", "model", name=op.f("pk_group_release")),
    )
    op.create_index("ix_group_release_rollout", "group_release", ["rollout"])
    op.create_table(
        "trailing_stage",
        sa.Column("rollout", sa.String(16), nullable=False),
        _text("state"),
        _text("reason"),
        _number("since"),
        _number("due_at"),
        sa.PrimaryKeyConstraint("rollout", name=op.f("pk_trailing_stage")),
    )
    op.create_index("ix_trailing_stage_state", "trailing_stage", ["state", "due_at"])
    op.create_table(
        "device_override",
        sa.Column("device", sa.String(63), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        _text("release"),
        _text("reason"),
        _number("created_at"),
        _text("created_by"),
        sa.PrimaryKeyConstraint("device", "kind", "model", name=op.f("pk_device_override")),
    )
    op.create_table(
        "changed_device",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("device", sa.String(63), nullable=False),
        _text("why"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_changed_device")),
    )
    op.create_table(
        "device_sweep",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("select", sa.JSON(), nullable=False),
        _text("after"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_device_sweep")),
    )
    op.create_table(
        "deviation",
        sa.Column("device", sa.String(63), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        _text("group"),
        _text("want"),
        _text("state"),
        _text("why"),
        _number("since"),
        sa.PrimaryKeyConstraint("device", "model", name=op.f("pk_deviation")),
    )
    op.create_index("ix_deviation_group", "deviation", ["group", "model", "device"])
    op.create_index("ix_deviation_state", "deviation", ["state"])
    op.bulk_insert(
        groups, [{"name": "fleet", "selector": "fleet", "select": {}, "created_by": "shoal"}]
    )
