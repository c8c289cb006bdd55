"""Undeployments: devices that are ordered to remove a model"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "undeployment",
        sa.Column("id", sa.String(16), nullable=False),
        sa.Column("model", sa.Text(), server_default="", nullable=False),
        sa.Column("select", sa.JSON(), nullable=False),
        sa.Column("named", sa.JSON(), nullable=False),
        sa.Column("state", sa.Text(), server_default="", nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("cursor", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at", sa.Float(), server_default="0", nullable=False),
        sa.Column("created_by", sa.Text(), server_default="", nullable=False),
        sa.Column("finished_at", sa.Float(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_undeployment")),
    )
    op.create_index("ix_undeployment_state", "undeployment", ["state"])
    op.create_table(
        "undeployment_device",
        sa.Column("undeployment", sa.String(16), nullable=False),
        sa.Column("device", sa.String(63), nullable=False),
        sa.Column("state", sa.Text(), server_default="", nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("detail", sa.Text(), server_default="", nullable=False),
        sa.Column("updated_at", sa.Float(), server_default="0", nullable=False),
        sa.ForeignKeyConstraint(
            ["undeployment"],
            ["undeployment.id"],
            name=op.f("fk_undeployment_device_undeployment_undeployment"),
        ),
        sa.PrimaryKeyConstraint("undeployment", "device", name=op.f("pk_undeployment_device")),
    )
    op.create_index(
        "ix_undeployment_device_state", "undeployment_device", ["undeployment", "state"]
    )
