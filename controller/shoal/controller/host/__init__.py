"""Settings, and the context of every use case."""
