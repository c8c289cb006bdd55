"""Baselines of drift as a list that people can change, and the changes that they asked for"""

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "drift_baseline",
        sa.Column("scope", sa.String(length=8), nullable=False),
        sa.Column("subject", sa.String(length=63), nullable=False),
        sa.Column("model", sa.String(length=63), nullable=False),
        sa.Column("release", sa.String(length=80), nullable=False),
        sa.Column("site", sa.Text(), server_default="", nullable=False),
        sa.Column("state", sa.Text(), server_default="", nullable=False),
        sa.Column("drifting", sa.JSON(), nullable=False),
        sa.Column("began_at", sa.Float(), server_default="0", nullable=False),
        sa.Column("updated_at", sa.Float(), server_default="0", nullable=False),
        sa.Column("frozen_at", sa.Float(), server_default="0", nullable=False),
        sa.Column("change", sa.Text(), server_default="", nullable=False),
        sa.Column("changed_by", sa.Text(), server_default="", nullable=False),
        sa.Column("changed_at", sa.Float(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint(
            "scope", "subject", "model", "release", name=op.f("pk_drift_baseline")
        ),
    )
    op.create_index(
        "ix_drift_baseline_order",
        "drift_baseline",
        ["model", "site", "scope", "subject", "release"],
    )
    op.create_table(
        "baseline_change",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("action", sa.Text(), server_default="", nullable=False),
        sa.Column("model", sa.Text(), server_default="", nullable=False),
        sa.Column("release", sa.Text(), server_default="", nullable=False),
        sa.Column("device", sa.Text(), server_default="", nullable=False),
        sa.Column("site", sa.Text(), server_default="", nullable=False),
        sa.Column("features", sa.JSON(), nullable=False),
        sa.Column("asked_by", sa.Text(), server_default="", nullable=False),
        sa.Column("asked_at", sa.Float(), server_default="0", nullable=False),
        sa.Column("baselines", sa.Integer(), server_default="0", nullable=False),
        sa.Column("changed", sa.Integer(), server_default="0", nullable=False),
        sa.Column("skipped", sa.Integer(), server_default="0", nullable=False),
        sa.Column("why_skipped", sa.Text(), server_default="", nullable=False),
        sa.Column("after", sa.JSON(), nullable=False),
        sa.Column("done_at", sa.Float(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_baseline_change")),
    )
    op.create_index("ix_baseline_change_done", "baseline_change", ["done_at"])
    # of what is learnt already; the next window of each says the rest
    op.execute(
        "INSERT INTO drift_baseline (scope, subject, model, release, site, state, drifting,"
        " began_at, updated_at)"
        " SELECT s.scope, s.subject, s.model, s.release,"
        " CASE s.scope WHEN 'site' THEN s.subject ELSE COALESCE(d.site, '') END,"
        " 'learning', '[]', s.saved_at, s.saved_at"
        " FROM drift_state s LEFT JOIN device d ON d.name = s.subject AND s.scope = 'device'"
    )
