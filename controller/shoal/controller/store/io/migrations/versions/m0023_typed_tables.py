"""Tables are stored as typed Parquet, and known by their rows"""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("dataset", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("content_sha256", sa.Text(), server_default="", nullable=False)
        )
