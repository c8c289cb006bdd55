"""What deleted releases and datasets leave: their version numbers, and files to be freed"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "used_version",
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("version", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("kind", "name", name=op.f("pk_used_version")),
    )
    op.create_table(
        "unused_file",
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("written_at", sa.Float(), server_default="0", nullable=False),
        sa.Column("at", sa.Float(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_unused_file")),
    )
