"""Runs: trainings and imports with metrics, parameters and tags that can be searched

Metrics and parameters of releases that there are become those of their runs.
"""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None

_KEPT = """
INSERT OR IGNORE INTO run_value (run, kind, name, number, value)
SELECT r.operation, :kind, substr(j.key, 1, 120),
       CASE WHEN j.type IN ('integer', 'real') THEN CAST(j.value AS REAL) END,
       CASE WHEN j.type IN ('integer', 'real') THEN ''
            WHEN j.type IN ('true', 'false') THEN j.type
            ELSE substr(trim(j.value, '[]'), 1, 500) END
FROM "release" r JOIN operation o ON o.id = r.operation, json_each(r.report, :path) j
WHERE j.type IN ('integer', 'real', 'text', 'true', 'false', 'array') AND j.value <> '[]'
"""


def upgrade() -> None:
    op.create_table(
        "run",
        sa.Column("operation", sa.String(length=32), nullable=False),
        sa.Column("main", sa.Text(), server_default="", nullable=False),
        sa.Column("note", sa.Text(), server_default="", nullable=False),
        sa.Column("environment", sa.JSON(), server_default="{}", nullable=False),
        sa.Column("curves", sa.JSON(), server_default="{}", nullable=False),
        sa.ForeignKeyConstraint(
            ["operation"], ["operation.id"], name=op.f("fk_run_operation_operation")
        ),
        sa.PrimaryKeyConstraint("operation", name=op.f("pk_run")),
    )
    op.create_table(
        "run_value",
        sa.Column("run", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("name", sa.String(length=120), nullable=False),
        sa.Column("number", sa.Float(), nullable=True),
        sa.Column("value", sa.Text(), server_default="", nullable=False),
        sa.ForeignKeyConstraint(["run"], ["operation.id"], name=op.f("fk_run_value_run_operation")),
        sa.PrimaryKeyConstraint("run", "kind", "name", name=op.f("pk_run_value")),
    )
    op.create_index("ix_run_value_number", "run_value", ["kind", "name", "number", "run"])
    op.create_index("ix_run_value_text", "run_value", ["kind", "name", "value", "run"])
    op.create_index("ix_operation_created", "operation", ["created_at", "id"])
    op.create_index("ix_operation_subject", "operation", ["subject", "created_at", "id"])
    op.create_index("ix_release_operation", "release", ["operation"])
    for kind, path in (("metric", "$.metrics"), ("param", "$.params")):
        op.get_bind().execute(sa.text(_KEPT), {"kind": kind, "path": path})
