"""Training, export, quantization and measurement: scikit-learn, skl2onnx and onnxruntime."""

import os

# Read at onnxruntime's import: without it, wheels from 1.29 on keep a telemetry database.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
