"""How the CSV file of a dataset is read, and which of its rows are not used"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("dataset", schema=None) as batch_op:
        batch_op.add_column(sa.Column("csv", sa.JSON(), nullable=True))
        batch_op.add_column(sa.Column("left_out", sa.JSON(), server_default="[]", nullable=False))
        batch_op.add_column(
            sa.Column("duplicates", sa.Integer(), server_default="0", nullable=False)
        )
