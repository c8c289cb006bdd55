"""BentoML's service around an ONNX file, as its documentation has it. MODEL names the file."""

# Its libraries are in the peer's own environment, not in this one.
# mypy: ignore-errors

import os

import bentoml
import numpy as np
import onnxruntime


@bentoml.service(workers=1)
class Predictor:
    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            os.environ["MODEL"], options, providers=["CPUExecutionProvider"]
        )

    @bentoml.api
    def predict(self, rows: list[list[float]]) -> list[list[float]]:
        return self._session.run(None, {"input": np.array(rows, np.float32)})[0].tolist()
