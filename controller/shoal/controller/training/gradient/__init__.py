"""The training step as an ONNX graph: reverse-mode differentiation with onnx and numpy only.

Read in this order: make (the graphs), forward (the model's graph), reverse (backpropagation),
registry (operators with a gradient), then one file per family of operators.
"""
