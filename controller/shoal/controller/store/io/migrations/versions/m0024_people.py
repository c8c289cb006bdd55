"""Disabled users, one-time passwords, scopes of tokens, addresses of sessions and changes"""

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("disabled_at", "password_expires_at"):
        op.add_column("user", sa.Column(name, sa.Float(), server_default="0", nullable=False))
    for table, names in {
        "session": ("address", "agent"),
        "audit": ("address",),
    }.items():
        for name in names:
            op.add_column(table, sa.Column(name, sa.Text(), server_default="", nullable=False))
    for name in ("models", "sites"):
        op.add_column("api_token", sa.Column(name, sa.JSON(), server_default="[]", nullable=False))
    for name in ("actor", "verb", "subject"):
        op.create_index(f"ix_audit_{name}", "audit", [name, "id"])
