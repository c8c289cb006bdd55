"""Federated task that drift of a model triggers, and its cooldown"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("model", schema=None) as batch_op:
        batch_op.add_column(sa.Column("task", sa.Text(), server_default="", nullable=False))
        batch_op.add_column(sa.Column("rounds", sa.Integer(), server_default="10", nullable=False))
        batch_op.add_column(
            sa.Column("cooldown_s", sa.Float(), server_default="86400", nullable=False)
        )
        batch_op.add_column(sa.Column("asked_at", sa.Float(), server_default="0", nullable=False))
