"""Federated tasks, rounds and participations"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "federated_task",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("model", sa.Text(), server_default="", nullable=False),
        sa.Column("release", sa.Text(), server_default="", nullable=False),
        sa.Column("state", sa.Text(), server_default="", nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("plan", sa.JSON(), nullable=False),
        sa.Column("prepared", sa.JSON(), nullable=False),
        sa.Column("operation", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at", sa.Float(), server_default="0", nullable=False),
        sa.Column("created_by", sa.Text(), server_default="", nullable=False),
        sa.Column("rounds", sa.Integer(), server_default="0", nullable=False),
        sa.Column("asked", sa.Integer(), server_default="0", nullable=False),
        sa.Column("checkpoint", sa.Text(), server_default="", nullable=False),
        sa.Column("memory", sa.Text(), server_default="", nullable=False),
        sa.Column("parent", sa.Integer(), server_default="0", nullable=False),
        sa.Column("spent", sa.JSON(), nullable=False),
        sa.Column("epsilon", sa.Float(), server_default="0", nullable=False),
        sa.Column("next_at", sa.Float(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_federated_task")),
    )
    op.create_table(
        "federated_round",
        sa.Column("id", sa.String(length=80), nullable=False),
        sa.Column("task", sa.String(length=63), nullable=False),
        sa.Column("number", sa.Integer(), server_default="0", nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("state", sa.Text(), server_default="", nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("journal", sa.JSON(), nullable=False),
        sa.Column("plan", sa.JSON(), nullable=False),
        sa.Column("parent", sa.Integer(), server_default="0", nullable=False),
        sa.Column("theta", sa.Text(), server_default="", nullable=False),
        sa.Column("old_memory", sa.Text(), server_default="", nullable=False),
        sa.Column("checkpoint", sa.Text(), server_default="", nullable=False),
        sa.Column("memory", sa.Text(), server_default="", nullable=False),
        sa.Column("result", sa.JSON(), nullable=False),
        sa.Column("started_at", sa.Float(), server_default="0", nullable=False),
        sa.Column("ended_at", sa.Float(), server_default="0", nullable=False),
        sa.Column("poisoned", sa.Text(), server_default="", nullable=False),
        sa.ForeignKeyConstraint(
            ["task"], ["federated_task.name"], name=op.f("fk_federated_round_task_federated_task")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_federated_round")),
    )
    with op.batch_alter_table("federated_round", schema=None) as batch_op:
        batch_op.create_index("ix_federated_round_state", ["state"], unique=False)
        batch_op.create_index(
            "ix_federated_round_task", ["task", "number", "attempt"], unique=False
        )

    op.create_table(
        "participation",
        sa.Column("round", sa.String(length=80), nullable=False),
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("site", sa.Text(), server_default="", nullable=False),
        sa.Column("task", sa.Text(), server_default="", nullable=False),
        sa.Column("number", sa.Integer(), server_default="0", nullable=False),
        sa.Column("mark", sa.Text(), server_default="", nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("examples", sa.Integer(), server_default="0", nullable=False),
        sa.Column("loss", sa.Float(), nullable=True),
        sa.Column("norm", sa.Float(), nullable=True),
        sa.Column("cosine", sa.Float(), nullable=True),
        sa.Column("suspect", sa.Text(), server_default="", nullable=False),
        sa.Column("seconds", sa.Float(), server_default="0", nullable=False),
        sa.Column("bytes", sa.Integer(), server_default="0", nullable=False),
        sa.Column("chosen", sa.Boolean(), server_default="0", nullable=False),
        sa.ForeignKeyConstraint(
            ["round"], ["federated_round.id"], name=op.f("fk_participation_round_federated_round")
        ),
        sa.PrimaryKeyConstraint("round", "device", name=op.f("pk_participation")),
    )
    with op.batch_alter_table("participation", schema=None) as batch_op:
        batch_op.create_index("ix_participation_device", ["task", "device", "number"], unique=False)


def downgrade() -> None:
    op.drop_table("participation")
    op.drop_table("federated_round")
    op.drop_table("federated_task")
