"""What is installed: slots on disk, update records and floors in the journal."""
