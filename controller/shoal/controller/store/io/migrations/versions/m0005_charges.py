"""Quarantined rounds: set by a user, or derived from another round"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("federated_round", schema=None) as batch_op:
        batch_op.add_column(sa.Column("charge", sa.Text(), server_default="", nullable=False))
    op.execute(
        "UPDATE federated_round SET charge = poisoned "
        "WHERE state = 'DONE' AND poisoned NOT LIKE 'it came of round %'"
    )
