"""MLflow: mirrored runs, followed aliases and the versions that they named"""

import sqlalchemy as sa
from alembic import op

revision = "0033"
down_revision = "0032"
branch_labels = None
depends_on = None


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), server_default="", nullable=False)


def _number(name: str) -> sa.Column[float]:
    return sa.Column(name, sa.Float(), server_default="0", nullable=False)


def upgrade() -> None:
    op.create_table(
        "mlflow_run",
        sa.Column("run", sa.String(64), primary_key=True),
        _text("remote"),
        _number("due_at"),
        _number("sent_at"),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        _text("error"),
    )
    op.create_index("ix_mlflow_run_due", "mlflow_run", ["due_at"])
    op.create_table(
        "mlflow_follow",
        sa.Column("name", sa.String(300), primary_key=True),
        _text("model"),
        sa.Column("rule", sa.JSON(), nullable=False),
        _number("created_at"),
        _text("created_by"),
        _text("version"),
        _number("checked_at"),
        _text("error"),
    )
    op.create_table(
        "mlflow_version",
        sa.Column("follow", sa.String(300), primary_key=True),
        sa.Column("version", sa.Integer(), primary_key=True),
        _text("state"),
        _text("operation"),
        _text("release"),
        _text("rollout"),
        _text("reason"),
        _number("seen_at"),
        _number("ended_at"),
        _text("tags"),
        _text("written"),
    )
    op.create_index("ix_mlflow_version_open", "mlflow_version", ["ended_at"])
