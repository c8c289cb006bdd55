"""An index of devices by the end of their certificate"""

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_device_certificate", "device", ["certificate_expires_at"])
