"""Counts of stages, when a rollout is looked at next, and indexes for what changed"""

from collections import defaultdict
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_ENDING = ("STOPPING", "STOPPED", "ROLLING_BACK", "ROLLED_BACK")
_DONE = "~"  # rollouts.revert.DONE: the orders of all of its devices were withdrawn


def upgrade() -> None:
    with op.batch_alter_table("rollout", schema=None) as batch_op:
        for name in ("due_at", "look_at"):
            batch_op.add_column(sa.Column(name, sa.Float(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("cursor", sa.Text(), server_default="", nullable=False))
        batch_op.drop_index("ix_rollout_state")
        batch_op.create_index("ix_rollout_state", ["state", "due_at"])
    with op.batch_alter_table("rollout_device", schema=None) as batch_op:
        batch_op.add_column(sa.Column("ordered_at", sa.Float(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("boot", sa.Text(), server_default="", nullable=False))
        batch_op.add_column(sa.Column("seq", sa.Integer(), server_default="0", nullable=False))
        batch_op.create_index("ix_rollout_device_stage", ["rollout", "stage", "state"])
    counts = op.create_table(
        "rollout_count",
        sa.Column("rollout", sa.String(16), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        *(
            sa.Column(name, sa.Integer(), server_default="0", nullable=False)
            for name in ("devices", "comparing", "compared", "disagreed")
        ),
        sa.ForeignKeyConstraint(
            ["rollout"], ["rollout.id"], name=op.f("fk_rollout_count_rollout_rollout")
        ),
        sa.PrimaryKeyConstraint("rollout", "stage", "state", name=op.f("pk_rollout_count")),
    )
    unsent = sa.text("sent_version < version")
    op.create_index(
        "ix_assignment_unsent", "assignment", ["device"],
        sqlite_where=unsent, postgresql_where=unsent,
    )  # fmt: skip
    op.create_index("ix_assignment_expires", "assignment", ["expires_at"])
    op.create_index("ix_device_enrolled", "device", ["enrolled_at"])
    _fill(op.get_bind(), counts)


def _fill(db: sa.Connection, counts: sa.Table) -> None:
    """Counts and times of the rollouts that there are."""
    names = ("rollout", "device", "stage", "state", "ordered_at")
    rows = sa.table("rollout_device", *map(sa.column, names), sa.column("facts", sa.JSON))
    found: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    ordered = []
    for row in db.execute(sa.select(rows)):
        facts: dict[str, Any] = row.facts or {}
        compared = facts.get("compared", 0)
        disagreed = round(facts.get("disagree", 0.0) * compared)
        sums = found[row.rollout, row.stage, row.state]
        for i, value in enumerate((1, int(compared > 0), compared, disagreed)):
            sums[i] += value
        if "assigned_at" in facts:
            ordered.append({"r": row.rollout, "d": row.device, "ordered_at": facts["assigned_at"]})
    if ordered:
        mine = (rows.c.rollout == sa.bindparam("r")) & (rows.c.device == sa.bindparam("d"))
        db.execute(sa.update(rows).where(mine), ordered)
    if found:
        columns = ("rollout", "stage", "state", "devices", "comparing", "compared", "disagreed")
        db.execute(
            counts.insert(),
            [dict(zip(columns, (*key, *sums), strict=True)) for key, sums in found.items()],
        )
    whole = sa.table("rollout", sa.column("state"), sa.column("cursor"))
    db.execute(sa.update(whole).where(whole.c.state.in_(_ENDING)).values(cursor=_DONE))
