"""Model updates: orders, download, probe, acceptance, rollback."""
