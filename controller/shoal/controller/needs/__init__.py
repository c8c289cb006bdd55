"""What needs a person, over all domains."""
