"""Triton's own client, run by .venv-clients/bin/python: `triton.py URL FOLDER`.

For each FOLDER/MODEL.in.npz it asks MODEL once, in bytes, with those inputs, and writes every
output to FOLDER/MODEL.out.npz.
"""

import sys
from pathlib import Path

import numpy as np
import tritonclient.http as http
from tritonclient.utils import np_to_triton_dtype


def main() -> None:
    client = http.InferenceServerClient(sys.argv[1].removeprefix("http://"))
    for path in sorted(Path(sys.argv[2]).glob("*.in.npz")):
        model = path.name.removesuffix(".in.npz")
        with np.load(path) as arrays:
            inputs = [_input(name, arrays[name]) for name in arrays.files]
        found = client.infer(model, inputs)
        names = [output["name"] for output in client.get_model_metadata(model)["outputs"]]
        outputs = {name: _plain(found.as_numpy(name)) for name in names}
        np.savez(path.with_name(f"{model}.out.npz"), **outputs)


def _input(name: str, array: np.ndarray) -> http.InferInput:
    if array.dtype.kind == "U":
        array = np.char.encode(array, "utf-8").astype(object)
    given = http.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    given.set_data_from_numpy(array, binary_data=True)
    return given


def _plain(array: np.ndarray) -> np.ndarray:
    """Texts as an array that needs no pickle."""
    if array.dtype != object:
        return array
    return np.array([text.decode() for text in array.ravel()]).reshape(array.shape)


if __name__ == "__main__":
    main()
