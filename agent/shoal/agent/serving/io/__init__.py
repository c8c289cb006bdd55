"""onnxruntime, the local endpoint, and programs with a session of their own."""
