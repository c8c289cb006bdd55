"""Files, keys, child processes, TLS servers."""
