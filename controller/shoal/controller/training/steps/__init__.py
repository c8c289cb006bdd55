"""Declared pre- and post-processing: steps that become part of a model's ONNX graph at import."""
