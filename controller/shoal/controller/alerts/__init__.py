"""What a person should know of: kinds, texts, and the open ones."""
