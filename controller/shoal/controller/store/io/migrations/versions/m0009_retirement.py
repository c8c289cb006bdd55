"""Models and releases that are retired"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("model", "release"):
        with op.batch_alter_table(name, schema=None) as batch_op:
            batch_op.add_column(
                sa.Column("retired_at", sa.Float(), server_default="0", nullable=False)
            )
            batch_op.add_column(
                sa.Column("retired_by", sa.Text(), server_default="", nullable=False)
            )
