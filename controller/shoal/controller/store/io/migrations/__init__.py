"""Alembic's environment and the schema's versions; none is edited once it is released."""
