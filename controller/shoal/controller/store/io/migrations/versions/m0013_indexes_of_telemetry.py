"""Indexes by which monitoring and retention read only what they need"""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    received = ["device", "model", "release", "received_at"]
    op.create_index("ix_window_device_received", "window", received)
    op.create_index("ix_device_event_received", "device_event", ["received_at"])
    op.create_index("ix_drift_point_at", "drift_point", ["at"])
