"""FastAPI and onnxruntime, as its guides have it: a typed body, a sync endpoint's work inline.

`python fastapi_app.py MODEL.onnx PORT`
"""

# Its libraries are in the peer's own environment, not in this one.
# mypy: ignore-errors

import sys

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
app = FastAPI()


class Rows(BaseModel):
    rows: list[list[float]]


@app.post("/predict")
async def predict(given: Rows) -> dict[str, list[list[float]]]:
    said = session.run(None, {"input": np.array(given.rows, np.float32)})[0]
    return {"output": said.tolist()}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error", access_log=False)
