"""Failed, slow and wrong answers of a model on a device, against its own past"""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "device_share",
        sa.Column("device", sa.String(63), nullable=False),
        sa.Column("model", sa.String(80), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("release", sa.Text(), server_default="", nullable=False),
        sa.Column("trials", sa.Integer(), server_default="0", nullable=False),
        sa.Column("hits", sa.Integer(), server_default="0", nullable=False),
        sa.Column("score", sa.Float(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("device", "model", "kind", name=op.f("pk_device_share")),
    )
