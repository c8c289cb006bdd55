"""Generation of enrolments, clock skew of devices, time limit of operations"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("device", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("generation", sa.Integer(), server_default="0", nullable=False)
        )
        batch_op.add_column(
            sa.Column("clock_skew_s", sa.Float(), server_default="0", nullable=False)
        )
        batch_op.add_column(
            sa.Column("clock_error_s", sa.Float(), server_default="-1", nullable=False)
        )
    with op.batch_alter_table("operation", schema=None) as batch_op:
        batch_op.add_column(sa.Column("limit_s", sa.Float(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("canceled_by", sa.Text(), server_default="", nullable=False))


def downgrade() -> None:
    with op.batch_alter_table("operation", schema=None) as batch_op:
        batch_op.drop_column("canceled_by")
        batch_op.drop_column("limit_s")
    with op.batch_alter_table("device", schema=None) as batch_op:
        batch_op.drop_column("clock_error_s")
        batch_op.drop_column("clock_skew_s")
        batch_op.drop_column("generation")
