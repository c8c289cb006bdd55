"""Looks of behaviour gates, and what they were computed from"""

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "gate_look",
        sa.Column("rollout", sa.String(length=16), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("since", sa.Float(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("outcome", sa.Text(), server_default="", nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.Column("receipt", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("rollout", "stage", "since", "at", name=op.f("pk_gate_look")),
    )
    op.create_index("ix_gate_look_at", "gate_look", ["at"])
    op.create_table(
        "gate_input",
        sa.Column("rollout", sa.String(length=16), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("at", sa.Float(), server_default="0", nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("rollout", "sha256", name=op.f("pk_gate_input")),
    )
    op.create_index("ix_gate_input_at", "gate_input", ["at"])
