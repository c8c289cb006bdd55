"""The queue between the link to the broker and ingest."""
