"""Files, message queue and thread of federated rounds."""
