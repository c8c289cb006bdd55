"""Training, import and quantization: from a job to what a release needs."""
