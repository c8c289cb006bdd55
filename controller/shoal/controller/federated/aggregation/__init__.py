"""From client updates on disk to the next checkpoint: checks, outlier scores, aggregation."""
