"""SQLite, and the schema's migrations."""
