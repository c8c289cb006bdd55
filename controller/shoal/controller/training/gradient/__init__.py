"""The training step as an ONNX graph: reverse-mode differentiation with onnx and numpy only.

Read in this order: make (what comes out), forward (what goes in), reverse (the sweep), registry
(which operators have a gradient), then the families of gradients, one file each.
"""
