"""Operations that imported a version of an MLflow model, to follow its lineage"""

import sqlalchemy as sa
from alembic import op

revision = "0032"
down_revision = "0031"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "mlflow_import",
        sa.Column("operation", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(300), nullable=False),
    )
    op.create_index("ix_mlflow_import_name", "mlflow_import", ["name"])
