"""Datasets of images, audio and tensors"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("dataset", schema=None) as batch_op:
        batch_op.add_column(sa.Column("kind", sa.Text(), server_default="table", nullable=False))
        batch_op.add_column(sa.Column("contents", sa.JSON(), nullable=True))
