"""Files and thread of federated rounds."""
