"""What devices send, into the database: exactly once."""
