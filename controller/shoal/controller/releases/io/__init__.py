"""TUF signing, blobs, artifacts and deltas."""
