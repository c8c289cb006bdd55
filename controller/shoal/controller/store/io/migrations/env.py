"""Alembic environment: runs migrations in the transaction that Store opened."""

from alembic import context

from shoal.controller.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite alters a table by copying it
    compare_type=True,
)
context.run_migrations()
