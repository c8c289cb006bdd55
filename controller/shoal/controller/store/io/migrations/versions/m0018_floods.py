"""Devices that send more than their budget"""

from alembic import op
from sqlalchemy import Column, Float, Integer, String

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "flood",
        Column("device", String(63), primary_key=True),
        Column("since", Float, nullable=False),
        Column("refused_at", Float, nullable=False),
        Column("messages", Integer, nullable=False),
        Column("bytes", Integer, nullable=False),
        Column("cut_until", Float, nullable=False),
        Column("cuts", Integer, nullable=False),
    )
    op.create_index("ix_flood_cut", "flood", ["cut_until"])
