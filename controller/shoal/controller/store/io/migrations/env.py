"""Alembic environment: runs migrations in the transaction that Store opened."""

from alembic import context

from shoal.controller.store import (  # noqa: F401 (their tables are in the metadata)
    alert_tables,
    drift_tables,
    flood_tables,
    group_tables,
    mlflow_tables,
    notification_tables,
    rollout_tables,
    run_tables,
    tables,
    window_tables,
)
from shoal.controller.store.columns import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite alters a table by copying it
    compare_type=True,
)
context.run_migrations()
