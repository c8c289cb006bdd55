"""Model serving: sessions, the inference endpoint, windows, labels, throttling."""
