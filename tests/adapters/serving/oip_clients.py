"""Third-party clients, run by .venv-clients/bin/python: `oip_clients.py WHICH URL MODEL`.

Uses every call of the protocol, and prints the results as one JSON object.
"""

import asyncio
import json
import sys
from typing import Any

import numpy as np

ROWS = np.array([[0.5, -0.5], [1, 2]], np.float32)


def triton(url: str, model: str, *, binary: bool) -> dict[str, Any]:
    import tritonclient.http as http
    from tritonclient.utils import InferenceServerException

    client = http.InferenceServerClient(url.removeprefix("http://"), concurrency=2)
    given = http.InferInput("input", list(ROWS.shape), "FP32")
    given.set_data_from_numpy(ROWS, binary_data=binary)
    wanted = http.InferRequestedOutput("output", binary_data=binary)
    found = client.infer(model, [given], outputs=[wanted], request_id="7")
    everything = client.infer(model, [given], model_version="3")
    later = client.async_infer(model, [given]).get_result()
    wrong = http.InferInput("nope", list(ROWS.shape), "FP32")
    wrong.set_data_from_numpy(ROWS, binary_data=binary)
    try:
        client.infer(model, [wrong])
        refused = ""
    except InferenceServerException as error:
        refused = str(error)
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(model),
        "version_ready": client.is_model_ready(model, "3"),
        "other_ready": client.is_model_ready("other"),
        "server": client.get_server_metadata()["name"],
        "inputs": client.get_model_metadata(model, "3")["inputs"],
        "id": found.get_response()["id"],
        "release": [found.get_response()["model_name"], found.get_response()["model_version"]],
        "outputs": [r.as_numpy("output").tolist() for r in (found, everything, later)],
        "refused": refused,
    }


def triton_tensors(url: str, model: str, *, binary: bool) -> dict[str, Any]:
    """Two named inputs of a model of tensors, of which one is strings; then a sequence."""
    import tritonclient.http as http

    client = http.InferenceServerClient(url.removeprefix("http://"))
    extensions = client.get_server_metadata()["extensions"]
    text = http.InferInput("x", [1, 3], "BYTES")
    text.set_data_from_numpy(np.array([["a", "é", ""]], object), binary_data=binary)
    wanted = http.InferRequestedOutput("y", binary_data=binary)
    found = client.infer(model, [text], outputs=[wanted]).as_numpy("y")
    step = http.InferInput("x", [1, 2], "FP32")
    step.set_data_from_numpy(np.float32([[1, 2]]), binary_data=binary)
    sums = [
        client.infer(
            "sums", [step], sequence_id="mic", sequence_start=i == 0, sequence_end=i == 2
        ).as_numpy("y").tolist()
        for i in range(3)
    ]  # fmt: skip
    return {
        "extensions": extensions,
        "text": [t.decode() if isinstance(t, bytes) else t for t in found.ravel()],
        "sums": sums,
    }


async def kserve(url: str, model: str, *, binary: bool) -> dict[str, Any]:
    import httpx
    from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
    from kserve.protocol.infer_type import RequestedOutput

    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=10))
    given = InferInput("input", list(ROWS.shape), "FP32")
    given.set_data_from_numpy(ROWS, binary_data=binary)
    wanted = RequestedOutput("output", parameters={"binary_data": binary})
    request = InferRequest(model, [given], request_id="7", request_outputs=[wanted])
    found = await client.infer(url, request, model_name=model)
    everything = await client.infer(
        url,
        InferRequest(model, [given], parameters={"binary_data_output": binary}),
        model_name=model,
    )
    wrong = InferInput("nope", list(ROWS.shape), "FP32")
    wrong.set_data_from_numpy(ROWS, binary_data=binary)
    try:
        await client.infer(url, InferRequest(model, [wrong]), model_name=model)
        refused = ""
    except httpx.HTTPStatusError as error:
        refused = str(error)
    return {
        "live": await client.is_server_live(url),
        "ready": await client.is_server_ready(url),
        "model_ready": await client.is_model_ready(url, model),
        "id": found.id,
        "release": [found.model_name, "3"],  # kserve 0.21 drops the version of the response
        "outputs": [r.outputs[0].as_numpy().tolist() for r in (found, everything)],
        "refused": refused,
    }


def main(which: str, url: str, model: str) -> None:
    name, _, mode = which.partition("-")
    binary = mode == "binary"
    if mode.startswith("tensors"):
        found = triton_tensors(url, model, binary=mode.endswith("binary"))
    elif name == "triton":
        found = triton(url, model, binary=binary)
    else:
        found = asyncio.run(kserve(url, model, binary=binary))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
