"""States of the drift decision in place of baselines; findings say what moved, and how far

Baselines are dropped: the decision learns what is usual from the windows that come. So are the old
columns of the heatmap. Findings are kept.
"""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_table("baseline")
    op.create_table(
        "drift_state",
        sa.Column("scope", sa.String(length=8), nullable=False),
        sa.Column("subject", sa.String(length=63), nullable=False),
        sa.Column("model", sa.String(length=63), nullable=False),
        sa.Column("release", sa.String(length=80), nullable=False),
        sa.Column("saved_at", sa.Float(), server_default="0", nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint(
            "scope", "subject", "model", "release", name=op.f("pk_drift_state")
        ),
    )
    op.create_index("ix_drift_state_saved", "drift_state", ["saved_at"])
    op.drop_table("drift_point")
    op.create_table(
        "drift_point",
        sa.Column("scope", sa.String(length=8), nullable=False),
        sa.Column("subject", sa.String(length=63), nullable=False),
        sa.Column("model", sa.String(length=63), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("release", sa.Text(), server_default="", nullable=False),
        sa.Column("windows", sa.Integer(), server_default="0", nullable=False),
        sa.Column("covered", sa.Integer(), nullable=False),
        sa.Column("log10_p", sa.LargeBinary(), nullable=False),
        sa.Column("moved", sa.LargeBinary(), nullable=False),
        sa.Column("alarmed", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "subject", "model", "at", name=op.f("pk_drift_point")),
    )
    op.create_index("ix_drift_point_at", "drift_point", ["at"])
    _findings()


def _findings() -> None:
    op.drop_index("ix_finding_at", "finding")
    op.rename_table("finding", "old_finding")
    op.create_table(
        "finding",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("at", sa.Float(), server_default="0", nullable=False),
        sa.Column("kind", sa.Text(), server_default="", nullable=False),
        sa.Column("scope", sa.Text(), server_default="", nullable=False),
        sa.Column("subject", sa.Text(), server_default="", nullable=False),
        sa.Column("model", sa.Text(), server_default="", nullable=False),
        sa.Column("release", sa.Text(), server_default="", nullable=False),
        sa.Column("feature", sa.Text(), server_default="", nullable=False),
        sa.Column("channel", sa.Text(), server_default="", nullable=False),
        sa.Column("what", sa.Text(), server_default="", nullable=False),
        sa.Column("log10_p", sa.Float(), server_default="0", nullable=False),
        sa.Column("log10_alpha", sa.Float(), server_default="0", nullable=False),
        sa.Column("moved", sa.Float(), server_default="0", nullable=False),
        sa.Column("psi", sa.Float(), server_default="0", nullable=False),
        sa.Column("rows", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_finding")),
        sa.UniqueConstraint(
            "kind", "scope", "subject", "model", "release", "feature", "at",
            name=op.f("uq_finding_kind"),
        ),
    )  # fmt: skip
    kept = (
        '"id", "at", "kind", "scope", "subject", "model", "release", "feature", "log10_p", '
        '"log10_alpha", "psi", "rows"'
    )
    op.execute(
        f"INSERT OR IGNORE INTO finding ({kept}) SELECT {kept} FROM old_finding"  # noqa: S608
    )
    op.drop_table("old_finding")
    op.create_index("ix_finding_at", "finding", ["at"])
