"""MLServer's custom runtime for an ONNX file, as its documentation has it."""

# Its libraries are in the peer's own environment, not in this one.
# mypy: ignore-errors

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Onnx(MLModel):
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            self.settings.parameters.uri, options, providers=["CPUExecutionProvider"]
        )
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = NumpyCodec.decode_input(payload.inputs[0])
        said = self._session.run(None, {"input": rows})[0]
        output = NumpyCodec.encode_output("output", said)
        return InferenceResponse(model_name=self.name, outputs=[output])
