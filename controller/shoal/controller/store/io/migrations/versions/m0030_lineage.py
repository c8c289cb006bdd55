"""Indexes by which lineage is followed: from datasets, alerts and releases to what came of them"""

from alembic import op

revision = "0030"
down_revision = "0029"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_release_dataset", "release", ["dataset"])
    op.create_index("ix_release_trigger", "release", ["trigger"])
    op.create_index("ix_rollout_release", "rollout", ["release"])
    op.create_index("ix_alert_release", "alert", ["release"])
