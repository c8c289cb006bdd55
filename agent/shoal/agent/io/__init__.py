"""Adapters: everything of the agent that touches disk, network, clock or onnxruntime."""
