"""The slots and the journal on disk."""
