"""The database: tables, records, the change log, cursors."""
