"""When the rows of a table were erased because a subject asked for it; 0 for never"""

import sqlalchemy as sa
from alembic import op

revision = "0034"
down_revision = "0033"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("dataset", schema=None) as batch_op:
        batch_op.add_column(sa.Column("erased_at", sa.Float(), server_default="0", nullable=False))
