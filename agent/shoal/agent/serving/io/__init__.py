"""Adapters: onnxruntime, the local endpoint, the SDK (Client, Session) and its spools."""
