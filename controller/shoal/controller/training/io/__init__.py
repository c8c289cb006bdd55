"""scikit-learn, skl2onnx and onnxruntime."""
