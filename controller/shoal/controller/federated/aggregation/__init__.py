"""From client updates on disk to the next checkpoint: checks, scores, sums."""
