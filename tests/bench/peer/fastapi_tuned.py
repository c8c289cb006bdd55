"""FastAPI at its fastest: the raw body, orjson both ways, a bare Response, no validation.

uvicorn runs it on uvloop with httptools. `python fastapi_tuned.py MODEL.onnx PORT`
"""

# Its libraries are in the peer's own environment, not in this one.
# mypy: ignore-errors

import sys

import numpy as np
import onnxruntime
import orjson
import uvicorn
from fastapi import FastAPI, Request, Response

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
app = FastAPI(openapi_url=None)


@app.get("/ready")
async def ready() -> Response:
    return Response()


@app.post("/predict")
async def predict(request: Request) -> Response:
    given = orjson.loads(await request.body())
    said = session.run(names, {"input": np.array(given["rows"], np.float32)})[0]
    body = orjson.dumps({"output": said}, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, media_type="application/json")


if __name__ == "__main__":
    uvicorn.run(
        app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error", access_log=False,
        loop="uvloop", http="httptools", lifespan="off",
    )  # fmt: skip
