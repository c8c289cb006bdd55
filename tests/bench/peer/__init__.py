"""The peers' own servers: each runs in an environment of its own, and imports nothing of Shoal."""
