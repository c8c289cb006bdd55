"""Time at which a round's checkpoint file was deleted"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("federated_round", schema=None) as batch_op:
        batch_op.add_column(sa.Column("pruned_at", sa.Float(), server_default="0", nullable=False))
