"""Tables of MLflow: see store.tables."""

from sqlalchemy import Column, Index, String, Table

from shoal.controller.store.columns import metadata

mlflow_import = Table(  # operations that imported a version, "press/3"
    "mlflow_import",
    metadata,
    Column("operation", String(64), primary_key=True),
    Column("name", String(300), nullable=False),
    Index("ix_mlflow_import_name", "name"),
)
